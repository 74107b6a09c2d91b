"""Evidence: a record is taken in only if its number can stand in a table, and it stays what it was.

Each refusal has its message, which names the reason and the mend.
"""

import json
import subprocess

import pytest
from made_records import BIRDS, COMMIT, KFOLD, ZERO, made, of_folds, saved, untrained

from dml import record
from dml.errors import ConfigurationError, RunError
from dml.report import command, records


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def added(root, tmp_path, *contents, replace=False):
    runs = [saved(content, tmp_path / f"run{number}") for number, content in enumerate(contents)]
    return [one for _, one, _ in records.add(runs, root, replace=replace)]


def refusal(root, run, **options) -> str:
    before = sorted(root.rglob("*.json"))
    with pytest.raises(RunError) as caught:
        records.add([run], root, **options)
    assert sorted(root.rglob("*.json")) == before, "something was added all the same"
    head, *lines = str(caught.value).splitlines()
    assert head == "nothing was added."
    return "\n".join(line.strip() for line in lines).replace(f"{run}: ", "").replace(f"{run} ", "")


def test_a_record_is_taken_in_without_the_places_of_its_machine(root, tmp_path):
    content = made()
    (one,) = added(root, tmp_path, content)
    path = root / "experiments" / "records" / BIRDS / "seed0.json"
    kept = record.read_json(path)
    assert kept == one.record
    assert record.seal_problem(kept) is None
    assert kept["source_sha256"] == content["sha256"] != kept["sha256"]
    assert kept["metrics"] == content["metrics"]
    assert kept["config"]["data"]["root"] == "<data.root>"
    assert kept["config"]["backbone"]["weights"] == "<backbone.weights>"
    assert kept["overrides"][1] == "data.root=<data.root>"
    assert "'backbone.weights=<backbone.weights>'" in kept["command"]
    assert "/tmp" not in path.read_text()
    assert "/home" not in path.read_text()
    assert records.check(records.load(root)[0]) == []


def test_the_same_run_again_changes_nothing(root, tmp_path, caplog):
    run = saved(made(), tmp_path / "run")
    assert command.run([f"add={run}", f"root={root}"]) == 0
    path = root / "experiments" / "records" / BIRDS / "seed0.json"
    before = path.stat().st_mtime_ns
    assert command.run([f"add={run}", f"root={root}"]) == 0
    assert f"{run} is there already: experiments/records/{BIRDS}/seed0.json" in caplog.text
    assert path.stat().st_mtime_ns == before


REFUSED = {
    "dirty": (
        {"code.dirty": True},
        "its code had changes that are in no commit (on 175d9cd). Commit them, and run it again.",
    ),
    "no commit": (
        {"code.commit": None, "code.dirty": None},
        "its code has no commit: it ran outside a git checkout. Run it again in a clone.",
    ),
    "changed pin": (
        {"config.loss.margin": 0.9},
        "pinned loss.margin=0.9 is not the experiment's today (0.4). Run experiment=birds100_circle again.",
    ),
    "unpinned": (
        {"config.unpin": True},
        "was run with unpin=true, which gave its experiment up. Run it again without.",
    ),
    "no experiment": (
        {"config.experiment": None},
        "is of no experiment. Run it again by experiment=NAME (configs/experiment).",
    ),
    "experiment that is gone": (
        {"config.experiment": "birds100_gone"},
        "there is no configs/experiment/birds100_gone.yaml. ",
    ),
    "chosen on test": (
        {"checkpoint.rule": "best test/recall@1"},
        "its checkpoint was chosen by 'best test/recall@1'. Only the last epoch or validation classes may "
        "choose: selection.rule=last or best.",
    ),
    "images left out": (
        {"data.unreadable": {"a.jpg": "truncated"}},
        "1 images could not be read: it is a result on other data. Mend them, and run it again.",
    ),
    "claim without source": (
        {"config.claim": {"metric": "recall@1", "published": 83.4, "source": " "}},
        "claims a published number without its source. Name it in claim.source of "
        "configs/experiment/birds100_circle.yaml, and run it again.",
    ),
    "claim of what was not measured": (
        {"config.claim": {"metric": "recall@16", "published": 83.4, "source": "a paper"}},
        "claims recall@16, which it did not measure.",
    ),
    "path of a machine": (
        {"config.data.labels": "/tmp/elsewhere/labels.csv"},
        "config.data.labels holds /tmp/elsewhere/labels.csv, a path of the machine it ran on. Give it "
        "relative to data.root or to the run, and run it again.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(root, tmp_path, name):
    changes, message = REFUSED[name]
    said = refusal(root, saved(made(**changes), tmp_path / "run"))
    assert said.startswith(message) if message.endswith(" ") else said == message


def test_a_record_without_a_seed_is_refused(root, tmp_path):
    content = made()
    del content["seed"]
    run = saved(record.sealed(content), tmp_path / "run")
    assert refusal(root, run) == f"{run / 'record.json'} is not a record: seed is missing"


def test_a_record_edited_by_hand_is_refused(root, tmp_path):
    run = saved(made(recall=0.65), tmp_path / "run")
    path = run / "record.json"
    path.write_text(path.read_text().replace("0.65", "0.75"))
    said = "was changed after it was written: its sha256 is that of other content."
    assert refusal(root, run) == f"{path} {said} Copy it from where it is whole, or run it again."


def test_a_second_record_of_one_seed_is_refused_unless_it_is_to_replace(root, tmp_path):
    added(root, tmp_path, made(recall=0.65))
    other = saved(made(recall=0.66), tmp_path / "other")
    assert refusal(root, other) == (
        f"experiments/records/{BIRDS}/seed0.json is another run of the same seed. A seed has one record: "
        "add replace=true if this one is to take its place."
    )
    records.add([other], root, replace=True)
    (one,), _ = records.load(root)
    assert one.metrics["recall@1"] == 0.66


def test_two_runs_of_one_seed_cannot_be_added_together(root, tmp_path):
    runs = [saved(made(recall=r), tmp_path / str(r)) for r in (0.1, 0.2)]
    with pytest.raises(RunError, match="another run of the same seed"):
        records.add(runs, root, replace=True)
    assert not (root / "experiments").exists()


@pytest.mark.parametrize("entry", ["data.fingerprint", "weights.sha256"])
def test_foreign_data_and_weights_are_refused(root, tmp_path, entry):
    """A mean over runs on different images is the mean of nothing."""
    added(root, tmp_path, made(seed=0))
    word = entry.split(".")[0]
    run = saved(made(seed=1, **{entry: "de" * 32}), tmp_path / "foreign")
    said = refusal(root, run)
    assert said.startswith(
        f"foreign {word}: its {entry} is dededededede..., that of {BIRDS}/seed0.json"
    )
    assert said.endswith(f"An experiment's records share their {word}.")


def test_one_bad_run_of_several_keeps_all_out(root, tmp_path):
    good = saved(made(seed=0), tmp_path / "good")
    bad = saved(made(seed=1, **{"code.dirty": True}), tmp_path / "bad")
    with pytest.raises(RunError, match="changes that are in no commit"):
        records.add([good, bad], root)
    assert not (root / "experiments").exists()


def test_a_commit_of_elsewhere_is_allowed_and_shown(root, tmp_path, caplog):
    def git(*words):
        subprocess.run(["git", *words], cwd=root, check=True, capture_output=True)

    git("init", "-q")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    git(*identity, "commit", "-q", "--allow-empty", "-m", "begin")
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, check=True, capture_output=True, text=True
    )
    own = saved(made(seed=1, **{"code.commit": done.stdout.strip()}), tmp_path / "own")
    foreign = saved(made(seed=0), tmp_path / "foreign")
    command.run([f"add=[{own},{foreign}]", f"root={root}"])
    found = {one.name: one.record["commit_in_history"] for one in records.load(root)[0]}
    assert found == {"seed0": False, "seed1": True}
    assert caplog.text.count("is not in the history of this checkout") == 1
    assert f"Its commit {COMMIT} is not in the history" in caplog.text


def test_folds_and_their_concatenation(root, tmp_path):
    runs = {str(tmp_path / f"f{fold}"): fold_run(fold) for fold in range(4)}
    together = of_folds(runs)
    file = saved(together, tmp_path / "evaluation_cub200_test.json")
    assert "an evaluation of runs that are no evidence: " in refusal(root, file)
    for name, content in runs.items():
        saved(content, tmp_path / name)
    records.add([*(tmp_path / name for name in runs), file], root)
    found = {one.name: one for one in records.load(root)[0]}
    assert sorted(found) == [*(f"seed0_fold{fold}" for fold in range(4)), "seed0_folds"]
    assert list(found["seed0_folds"].record["runs"]) == [f"seed0_fold{f}" for f in range(4)]
    assert records.check(list(found.values())) == []
    # Another run in place of a fold: the concatenation is no longer of these runs.
    other = saved(fold_run(2, recall=0.3), tmp_path / "again")
    records.add([other], root, replace=True)
    assert records.check(records.load(root)[0]) == [
        f"{KFOLD}/seed0_folds.json: its part seed0_fold2 is not the record that is here."
    ]


def fold_run(fold, **more):
    changes = {"config.data.fold": fold, "data.fingerprint": f"{fold}0" * 32}
    changes["checkpoint.rule"] = "best val/map@r"
    return made(KFOLD, **changes, **more)


def test_a_concatenation_of_some_folds_is_refused(root, tmp_path):
    runs = {str(tmp_path / f"f{fold}"): fold_run(fold) for fold in range(3)}
    for name, content in runs.items():
        saved(content, tmp_path / name)
    records.add([tmp_path / name for name in runs], root)
    file = saved(of_folds(runs), tmp_path / "three.json")
    assert refusal(root, file) == "it is of folds 0, 1, 2; the protocol has 4."


def test_an_encoder_as_it_comes(root, tmp_path):
    file = saved(untrained(), tmp_path / "evaluation_cub200_test.json")
    ((_, one, _),) = records.add([file], root)
    assert one.file == f"{ZERO}/untrained.json"
    assert one.metrics["recall@1"] == 0.7
    assert "/tmp" not in json.dumps(one.record)
    assert records.check([one]) == []
    validation = saved(untrained(split="val"), tmp_path / "val.json")
    said = refusal(root, validation, replace=True)
    assert said == "it is of split=val, not of the test classes."


def test_an_edited_evaluation_is_refused(root, tmp_path):
    file = saved(untrained() | {"split": "all"}, tmp_path / "evaluation.json")
    assert "was changed after it was written" in refusal(root, file)


def test_evidence_that_was_touched_is_found(root, tmp_path):
    """What lies in experiments/records is proven at every check, not only when it is added."""
    one, two = added(root, tmp_path, made(seed=0), made(seed=1))
    folder = root / "experiments" / "records"
    path = folder / one.file
    path.write_text(path.read_text().replace("0.65", "0.95"))
    (folder / BIRDS / "seed3.json").write_bytes((folder / two.file).read_bytes())
    (folder / "notes.txt").write_text("0.99")
    (folder / BIRDS / "seed4.json").write_text("{")
    evidence, wrong = records.load(root)
    said = "\n".join(wrong + records.check(evidence))
    assert f"{one.file}: was changed after it was written" in said
    assert f"{BIRDS}/seed3.json: is the record of seed1. Rename it, or add the run again." in said
    assert f"{BIRDS}/seed3.json: is the same run as {two.file}. Remove one of them." in said
    assert "notes.txt is no record: experiments/records holds <experiment>/<name>.json." in said
    assert "seed4.json is no JSON" in said


def test_a_record_put_there_by_hand_is_found(root):
    saved(made(), root / "experiments" / "records" / BIRDS / "seed0.json")
    said = "\n".join(records.check(records.load(root)[0]))
    assert "was put here by hand. Add the run by dml-report add=RUN." in said
    assert "a path of the machine it ran on" in said


WORDS = {
    "ad=x": ("ad=x", "is no option of dml-report. Did you mean add?"),
    "add": ("add", "is no option of dml-report. "),
    "add=": ("add=", "has no value. See dml-report --help for add=..."),
    "check=yes": ("check=yes", "must be true or false: check=true."),
    "check=true add=x": ("check=true", "goes by itself, without add=..."),
    "add=x run=y": ("run=y", "add=... is asked for already."),
    "out=x": ("out=x", "belongs to run=... and sweep=... alone. Drop it."),
    "replace=true": ("replace=true", "belongs to add=... alone. Drop it."),
    "add=x data.root=y": ("data.root=y", "belongs to run=... alone. Drop it."),
    "run=nowhere": ("run=nowhere", "is no directory."),
    "root=nowhere": ("root=nowhere", "is no directory."),
}


@pytest.mark.parametrize("words", WORDS)
def test_wrong_words(words):
    where, what = WORDS[words]
    with pytest.raises(ConfigurationError) as caught:
        command.run(words.split())
    found = {problem.where: problem.what for problem in caught.value.problems}
    assert found[where].startswith(what)


def test_lists_and_patterns_of_runs(tmp_path):
    """A sweep's directories are called loss=circle, and a path may hold a comma."""
    for name in ("loss=a", "loss=b"):
        (tmp_path / name).mkdir()
    assert [p.name for p in command.several(f"{tmp_path}/loss=*")] == ["loss=a", "loss=b"]
    assert [str(p) for p in command.several("[x/loss=a, 'y,z']")] == ["x/loss=a", "y,z"]
    with pytest.raises(ConfigurationError, match="names nothing that is there"):
        command.several(f"{tmp_path}/none*")
