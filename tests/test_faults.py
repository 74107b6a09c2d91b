"""What can befall a long run ends in a message that helps, an honest exit code and a whole checkpoint.

Signals are real ones, which this process sends to itself; memory, disk and workers really fail, where a
test can make them.
"""

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from full_disk import full_disk
from pytorch_lightning.plugins.precision import MixedPrecision
from test_run import assert_equal_weights, train, weights, words
from tiny_training import batches, fit, learned, make_module
from torch import nn

from dml import cli, faults, processes, record, run
from dml.averaging import ema
from dml.callbacks import Interrupted, StopOnSignal
from dml.config import compose
from dml.data import decode, images
from dml.errors import ConfigurationError, NotFinite, RunError
from dml.faults import NanSteps, check_weights, explanation
from dml.log_file import LogFile
from dml.losses import Contrastive
from dml.memory import CrossBatchMemory
from dml.module import DmlModule

ROOT = Path(__file__).resolve().parents[1]

# ---------------------------------------------------------------- not a number


class Spoilt(nn.Module):
    """A loss that is not as it should be at the calls `at`, counted from 0."""

    def __init__(self, how: str, *at: int):
        super().__init__()
        self.loss, self.how, self.at, self.calls = Contrastive(), how, at, -1

    def forward(self, embeddings, *args, **kwargs):
        self.calls += 1
        if self.calls not in self.at:
            return self.loss(embeddings, *args, **kwargs)
        if self.how == "loss":
            return self.loss(embeddings, *args) * torch.inf
        if self.how == "gradient":  # of a root at 0; the loss itself is 0
            return (embeddings.sum() * 0).sqrt()
        assert self.how == "embeddings"
        spoilt = embeddings * torch.ones(len(embeddings), 1).index_fill(
            0, torch.tensor(3), torch.nan
        )
        return self.loss(spoilt, *args)


KINDS = {
    "loss": "the loss is inf",
    "gradient": "the gradient's norm nan",
    "embeddings": "row 3 of 6 not finite",
}


@pytest.mark.parametrize("how", KINDS)
def test_a_step_that_is_not_finite_stops_the_run_and_names_its_images(how):
    """By default; the weights are those of the step before."""
    module = make_module(Spoilt(how, 2))
    steps: list[dict] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, *args):
            steps.append(learned(module))

    with pytest.raises(RunError) as raised:
        fit(module, batches(4), callbacks=[Watch()])
    said = str(raised.value)
    assert "step 3, epoch 1" in said
    assert KINDS[how] in said
    assert "learning rates trunk 0.01" in said
    assert [line.strip() for line in said.splitlines() if line.startswith("  image")] == [
        f"image {i}" for i in range(12, 18)
    ]
    assert "lower optimizer.lr" in said
    assert "trainer.on_nan=skip" in said
    assert len(steps) == 2
    assert_equal_weights(steps[-1], learned(module))


MORE = {
    "plain": {},
    "statistics of the batch": {"freeze_bn": False},
    "chunks": {"batch_chunks": 2},
    "sam": {"sam_rho": 0.1, "freeze_bn": False},
    "ema": {"averaging": lambda *steps: ema(*steps, decay=0.9)},
    "momentum": {
        "optimizer": lambda groups, lr: torch.optim.SGD(
            groups, lr=lr, momentum=0.9, weight_decay=0.1
        )
    },
    "adam": {"optimizer": lambda groups, lr: torch.optim.AdamW(groups, lr=lr, weight_decay=0.1)},
}


class Moves(pl.Callback):
    """Which of the steps changed anything at all: weights, buffers, averages, the optimizer's state."""

    def __init__(self):
        self.changed: list[bool] = []

    def everything(self, trainer, module) -> list[torch.Tensor]:
        state = trainer.optimizers[0].state_dict()["state"]
        of_optimizer = [v for entry in state.values() for v in entry.values() if torch.is_tensor(v)]
        return [t.clone() for t in (*module.state_dict().values(), *of_optimizer)]

    def on_train_batch_start(self, trainer, module, *args):
        self.before = self.everything(trainer, module)

    def on_train_batch_end(self, trainer, module, *args):
        after = self.everything(trainer, module)
        same = len(after) == len(self.before)
        self.changed.append(
            not (same and all(map(torch.equal, after, self.before))),
        )


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("kind", MORE)
def test_a_skipped_step_moves_nothing(how, kind, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("dml"), "propagate", True)
    passes = 2 if kind == "sam" else 1
    module = make_module(Spoilt(how, 2 * passes), nan_steps=NanSteps("skip", 5), **MORE[kind])
    watch = Moves()
    fit(module, batches(5), callbacks=[watch])
    assert watch.changed == [True, True, False, True, True]
    assert module.nan_steps.steps == [3]
    (warning,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert "1 of at most 5" in warning
    assert "step 3, epoch 1" in warning
    assert all(t.isfinite().all() for t in module.state_dict().values() if t.is_floating_point())


def test_a_pass_uphill_that_is_not_finite_is_one_skipped_step():
    """SAM's second pass alone."""
    module = make_module(Spoilt("embeddings", 5), nan_steps=NanSteps("skip", 5), sam_rho=0.1)
    watch = Moves()
    fit(module, batches(4), callbacks=[watch])
    assert watch.changed == [True, True, False, True]
    assert module.nan_steps.steps == [3]


def test_rows_that_are_not_finite_do_not_enter_the_memory():
    """Where no loss looks at them before."""
    memory = CrossBatchMemory(12, 4)
    module = make_module(nn.Identity(), memory=memory)
    module.compare = lambda *args, **kwargs: torch.zeros(())  # type: ignore[method-assign]
    vectors = torch.ones(2, 4)
    vectors[1, 2] = torch.nan
    module.trainer = None  # type: ignore[assignment]
    with pytest.raises(NotFinite, match="row 1 of 2"):
        module.objective(vectors, torch.tensor([0, 1]))
    assert memory.filled == 0


def test_the_limit_of_skipped_steps_ends_the_run():
    module = make_module(Spoilt("loss", 0, 1, 3, 4), nan_steps=NanSteps("skip", 2))
    with pytest.raises(RunError, match=r"3 steps were not finite \(1, 2, 4\).*max_nan_steps=2"):
        fit(module, batches(6))
    assert module.nan_steps.steps == [1, 2, 4]


def test_skipped_steps_are_counted_over_interruptions(tmp_path):
    first = make_module(Spoilt("loss", 0, 2), nan_steps=NanSteps("skip", 2))
    fit(first, batches(3)).save_checkpoint(tmp_path / "half.ckpt")
    second = make_module(Spoilt("loss", 1), nan_steps=NanSteps("skip", 2))
    with pytest.raises(RunError, match=r"\(1, 3, 5\)"):
        fit(second, batches(3), epochs=2, checkpoint=tmp_path / "half.ckpt")


def test_images_without_a_finite_embedding_come_first():
    """With their files, the first twenty."""
    vectors = torch.zeros(40, 2).index_fill(0, torch.tensor([7]), torch.inf)
    told = NanSteps().files(torch.arange(40), vectors)
    lines = told.splitlines()
    assert "first the 1 of 40 whose embeddings are not finite" in lines[0]
    assert lines[1:3] == ["  image 7", "  image 0"]
    assert lines[-1] == "  and 20 more"


def test_what_the_gradient_scaler_leaves_out_is_not_counted():
    """It looks for its scale by overflows; only at a scale of 1 is the gradient itself at fault."""
    for start, expected in ((2.0**127, []), (1.0, [1])):
        module = make_module(Spoilt("gradient", 0), nan_steps=NanSteps("skip", 9))
        scaler = torch.amp.GradScaler("cpu", init_scale=start, growth_interval=1000)
        precision = MixedPrecision("16-mixed", "cpu", scaler)
        fit(module, batches(1), plugins=[precision])
        assert module.nan_steps.steps == expected
        assert scaler.get_scale() < start


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    module = make_module()
    trainer = fit(module, batches(1))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    before = (tmp_path / "last.ckpt").read_bytes()
    with torch.no_grad():
        module.encoder.head.linear.weight[0, 0] = torch.nan
    with pytest.raises(
        RunError, match=r"not finite \(encoder.head.linear.weight\), and were not saved"
    ):
        trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_a_mask_of_minus_infinity_is_no_fault():
    """Attention masks of some backbones are buffers; weights may not be so."""
    state = {"mask": torch.tensor([0.0, -torch.inf])}
    check_weights(state, [], "step 1")
    with pytest.raises(RunError, match="mask"):
        check_weights(state, ["mask"], "step 1")
    with pytest.raises(RunError, match="mask"):
        check_weights({"mask": torch.tensor([torch.inf])}, [], "step 1")


def command(composed_words: list[str]) -> int:
    """Exit code of dml-train, in this process."""
    cli.set_up_log()
    return cli.exit_code(lambda w: cli.train_one(*cli.checked(w)), composed_words)


def at_step(monkeypatch, step: int, act) -> None:
    """Do something within the forward pass of a step, counted from 1."""
    objective = DmlModule.objective

    def acting(self, vectors, labels):
        if self.global_step + 1 == step:
            vectors = act(vectors)
        return objective(self, vectors, labels)

    monkeypatch.setattr(DmlModule, "objective", acting)


SKIP = "trainer.on_nan=skip"


def test_a_run_that_diverges_keeps_its_checkpoint_and_goes_on_without_the_step(
    cache, tmp_path, monkeypatch
):
    """The whole way: message, exit code 1, log.txt, and the resumed run's record."""
    typed = words(cache, tmp_path / "run", "loss=contrastive")
    with monkeypatch.context() as patch:
        at_step(patch, 9, lambda vectors: vectors * torch.nan)
        assert command(typed) == 1
        kept = (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
        said = (tmp_path / "run" / "log.txt").read_text()
        assert "step 9, epoch 2: embeddings" in said
        assert ".png" in said
        assert "Resume with\n" in said
        assert "Traceback" not in said
        assert torch.load(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 6
        assert command([*typed, "ckpt_path=last"]) == 1  # again, with nothing lost
        assert (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes() == kept
        assert command([*typed, "ckpt_path=last", SKIP]) == 0
    assert record.read(tmp_path / "run")["nan_steps"] == [9]
    assert record.read(tmp_path / "run")["checkpoint"]["step"] in (6, 12)


@pytest.mark.parametrize(
    ("word", "said"),
    [("trainer.on_nan=ignore", "stop"), ("trainer.max_nan_steps=0", "at least 1")],
)
def test_options_are_checked(word, said, cache, tmp_path):
    with pytest.raises(ConfigurationError, match=said):
        cli.checked(words(cache, tmp_path / "run", word))


TWO = """
import os, sys, torch
from dml import cli
from dml.module import DmlModule
objective = DmlModule.objective
def spoilt(self, vectors, labels):
    if os.environ["RANK"] == "1" and self.global_step == 3:
        vectors = vectors * torch.nan
        self.vectors = vectors.detach()
    return objective(self, vectors, labels)
DmlModule.objective = spoilt
words = sys.argv[1:]
cli.exit_with(lambda _: cli.train_one(*cli.checked(words)))
"""


def two_processes(typed: list[str], folder: Path) -> tuple[list[int], str]:
    """Exit codes of a run in two processes, of which the second has NaN in its fourth step."""
    started = []
    for rank in range(2):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        own |= {"OMP_NUM_THREADS": 1, processes.STORE: folder / "store", "PYTHONPATH": ROOT}
        environment = {**os.environ, **{k: str(v) for k, v in own.items()}}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", TWO, *typed, "trainer.devices=2"],
                env=environment,
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
            )
        )
    said = [process.communicate(timeout=500)[1] for process in started]
    return [process.returncode for process in started], "".join(said)


@pytest.mark.slow
def test_two_processes_skip_the_same_step_and_stop_together(cache, tmp_path):
    """One of them has NaN in its part; the loss of each is its own."""
    typed = words(cache, tmp_path / "run", "loss=proxy_nca", "trainer.max_epochs=1")
    codes, said = two_processes([*typed, SKIP], tmp_path)
    assert codes == [0, 0], said
    assert said.count("left out (1 of at most 10)") == 1
    assert "first the 70 of 140 whose embeddings are not finite" in said
    assert record.read(tmp_path / "run")["nan_steps"] == [4]
    (tmp_path / "store").unlink(missing_ok=True)
    typed = words(cache, tmp_path / "stops", "loss=proxy_nca", "trainer.max_epochs=1")
    begun = time.monotonic()
    codes, said = two_processes(typed, tmp_path)
    assert codes == [1, 1], said
    assert said.count("step 4, epoch 1") == 1
    assert "Traceback" not in said
    assert "step 4, epoch 1" in (tmp_path / "stops" / "log.txt").read_text()
    assert time.monotonic() - begun < 300  # and not trainer.timeout, half an hour


# ---------------------------------------------------------------- signals


def send(number: int):
    """Send a signal to this process, for `at_step`."""

    def act(thing=None):
        os.kill(os.getpid(), number)
        return thing

    return act


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)],
)
def test_a_signal_saves_after_the_step_and_the_code_says_so(
    number, code, cache, tmp_path, monkeypatch
):
    at_step(monkeypatch, 4, send(number))
    assert command(words(cache, tmp_path / "run")) == code
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 4
    said = (tmp_path / "run" / "log.txt").read_text()
    assert f"{signal.Signals(number).name}: stopping" in said
    assert said.rstrip().endswith("ckpt_path=last")


def test_a_second_sigterm_does_not_break_off_the_saving(cache, tmp_path, monkeypatch):
    """srun and Slurm's daemon each send one."""
    at_step(monkeypatch, 4, lambda vectors: send(signal.SIGTERM)(send(signal.SIGTERM)(vectors)))
    assert command(words(cache, tmp_path / "run")) == 75
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 4


def test_a_second_ctrl_c_stops_at_once(cache, tmp_path, monkeypatch):
    at_step(monkeypatch, 9, lambda vectors: send(signal.SIGINT)(send(signal.SIGINT)(vectors)))
    assert command(words(cache, tmp_path / "run")) == 130
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 6
    assert "Stopped at once" in (tmp_path / "run" / "log.txt").read_text()


def test_sigterm_while_loading_has_nothing_to_save(cache, tmp_path, monkeypatch):
    """Nothing is there: 143. A resumed run loses nothing: 75."""
    typed = words(cache, tmp_path / "run")
    begin = run.begin

    def stopped(*args):
        send(signal.SIGTERM)()
        return begin(*args)

    with monkeypatch.context() as patch:
        patch.setattr(run, "begin", stopped)
        assert command(typed) == 143
        assert not (tmp_path / "run").exists()
    with monkeypatch.context() as patch:
        at_step(patch, 4, send(signal.SIGTERM))
        assert command(typed) == 75
    monkeypatch.setattr(run, "begin", stopped)
    assert command([*typed, "ckpt_path=last"]) == 75


def test_a_signal_in_the_last_evaluation_loses_nothing(cache, tmp_path, monkeypatch):
    """The resumed run goes straight to it."""
    typed = words(cache, tmp_path / "run", "loss=proxy_nca")
    with monkeypatch.context() as patch:
        patch.setattr(run, "untrained_encoder", send(signal.SIGUSR1))
        assert command(typed) == 75
    said = (tmp_path / "run" / "log.txt").read_text()
    assert "Stopped outside of training" in said
    assert "ckpt_path=last" in said
    assert not (tmp_path / "run" / "record.json").exists()

    def trains(*args):
        raise AssertionError("a step was trained again")

    monkeypatch.setattr(DmlModule, "training_step", trains)
    assert command([*typed, "ckpt_path=last"]) == 0
    assert record.read(tmp_path / "run")["checkpoint"]["step"] in (6, 12)


class StopInValidation(StopOnSignal):
    """A signal in the n-th validation of the run: before a batch of it, or before its measuring."""

    validation, batch = 1, 0
    number = 0

    def on_validation_start(self, *args):
        super().on_validation_start(*args)
        self.number += 1

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if (self.number, batch_idx) == (self.validation, self.batch):
            self.received = signal.SIGTERM
        super().on_validation_batch_start(trainer, module, batch, batch_idx)

    def on_validation_epoch_end(self, *args):
        if (self.number, -1) == (self.validation, self.batch):
            self.received = signal.SIGTERM
        super().on_validation_epoch_end(*args)


@pytest.fixture(scope="module")
def three_epochs(cache, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("three") / "run"
    train(cache, directory, *THREE)
    return directory


THREE = ("loss=proxy_nca", "trainer.max_epochs=3", "loader.eval_batch_size=100")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("validation", "batch", "workers"), [(1, 2, 2), (1, 0, 0), (1, -1, 0), (2, 1, 0), (3, -1, 0)]
)
def test_a_run_stopped_within_a_validation_resumes_to_the_same_result(
    validation, batch, workers, cache, tmp_path, monkeypatch, three_epochs
):
    """At once, and not at the validation's end: a warning may come thirty seconds before the end.

    The resumed run stops once more, after the epoch's end, to take up a checkpoint of its own.
    """
    more = (*THREE, f"loader.num_workers={workers}")
    monkeypatch.setattr(StopInValidation, "validation", validation)
    monkeypatch.setattr(StopInValidation, "batch", batch)
    with monkeypatch.context() as patch:
        patch.setattr(run, "StopOnSignal", StopInValidation)
        with pytest.raises(Interrupted):
            train(cache, tmp_path / "part", *more)
    saved = torch.load(tmp_path / "part/checkpoints/last.ckpt")
    assert saved["global_step"] == 6 * validation
    if validation < 3:
        with monkeypatch.context() as patch:
            at_step(patch, 6 * validation + 1, send(signal.SIGTERM))
            with pytest.raises(Interrupted):
                train(cache, tmp_path / "part", *more, "ckpt_path=last")
    resumed = train(cache, tmp_path / "part", *more, "ckpt_path=last")
    whole = record.read(three_epochs)
    assert_equal_weights(weights(three_epochs), weights(tmp_path / "part"))
    assert_equal_weights(weights(three_epochs, "best"), weights(tmp_path / "part", "best"))
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["checkpoint"] == whole["checkpoint"]
    rows = (tmp_path / "part" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("val/recall@1")
    assert sum(bool(row.split(",")[column]) for row in rows[1:]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_all_processes_of_a_run_lets_it_save(number, cache, tmp_path):
    """As Slurm and a terminal send it: the workers that read images get it as well."""
    typed = words(cache, tmp_path / "run", "trainer.max_epochs=400", "loader.num_workers=2")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *typed],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = tmp_path / "run" / "log.txt"
    for _ in range(1200):
        if log.exists() and "epoch 2/400" in log.read_text():
            break
        time.sleep(0.1)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 75, said
    assert said.count("stopping after this step") == 1
    assert said.count("Resume with") == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no worker is left


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({0: 75, 1: 75}, 75),
        ({0: 75, 1: -9}, 75),  # the first has saved
        ({0: 75, 1: 1}, 1),
        ({0: 143, 1: 143}, 143),
        ({0: 130, 1: 130}, 130),
        ({0: -10, 1: -10}, 138),
        ({0: -9, 1: 75}, 1),
        ({0: 0, 1: 0}, 0),
    ],
)
def test_the_exit_code_of_several_processes(codes, expected):
    assert processes.verdict(codes) == expected


# ---------------------------------------------------------------- memory


def absurd(thing):
    """More memory than there can be, asked of the system in earnest."""
    torch.empty(1 << 50, dtype=torch.uint8)
    return thing


def test_memory_of_the_machine_runs_out_in_training(cache, tmp_path, monkeypatch):
    at_step(monkeypatch, 8, absurd)
    assert command(words(cache, tmp_path / "run")) == 1
    said = (tmp_path / "run" / "log.txt").read_text()
    error = said[said.index("Error: out of memory in training") :]
    error, resume = error.split("Resume with")
    assert "this machine has no more. " in error
    assert "sampler.classes_per_batch (now " in error
    assert "sampler.images_per_class (now " in error
    assert "trainer.batch_chunks=2 (now 1) with backbone.freeze_bn=true" in error
    assert "backbone.image_size (now 32)" in error
    assert "eval_batch_size" not in error
    assert "Kept: " in error
    assert resume.rstrip().endswith("ckpt_path=last")


@pytest.mark.parametrize("where", ["validation", "evaluation"])
def test_memory_of_a_gpu_runs_out_in_evaluation(where, cache, tmp_path, monkeypatch):
    def fails(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    if where == "validation":
        monkeypatch.setattr(DmlModule, "validation_step", lambda self, batch, batch_idx: fails())
    else:
        monkeypatch.setattr(run, "embed_split", fails)
    assert command(words(cache, tmp_path / "run")) == 1
    said = (tmp_path / "run" / "log.txt").read_text()
    assert f"Error: out of memory in {where}: the GPU has no more. CUDA out of memory" in said
    assert "loader.eval_batch_size (now 500)" in said
    assert "sampler." not in said[said.index("Error: out of memory") :].split("Resume with")[0]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("Caught RuntimeError in DataLoader worker process 0.\n... std::bad_alloc"),
    ],
)
@pytest.mark.parametrize("sampler", ["random", "pk", "class_balanced"])
def test_options_that_take_memory_are_named_as_they_are(error, sampler):
    config = some(f"sampler={sampler}", "loss=proxy_nca", "miner=none")
    said = explanation(error, config, Path("run"), "training")
    assert said is not None
    named = [word for word in said.split() if word.startswith("sampler.")]
    assert named
    for option in named:
        assert option.removeprefix("sampler.") in config.sampler
        assert f"{option} (now {config.sampler[option.removeprefix('sampler.')]})" in said


def some(*more: str):
    """A configuration."""
    composed, problems = compose.compose_all(["data=digits", *more])
    assert not problems
    return composed.config


def test_other_errors_stay_what_they_are(tmp_path):
    """With their traceback: they are no fault of the machine."""
    for error in (RuntimeError("shapes differ"), FileNotFoundError(2, "no"), OSError("odd")):
        assert explanation(error, some(), tmp_path) is None
        with pytest.raises(type(error)), faults.explained(some(), tmp_path, faults.Stage()):
            raise error


# ---------------------------------------------------------------- workers and files


def test_a_killed_worker_is_named_as_the_cause(cache, tmp_path, monkeypatch):
    """By SIGKILL, as the system does it where memory ends."""
    get, parent = images.Images.__getitem__, os.getpid()

    def killed(self, index):
        if os.getpid() != parent and isinstance(index, tuple):
            os.kill(os.getpid(), signal.SIGKILL)
        return get(self, index)

    monkeypatch.setattr(images.Images, "__getitem__", killed)
    assert command(words(cache, tmp_path / "run", "loader.num_workers=1")) == 1
    said = (tmp_path / "run" / "log.txt").read_text()
    error = said[said.index("Error: a process that reads images was killed") :]
    assert "loader.num_workers (now 1" in error
    assert "--shm-size" in error


def test_an_error_that_nobody_foresaw_names_the_image(cache, tmp_path, monkeypatch):
    def odd(path):
        raise ZeroDivisionError("a decoder's mistake")

    monkeypatch.setattr("dml.data.loaders.ImageFile", odd)
    assert command(words(cache, tmp_path / "run", "loader.num_workers=1")) == 1
    said = (tmp_path / "run" / "log.txt").read_text()
    assert "a decoder's mistake" in said
    assert "while reading the image " in said
    assert ".png" in said[said.index("while reading the image") :]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_an_image_is_not_blamed_for_what_the_system_lacks(number, monkeypatch):
    """With data.on_bad_image=skip such images would be left out in silence."""

    def fails(self):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(OSError, match=os.strerror(number)):
        decode.ImageFile(Path("a.jpg"))


def test_too_many_open_files_names_the_limit():
    for error in (
        OSError(errno.EMFILE, "Too many open files"),
        RuntimeError("unable to open shared memory object </torch_1> : Too many open files (24)"),
    ):
        said = explanation(error, some(), Path("run"))
        assert said is not None
        assert "ulimit -n" in said


def test_a_full_dev_shm_is_told_from_a_killed_worker():
    said = explanation(
        RuntimeError(
            "DataLoader worker (pid 1) is killed by signal: Bus error. It is possible that "
            "dataloader's workers are out of shared memory."
        ),
        some(),
        Path("run"),
    )
    assert said is not None
    assert "/dev/shm" in said
    assert "--shm-size" in said


# ---------------------------------------------------------------- disk


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before_and_the_run_goes_on(cache, tmp_path, monkeypatch):
    typed = words(cache, tmp_path / "run", "loss=proxy_nca")
    with monkeypatch.context() as patch:
        at_step(patch, 4, send(signal.SIGTERM))
        assert command(typed) == 75
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    with full_disk(len(before) // 2):
        assert command([*typed, "ckpt_path=last"]) == 1
    said = (tmp_path / "run" / "log.txt").read_text()
    error = said[said.index("Error: cannot write") :]
    assert str(tmp_path / "run") in error
    assert "MB are free in" in error
    assert last.read_bytes() == before
    assert command([*typed, "ckpt_path=last"]) == 0


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 128 vs 22"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_torch_speaks_of_a_full_disk_in_its_own_words(error, tmp_path):
    said = explanation(error, some(), tmp_path)
    assert said is not None
    assert f"cannot write into {tmp_path}" in said
    assert "MB are free in" in said


def test_files_written_aside_are_named(tmp_path):
    with full_disk(10), pytest.raises(OSError, match="File too large") as raised:
        record.write_json({"much": "x" * 100}, tmp_path / "record.json")
    said = explanation(raised.value, some(), tmp_path)
    assert said is not None
    assert f"cannot write {tmp_path / 'record.json'} (File too large" in said
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_cannot_be_written_ends_the_run_and_its_last_words_are_heard(capsys):
    """On a full disk: a message raises, an error does not, and closing is no traceback."""
    handler = LogFile("/dev/full")
    line = {"name": "dml", "pathname": "", "lineno": 0, "args": (), "exc_info": None}
    with pytest.raises(OSError, match="No space left") as raised:
        handler.handle(logging.LogRecord(level=logging.INFO, msg="epoch 1", **line))
    assert raised.value.filename == "/dev/full"
    handler.handle(logging.LogRecord(level=logging.ERROR, msg="Error", **line))
    handler.close()
    assert "Traceback" not in capsys.readouterr().err


def test_a_directory_that_cannot_be_written_is_refused_before_training(
    cache, tmp_path, monkeypatch
):
    """Exit code 2, by the check where it can know, else by the first attempt."""
    (tmp_path / "file").touch()
    assert command(words(cache, tmp_path / "file" / "run")) == 2
    with pytest.raises(ConfigurationError, match="is a file"):
        cli.checked(words(cache, tmp_path / "file" / "run"))
    with monkeypatch.context() as patch:  # a mode does not stop root
        patch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
        with pytest.raises(ConfigurationError, match=f"{tmp_path} is read-only"):
            cli.checked(words(cache, tmp_path / "run" / "deep"))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="NO /proc HERE: nothing to fail in")
def test_a_file_system_that_refuses_a_directory(cache, capsys):
    """/proc lets root write, and makes no directories."""
    assert command(words(cache, Path("/proc/run"))) == 2
