"""Searches: spaces, what a trial may see, and that a search that was stopped goes on as one that was not."""

import csv
import json
import math
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from PIL import Image

from dml import cli, job, measure, record, run, search, search_plot, sweep
from dml.config import compose
from dml.errors import ConfigurationError, RunError
from dml.launchers import Job
from dml.pruning import Pruning

ROOT = Path(__file__).resolve().parents[1]


def tiny(cache: Path, *more: str) -> list[str]:
    """Trials of a second: 6 batches, unless `more` says otherwise."""
    return [
        "data=digits",
        f"data.root={cache}",
        "trainer.max_epochs=1",
        "loader.num_workers=0",
        "loader.eval_batch_size=500",
        "backbone.kwargs.channels=[8,8,8,8]",
        "backbone.image_size=32",
        "backbone.resize=32",
        "trainer.accelerator=cpu",
        "sampler.batches_per_epoch=6",
        *more,
    ]


def values_of(each: Job) -> dict[str, str]:
    return dict(word.split("=", 1) for word in each.words)


def pretended(jobs, processes, folder) -> Iterator:
    """A launcher whose trials train nothing: best is loss.margin=0.3 and optimizer.lr=1e-3."""
    for each in jobs:
        values = values_of(each)
        margin, rate = float(values["loss.margin"]), float(values["optimizer.lr"])
        reached = 1 - (margin - 0.3) ** 2 - 0.1 * abs(math.log10(rate) + 3)
        result = {"metrics": {"recall@1": max(reached, 0.0)}, "pruned": False, "epochs": 1}
        leave(each, {**result, "seconds": 1.0})
        yield each, 0


def leave(each: Job, result: dict) -> None:
    directory = Path(each.directory)
    directory.mkdir(parents=True, exist_ok=True)
    record.write_json({"format": 1, "words": each.words, **result}, directory / search.RESULT)


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return search.study_of(folder, {"pruner": "none"}).trials


def problem(*words: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        sweep.run(list(words), pretended)
    return str(caught.value)


@pytest.fixture
def plotted():
    """Asks for the picture, which takes a second."""


@pytest.fixture(autouse=True)
def _no_plot(request, monkeypatch):
    if "plotted" not in request.fixturenames:
        monkeypatch.setattr(search_plot, "draw", lambda study, metric, path: None)


# --- spaces


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        (
            "loss.margin",
            {},  # the schema's (0, 1), a little within
            optuna.distributions.FloatDistribution(0.01, 0.99),
        ),
        (
            "loss.scale",
            {"low": 16, "high": 256, "log": True},
            optuna.distributions.FloatDistribution(16.0, 256.0, log=True),
        ),
        ("head.dim", {"low": 32, "high": 128}, optuna.distributions.IntDistribution(32, 128)),
        (
            "head.pooling",
            {},
            optuna.distributions.CategoricalDistribution(
                ("avg", "max", "avg_max", "gem", "native")
            ),
        ),
        (
            "head.layer_norm",
            {},
            optuna.distributions.CategoricalDistribution((False, True)),
        ),
        (
            "sampler",
            {"choices": ["pk", "pairs"]},
            optuna.distributions.CategoricalDistribution(("pk", "pairs")),
        ),
        (
            "backbone.kwargs.drop_rate",
            {"low": 0.0, "high": 0.5, "step": 0.1},
            optuna.distributions.FloatDistribution(0.0, 0.5, step=0.1),
        ),
    ],
)
def test_what_a_space_leaves_out_comes_from_the_options_own_range(key, given, expected):
    composed, _ = compose.compose_all(["loss=circle"])
    found, problems = search.resolved({key: given}, composed.config)
    assert not problems
    assert found == {key: expected}


@pytest.mark.parametrize(
    ("key", "given", "told"),
    [
        ("loss.scale", {}, "has no low"),
        ("optimizer.lr", {"low": 1e-3}, "has no high"),
        ("loss.margin", {"low": 0.5, "high": 0.5}, "must be below"),
        ("head.dim", {"low": 32, "high": 64.5}, "takes whole numbers"),
        ("loss.margin", {"low": "a", "high": 1}, "low must be a number"),
        ("loss.margin", {"lo": 0.1}, "Did you mean low?"),
        ("loss.margin", {"choices": [0.1], "log": True}, "has choices, which have no"),
        ("loss.margin", {"choices": [0.1]}, "at least two values"),
        ("loss.margin", {"low": 0.1, "high": 0.5, "log": True, "step": 0.1}, "step"),
    ],
)
def test_spaces_that_are_none(key, given, told):
    composed, _ = compose.compose_all(["loss=circle"])
    _, problems = search.resolved({key: given}, composed.config)
    assert len(problems) == 1
    assert told in problems[0].what


@pytest.mark.parametrize("name", compose.options_of("search"))
def test_every_preset_can_be_searched(name, cache, tmp_path):
    """Its ranges lie within those of the options: both ends of each are checked."""
    words = [
        f"search={name}",
        "data=digits",
        f"data.root={cache}",
        "dry_run=true",
        f"run_dir={tmp_path / 'x'}",
    ]
    if name == "default":
        words.append("search.space.optimizer.lr={low:1e-5,high:1e-2,log:true}")
    assert sweep.run(words, pretended) == 0


def test_numbers_are_short_and_within_their_range():
    d = {
        "a": optuna.distributions.FloatDistribution(0.0, 1.0),
        "b": optuna.distributions.FloatDistribution(0.0, 0.99999),
        "c": optuna.distributions.IntDistribution(1, 10**6),
        "d": optuna.distributions.CategoricalDistribution((True, None)),
    }
    words = search.trial_words({"a": 0.123456, "b": 0.999987, "c": 123456, "d": True}, d)
    assert words == ["a=0.1235", "b=0.999987", "c=123456", "d=true"]


# --- what is refused


def test_a_search_needs_validation_classes(cache, tmp_path):
    """Test classes choose nothing: without validation classes there is nothing to choose by."""
    told = problem(
        *("search=circle", "data=csv", f"data.root={labelled(tmp_path)}", "data.labels=labels.csv"),
        *("data.val_fraction=0", "backbone=timm", "backbone.name=test_resnet"),
    )
    assert "chooses on validation classes, and there are none" in told
    assert "data.val_fraction=0.1" in told


def labelled(folder: Path) -> Path:
    lines = ["path,label"]
    for number in range(48):
        Image.new("RGB", (32, 32), (number * 5, 0, 0)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{number // 4}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["search=default"], "has nothing to search"),
        (["search=circl"], "search has no 'circl'. Did you mean search=circle"),
        (["search=circle", "loss=triplet"], "rests upon loss=circle. Drop one of them"),
        (["search=circle", "loss.margin=0.3"], "is searched. Drop it, or take it out"),
        (["search=circle", "search.space.loss.margin={low:0.2,high:1.5}"], "must lie in (0, 1)"),
        (["search=circle", "search.space.loss.margn={low:0.2,high:0.5}"], "no option 'margn'"),
        (["search=circle", "search.space.loss.a.b={low:0.2,high:0.5}"], "has no option 'a'"),
        (["search=circle", "search.space.loss.margin=low:0.2"], "in quotes"),
        (["search=circle", "search.trials=0"], "must be at least 1"),
        (["search=circle", "search.sampler=best"], "must be one of tpe, random, grid"),
        (["search=circle", "search.sampler=grid"], "finitely many points"),
        (["search=circle", "ckpt_path=last"], "finds the checkpoints of its trials"),
        (["search=circle", "selection.metric=recall@3"], "is not among evaluation.metrics"),
        (["search=circle", "trainer.devices=2"], "a trial is one process"),
    ],
)
def test_wrong_searches_are_refused(words, told, cache, tmp_path):
    words = [*words, "data=digits", f"data.root={cache}"]
    assert told in problem(*words, f"run_dir={tmp_path / 'search'}")
    assert not (tmp_path / "search").exists()


def test_slurm_is_told_how_many_trials_at_a_time(cache):
    """All at once would be a random search under another name."""
    with pytest.raises(ConfigurationError, match=r"launcher\.n_jobs=4"):
        sweep.run(["search=circle", "launcher=submitit", f"data.root={cache}"])


# --- going on


def test_a_search_ends_with_its_best_and_how_to_train_it(cache, tmp_path, caplog, capsys, plotted):
    folder = tmp_path / "search"
    words = [*tiny(cache), "search=circle", "search.trials=6", f"run_dir={folder}"]
    words.append("search.space.loss.scale=null")
    assert sweep.run(words, pretended) == 0
    with (folder / search.TABLE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    best = max(rows, key=lambda row: float(row["val/recall@1"]))
    told = next(r.getMessage() for r in caplog.records if r.getMessage().startswith("Best"))
    assert f"Best: trial {best['trial']}" in told
    command = shlex.split(told.splitlines()[1])
    typed = [word for word in command if "=" in word]
    assert f"loss.margin={best['loss.margin']}" in typed
    assert "loss=circle" in typed
    composed, _ = cli.checked(typed)  # the command is one that runs
    assert composed.config.optimizer.lr == float(best["optimizer.lr"])
    with Image.open(folder / search.PLOT) as picture:
        assert picture.width > 500
    assert "validation classes" in capsys.readouterr().out


def test_a_stopped_search_goes_on_as_one_that_was_not(cache, tmp_path):
    """The same trials in the same order, whenever it was stopped, and with as many more as wanted."""
    words = [*tiny(cache), "search=circle", "search.space.loss.scale=null"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert sweep.run([*words, "search.trials=6", f"run_dir={whole}"], pretended) == 0

    def killed(jobs, processes, folder):
        for each in jobs:
            if values_of(each)["run_dir"].endswith("trial0005"):
                raise KeyboardInterrupt  # as SIGKILL would, within the trial
            yield next(pretended([each], processes, folder))

    with pytest.raises(KeyboardInterrupt):
        sweep.run([*words, "search.trials=5", f"run_dir={broken}"], killed)
    assert trials(broken)[4].state == TrialState.RUNNING
    assert sweep.run([*words, "search.trials=6", f"run_dir={broken}"], pretended) == 0
    one, other = ([(t.params, t.value) for t in trials(folder)] for folder in (whole, broken))
    assert one == other
    assert len(one) == 6


def test_a_trial_that_ended_while_the_search_was_gone_is_not_repeated(cache, tmp_path):
    words = [*tiny(cache), "search=circle", "search.trials=2", "search.space.loss.scale=null"]
    words.append(f"run_dir={tmp_path / 'search'}")

    def killed(jobs, processes, folder):
        for each in jobs:
            next(pretended([each], processes, folder))
            raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        sweep.run(words, killed)
    begun = []

    def counted(jobs, processes, folder):
        for each in jobs:
            begun.append(each.name)
            yield next(pretended([each], processes, folder))

    assert sweep.run(words, counted) == 0
    assert begun == ["2"]


def test_a_failing_trial_is_told_and_the_others_go_on(cache, tmp_path):
    words = [*tiny(cache), "search=circle", "search.trials=3", "search.space.loss.scale=null"]
    words.append(f"run_dir={tmp_path / 'search'}")

    def failing(jobs, processes, folder):
        for each in jobs:
            if each.name == "2":
                Path(each.directory).mkdir()
                yield each, 1
            else:
                yield next(pretended([each], processes, folder))

    assert sweep.run(words, failing) == 0
    states = [t.state.name for t in trials(tmp_path / "search")]
    assert states == ["COMPLETE", "FAIL", "COMPLETE"]


def test_a_killed_trial_is_taken_up_by_the_same_command(cache, tmp_path, caplog):
    """Memory that another program took says nothing of the options."""
    words = [*tiny(cache), "search=circle", "search.trials=3", "search.space.loss.scale=null"]
    words.append(f"run_dir={tmp_path / 'search'}")

    def killed(jobs, processes, folder):
        for each in jobs:
            if each.name == "2":
                Path(each.directory).mkdir()
                yield each, -signal.SIGKILL
            else:
                yield next(pretended([each], processes, folder))

    assert sweep.run(words, killed) == 1
    assert "1 of the trials were killed" in caplog.text
    before = trials(tmp_path / "search")
    assert sweep.run(words, pretended) == 0
    after = trials(tmp_path / "search")
    assert [t.state.name for t in after] == ["COMPLETE"] * 3
    assert [t.params for t in after] == [t.params for t in before]


def test_no_trial_came_to_its_end(cache, tmp_path):
    def failing(jobs, processes, folder):
        for each in jobs:
            Path(each.directory).mkdir()
            yield each, 1

    words = [*tiny(cache), "search=circle", "search.trials=2", f"run_dir={tmp_path / 'search'}"]
    with pytest.raises(RunError, match="no trial"):
        sweep.run(words, failing)


def test_another_search_in_the_same_directory_is_refused(cache, tmp_path):
    words = [*tiny(cache), "search=circle", "search.trials=2", f"run_dir={tmp_path / 'search'}"]
    assert sweep.run(words, pretended) == 0
    told = problem(*words, "search.space.loss.margin={low:0.2,high:0.4}")
    assert "holds a search with other words" in told


def test_a_grid_tries_every_point_once(cache, tmp_path):
    words = [
        *tiny(cache),
        *("search=circle", "search.space.loss.scale=null", "search.sampler=grid"),
        "search.space.loss.margin={low:0.2,high:0.4,step:0.1}",
        "search.space.optimizer.lr={choices:[0.001,0.01]}",
        f"run_dir={tmp_path / 'search'}",
    ]
    assert sweep.run(words, pretended) == 0
    found = [tuple(trial.params.values()) for trial in trials(tmp_path / "search")]
    assert len(found) == len(set(found)) == 6


# --- within a trial


def test_a_trial_sees_no_test_class(cache, tmp_path, monkeypatch):
    """Neither in training nor in its measure: the digits' three test classes are not loaded."""
    loaded = []

    def watched(loader):
        def load(images, *args, **kwargs):
            loaded.append(images.num_classes)
            return loader(images, *args, **kwargs)

        return load

    def refuse(*args, **kwargs):
        raise AssertionError("a trial opened the test classes")

    monkeypatch.setattr(run, "eval_loader", watched(run.eval_loader))
    monkeypatch.setattr(measure, "eval_loader", watched(measure.eval_loader))
    monkeypatch.setattr(run, "final_evaluation", refuse)

    def here(jobs, processes, folder):
        for each in jobs:
            yield each, cli.exit_code(lambda _, each=each: job.run(each), [])

    folder = tmp_path / "search"
    words = [*tiny(cache), "search=circle", "search.trials=2", f"run_dir={folder}"]
    assert sweep.run(words, here) == 0
    assert set(loaded) == {2}  # the validation classes
    for name in ("trial0001", "trial0002"):
        assert not (folder / name / record.FILE).exists()
        result = json.loads((folder / name / search.RESULT).read_text())
        curve = [row for row in read(folder / name / "metrics.csv") if row["val/recall@1"]]
        assert result["metrics"]["recall@1"] == pytest.approx(
            max(float(row["val/recall@1"]) for row in curve), abs=1e-6
        )
    reported = [trial.intermediate_values for trial in trials(folder)]
    assert [list(values) for values in reported] == [[1], [1]]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_trial_below_the_median_is_stopped(tmp_path):
    """After the trials and epochs that are let through, and not in its last epoch, which is over."""
    options = {"pruner": "median", "prune_after_trials": 2, "prune_after_epochs": 2}
    study = search.study_of(tmp_path, options)
    for value in (0.6, 0.7):
        trial = study.ask()
        for epoch in (1, 2, 3):
            trial.report(value, epoch)
        study.tell(trial, value)
    study.ask()
    pruning = Pruning(study, 2, "recall@1")
    seen = []
    for epoch, value in enumerate((0.1, 0.2, 0.3)):
        trainer = SimpleNamespace(
            callback_metrics={"val/recall@1": value},
            current_epoch=epoch,
            max_epochs=5,
            should_stop=False,
        )
        pruning.on_validation_end(trainer, None)  # type: ignore[arg-type]
        seen.append(trainer.should_stop)
    assert seen == [False, True, True]
    assert pruning.pruned
    trainer = SimpleNamespace(callback_metrics={}, current_epoch=3, max_epochs=5)
    with pytest.raises(RunError, match="no recall@1"):
        pruning.on_validation_end(trainer, None)  # type: ignore[arg-type]


def test_a_stopped_trial_counts_as_stopped(cache, tmp_path):
    def stopped(jobs, processes, folder):
        for each in jobs:
            result = {"metrics": {"recall@1": 0.1}, "pruned": each.name == "2", "epochs": 2}
            leave(each, {**result, "seconds": 1.0})
            yield each, 0

    words = [*tiny(cache), "search=circle", "search.trials=2", f"run_dir={tmp_path / 'search'}"]
    assert sweep.run(words, stopped) == 0
    assert [t.state.name for t in trials(tmp_path / "search")] == ["COMPLETE", "PRUNED"]


@pytest.mark.slow
def test_killed_within_a_trial_the_search_goes_on(cache, tmp_path):
    """The real thing: the trial that was running is resumed with the same options.

    By the launcher of several at a time; how a job of the other ends with its parent is in test_sweep.py.
    """
    folder = tmp_path / "search"
    words = [
        *(sys.executable, str(ROOT / "train.py"), *tiny(cache, "trainer.max_epochs=6")),
        *("search=circle", "search.trials=2", f"run_dir={folder}", "launcher=joblib"),
    ]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = folder / "trial0001" / "log.txt"
    deadline = time.monotonic() + 600
    while not (log.exists() and "epoch 2/6" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = trials(folder)[0].params
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = trials(folder)
    assert [t.state for t in found if t.state == TrialState.FAIL] == []
    assert len(found) == 2
    assert found[0].params == before
    assert list(found[0].intermediate_values) == [1, 2, 3, 4, 5, 6]
    assert "Resuming" in log.read_text()
