"""Averages of the weights: by hand, beside the plain ones, and whole in a checkpoint."""

from functools import partial

import pytest
import torch
from test_run import StopAt, assert_equal_weights, train, weights
from tiny_training import assert_resumes, batches, fit, learned, make_module

from dml import record, run
from dml.averaging import AveragedEncoder, ema, swa
from dml.callbacks import Interrupted
from dml.encoder import Encoder
from dml.measure import load_encoder_weights, run_encoder


def watched(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """The encoder's weights at every update, the first being those before training."""
    seen = []
    update = AveragedEncoder.update

    def update_watched(self, encoder, *args):
        if not seen:
            seen.append({k: v.clone() for k, v in self.encoder.state_dict().items()})
        seen.append({k: v.clone() for k, v in encoder.state_dict().items()})
        update(self, encoder, *args)

    monkeypatch.setattr(AveragedEncoder, "update", update_watched)
    return seen


def average_of(module) -> dict[str, torch.Tensor]:
    return module.averaged.encoder.state_dict()


def assert_close(average, expected) -> None:
    for key, value in expected.items():
        if value.is_floating_point():
            torch.testing.assert_close(average[key], value, rtol=1e-5, atol=1e-7)


def test_ema_by_hand(monkeypatch):
    seen = watched(monkeypatch)
    module = make_module(freeze_bn=False, averaging=partial(ema, decay=0.3), lr=0.1)
    fit(module, batches(4), epochs=2)
    expected = dict(seen[0])
    for step, now in enumerate(seen[1:], 1):
        decay = min(0.3, step / (9 + step))
        expected = {
            k: decay * expected[k] + (1 - decay) * value
            for k, value in now.items()
            if value.is_floating_point()
        }
    assert len(seen) == 9
    assert_close(average_of(module), expected)
    assert any(not torch.equal(seen[-1][k], v) for k, v in average_of(module).items())


def test_swa_is_the_mean_of_the_ends_of_the_last_epochs(monkeypatch):
    seen = watched(monkeypatch)
    module = make_module(averaging=partial(swa, start=0.5), lr=0.1)
    fit(module, batches(3), epochs=6)
    ends = [seen[step] for step in (9, 12, 15, 18)]
    expected = {
        k: torch.stack([end[k] for end in ends]).mean(0)
        for k, value in seen[0].items()
        if value.is_floating_point()
    }
    assert_close(average_of(module), expected)


@pytest.mark.parametrize(
    ("per_epoch", "total", "start", "expected"),
    [
        (2, 8, 0.5, {2: 1, 4: 1, 6: 1 / 2, 8: 1 / 3}),
        (2, 8, 0.0, {2: 1, 4: 1 / 2, 6: 1 / 3, 8: 1 / 4}),
        (3, 7, 0.75, {3: 1, 6: 1, 7: 1 / 2}),  # max_steps ends the run within an epoch
        (10, 4, 0.75, {4: 1}),  # and within its first
    ],
)
def test_swa_moves_at_the_ends_of_epochs(per_epoch, total, start, expected):
    shares = {step: swa(step, per_epoch, total, start=start) for step in range(1, total + 1)}
    assert {step: share for step, share in shares.items() if share} == expected


def test_both_are_validated_and_the_average_is_val():
    module = make_module(averaging=partial(ema, decay=0.9))
    data = batches(2)
    trainer = fit(module, data, validation=data)
    assert {"val/recall@1", "val_plain/recall@1"} <= set(trainer.callback_metrics)


def test_the_average_learns_nothing_and_stays_in_evaluation_mode():
    module = make_module(averaging=partial(ema, decay=0.9), freeze_bn=False)
    fit(module, batches(2))
    module.train()
    assert not any(part.training for part in module.averaged.modules())
    assert not any(p.requires_grad for p in module.averaged.parameters())
    assert all(p.grad is None for p in module.averaged.parameters())


@pytest.mark.parametrize("rule", [partial(ema, decay=0.9), partial(swa, start=0.3)])
def test_two_halves_make_the_same_average_as_one_run(rule, tmp_path):
    assert_resumes(partial(make_module, averaging=rule, lr=0.1), tmp_path)


@pytest.mark.slow  # that the averages are in a checkpoint: test_survival.py
def test_a_run_that_was_stopped_has_the_same_average(cache, tmp_path, monkeypatch):
    """Stopped within an epoch, with SAM and a memory; the records say the same of both kinds of weights."""
    changed = ("averaging=ema", "optimizer.sam_rho=0.05", "memory=xbm")
    changed += ("memory.size=200", "memory.start_step=2")
    whole = train(cache, tmp_path / "whole", *changed)
    with monkeypatch.context() as patch:
        patch.setattr(StopAt, "step", 4)
        patch.setattr(run, "StopOnSignal", StopAt)
        with pytest.raises(Interrupted):
            train(cache, tmp_path / "part", *changed)
    resumed = train(cache, tmp_path / "part", *changed, "ckpt_path=last")
    assert_equal_weights(weights(tmp_path / "whole"), weights(tmp_path / "part"))
    assert resumed["metrics"] == whole["metrics"]
    assert whole["checkpoint"]["weights"] == "averaged by ema"
    assert whole["metrics"]["test_plain"].keys() == whole["metrics"]["test"].keys()
    assert whole["metrics"]["val_plain"] is not None
    assert record.read(tmp_path / "whole")["metrics"] == whole["metrics"]
    encoder, _ = run_encoder(tmp_path / "whole")  # what dml-eval and an export take up
    chosen = torch.load(tmp_path / "whole" / whole["checkpoint"]["file"], weights_only=True)
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, chosen["state_dict"][f"averaged.encoder.{key}"])


def test_a_checkpoint_without_averages_is_read_as_it_is(tmp_path):
    module, other = make_module(), make_module(lr=0.1)
    trainer = fit(module, batches(2))
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    encoder: Encoder = other.encoder
    load_encoder_weights(encoder, tmp_path / "some.ckpt")
    assert_equal_weights(encoder.state_dict(), module.encoder.state_dict())


def test_training_itself_is_the_same_with_it():
    plain, averaged = make_module(), make_module(averaging=partial(ema, decay=0.9))
    for module in (plain, averaged):
        fit(module, batches(3))
    found = learned(averaged)
    assert all(torch.equal(value, found[key]) for key, value in learned(plain).items())
