"""Mistakes in what surrounds the losses (mutants.txt): memory, regularisers, sums, training step, optimizer.

What must catch them are the tests of those parts, called here with a copy of the file in place of the
original.
"""

import importlib
import types
from functools import partial, wraps

import pytest
import test_memory
import test_optim
import test_regularizers
import test_sum
import test_training_step
from loss_cases import ROOT, drawn_batches
from mutants import OTHERS, Mutant

from dml.encoder import Encoder, Head, Trunk, pooled_features
from dml.losses import Contrastive

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
NAMESPACES = (test_memory, test_optim, test_regularizers, test_sum, test_training_step)
LOOPS = [partial(test_regularizers.test_equal_the_loops, *batch) for batch in drawn_batches()]
RUNNING = [
    test_regularizers.test_running_means_are_kept,
    test_regularizers.test_running_statistics_have_no_gradient,
]


def with_encoder(test):
    """A test of the optimizer, given its fixture."""

    @wraps(test)
    def call():
        trunk = Trunk("test_resnet")
        test(Encoder(trunk, Head(pooled_features(trunk, "gem"), 8, "gem")))

    return call


# File of dml -> the tests that know it.
TESTS = {
    "memory": [
        test_memory.test_the_queue_wraps_around,
        test_memory.test_class_0_in_the_last_slot_does_not_empty_the_memory,
        test_memory.test_what_is_remembered_has_no_gradient,
        test_memory.test_a_checkpoint_holds_all_of_it,
        partial(test_memory.test_a_memory_of_the_batch_alone_is_the_batch, Contrastive()),
    ],
    "module": [
        test_training_step.test_before_its_start_step_the_memory_rests,
        test_training_step.test_the_memory_adds_a_weighted_term,
        test_training_step.test_a_regularizer_sees_lengths,
    ],
    "losses/l2": LOOPS,
    "losses/spherical_embedding_constraint": [
        *LOOPS,
        *(partial(test, "sec") for test in RUNNING),
        test_regularizers.test_the_running_mean_by_hand,
    ],
    "losses/multi_level_distance": [*LOOPS, *(partial(test, "mdr") for test in RUNNING)],
    "losses/rho": [test_regularizers.test_switched_triplets],
    "losses/sum": [
        test_sum.test_the_default_is_its_parts_added,
        test_sum.test_miner_and_memory_reach_the_parts_that_take_them,
    ],
    "config/check": [
        partial(
            test_sum.test_mistakes_within_a_part,
            ["loss.second=snr_contrastive"],
            "loss=sum",
            "compare embeddings in different ways",
        )
    ],
    "build": [test_sum.test_every_part_learns_at_its_own_rate],
    "optim": [
        with_encoder(test_optim.test_trunk_head_and_loss_learn_at_their_own_rates),
        with_encoder(test_optim.test_a_parameter_outside_trunk_and_head_is_noticed),
    ],
}


def change(monkeypatch, file: str, text: str) -> None:
    """Let the tests see a module made of `text` for dml/<file>.py."""
    original = importlib.import_module(f"dml.{file.replace('/', '.')}")
    changed = types.ModuleType(original.__name__)
    exec(compile(text, original.__file__, "exec"), changed.__dict__)
    for namespace in NAMESPACES:
        for name, value in list(vars(namespace).items()):
            if value is original:
                monkeypatch.setattr(namespace, name, changed)
            elif getattr(value, "__module__", None) == original.__name__:
                monkeypatch.setattr(namespace, name, getattr(changed, value.__name__))


@pytest.mark.parametrize("file", TESTS)
def test_the_tests_pass_on_an_exact_copy(monkeypatch, file):
    """A test that the copying alone breaks would 'catch' every mutant."""
    change(monkeypatch, file, (ROOT / "dml" / f"{file}.py").read_text())
    for test in TESTS[file]:
        test()


@pytest.mark.parametrize("mutant", OTHERS, ids=str)
def test_mutant_is_caught(monkeypatch, caught, mutant: Mutant):
    """The first test that fails is the one the table names."""
    change(monkeypatch, mutant.file, mutant.applied())
    for test in TESTS[mutant.file]:
        try:
            test()
        except (Exception, pytest.fail.Exception):
            caught(mutant, getattr(test, "func", test).__name__)
            return
    pytest.fail(f"no test caught: {mutant}")
