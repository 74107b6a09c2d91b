"""The tables say what the records say: no number of their own, no verdict but by the rule, never stale."""

import csv
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_records import BIRDS, COMMIT, KFOLD, ZERO, made, of_folds, saved, untrained
from scipy import stats

from dml import experiments, record
from dml.errors import RunError
from dml.report import claims, command, plots, records, results, write
from dml.report.claims import Listed
from dml.report.records import IN_HISTORY, SOURCE, Evidence

ROOT = Path(__file__).resolve().parents[2]
CLAIM = {
    "metric": "recall@1",
    "published": 65.0,
    "source": "a paper, table 2",
    "tolerance": 1.0,
    "seeds": 3,
    "selected_on": "test_max",
    "known_differences": ["other crops"],
    "models": "single",
    "others": {"map@r": 30.0},
    "concatenated": {},
}


def evidence(content, experiment=BIRDS) -> Evidence:
    content = content | {SOURCE: content["sha256"], IN_HISTORY: True}
    return Evidence(experiment, records.name_of(content), record.sealed(content))


def claimed(*recalls, **changes):
    """The rows of a claim with these runs."""
    own = [evidence(made(seed=seed, recall=recall)) for seed, recall in enumerate(recalls)]
    (section,) = results.sections([Listed(BIRDS, CLAIM | changes, "python train.py")], own)
    return section


@pytest.mark.parametrize(
    ("recalls", "verdict"),
    [
        ((), "not run"),
        ((0.65, 0.64, 0.66), "reproduced"),
        ((0.659, 0.659, 0.6599), "reproduced"),
        ((0.641, 0.641, 0.6401), "reproduced"),
        ((0.67, 0.66, 0.661), "above"),
        ((0.60, 0.61, 0.62), "below"),
        ((0.60, 0.61), "below (2 of 3 seeds)"),
        ((0.65,), "reproduced (1 of 3 seeds)"),
    ],
)
def test_the_verdict_follows_the_rule(recalls, verdict):
    assert claimed(*recalls).rows[0].verdict == verdict


def test_mean_sd_and_interval_are_students():
    """Against scipy's own interval of the mean."""
    values = [61.0, 63.5, 62.2]
    row = claimed(*(value / 100 for value in values)).rows[0]
    error = stats.sem(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=error)
    assert row.ours is not None
    assert (row.ours.mean, row.ours.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert (row.ours.low, row.ours.high) == pytest.approx((low, high))
    assert row.difference == pytest.approx(np.mean(values) - 65.0)


def test_one_seed_has_no_interval():
    row = claimed(0.65).rows[0]
    assert row.ours is not None
    assert (row.ours.sd, row.ours.low) == (None, None)
    assert "| 65.00 |  | 1 |  | +0.00 |" in write.claim_table([row])


def test_further_numbers_of_a_claim_have_no_verdict_and_wait_for_a_record():
    assert [row.metric for row in claimed().claims] == ["recall@1"]
    main, other = claimed(0.65).claims
    assert (main.main, other.main, other.metric, other.verdict) == (True, False, "map@r", "")
    assert other.difference == pytest.approx(100 * 0.65 / 2 - 30.0)


def test_folds_are_averaged_before_seeds():
    """One seed's four folds are one result; a seed that lacks a fold is none, and the table says so."""
    runs = {
        (seed, fold): made(KFOLD, seed=seed, recall=0.1 * (fold + 1) + seed / 100)
        | {"config": config_with_fold(seed, fold)}
        for seed in range(3)
        for fold in range(4)
    }
    del runs[2, 3]
    own = [evidence(content, KFOLD) for content in runs.values()]
    listed = Listed(KFOLD, CLAIM | {"models": "separated", "metric": "recall@1"}, "command")
    (section,) = results.sections([listed], own)
    row = section.rows[0]
    assert row.ours is not None
    assert row.ours.n == 2
    assert row.ours.mean == pytest.approx(np.mean([25.0, 26.0]))
    assert "not all folds of every seed are here; seeds without all are left out" in section.notes


def config_with_fold(seed, fold):
    config = made(KFOLD, seed=seed)["config"]
    config["data"]["fold"] = fold
    return config


def test_concatenated_folds_are_a_result_of_their_own():
    runs = {f"f{fold}": made(KFOLD, **{"config.data.fold": fold}) for fold in range(4)}
    own = [evidence(content, KFOLD) for content in runs.values()]
    together = of_folds(runs, recall=0.7) | {"experiment": KFOLD, "seed": 0}
    own.append(evidence(together, KFOLD))
    claim = CLAIM | {"models": "separated", "others": {}, "concatenated": {"recall@1": 71.0}}
    (section,) = results.sections([Listed(KFOLD, claim, "command")], own)
    main, concatenated = section.rows
    assert main.ours is not None
    assert concatenated.ours is not None
    assert (main.models, main.ours.mean) == ("separated", pytest.approx(65.0))
    assert (concatenated.models, concatenated.ours.mean) == ("concatenated", pytest.approx(70.0))
    assert concatenated.difference == pytest.approx(-1.0)


def test_the_peer_stands_beside_ours_with_welchs_interval():
    ours, theirs = [0.64, 0.65, 0.67], [0.60, 0.62, 0.61]
    own = [evidence(made(seed=seed, recall=recall)) for seed, recall in enumerate(ours)]
    rows = [{"recall@1": str(r), "map@r": str(r / 2), "dirty": "True"} for r in theirs]
    peer = {BIRDS: results.Peer(rows)}
    (section,) = results.sections([Listed(BIRDS, None, "command")], own, peer)
    row = section.rows[0]
    assert row.peer is not None
    assert row.against_peer is not None
    assert row.peer.mean == pytest.approx(61.0)
    test = stats.ttest_ind(np.multiply(ours, 100), np.multiply(theirs, 100), equal_var=False)
    interval = test.confidence_interval(0.95)
    assert (row.against_peer.low, row.against_peer.high) == pytest.approx(tuple(interval))
    assert row.frozen == pytest.approx(61.42)
    assert row.untrained is not None
    assert row.untrained.mean == pytest.approx(55.0)
    assert "3 of the peer's runs had changes in the tree that are in no commit" in section.notes


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("circle,0,0.6,0.2\ncircle,0,0.6,0.2", "two rows of loss=circle, seed=0"),
        ("circle,0,60.1,0.2", "a row lacks loss, seed or recall@1 or map@r"),
        ("circle,0,,0.2", "a row lacks"),
    ],
)
def test_a_peers_table_that_is_no_table_is_refused(tmp_path, rows, message):
    folder = tmp_path / "experiments" / "peer"
    folder.mkdir(parents=True)
    (folder / "birds100.csv").write_text(f"loss,seed,recall@1,map@r\n{rows}\n")
    with pytest.raises(RunError, match=message):
        results.peers(tmp_path)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A checkout with records, a peer's table and a README with its markers; nothing is built."""
    tmp_path = tmp_path_factory.mktemp("checkout")
    root = tmp_path / "root"
    root.mkdir()
    (root / "README.md").write_text("# Head\n\n<!-- results -->\n<!-- /results -->\n\nFoot\n")
    runs = [saved(made(seed=s, recall=0.61 + s / 64), tmp_path / f"r{s}") for s in range(3)]
    runs.append(saved(untrained(), tmp_path / "evaluation_cub200_test.json"))
    records.add(runs, root)
    peer = root / "experiments" / "peer" / "birds100.csv"
    peer.parent.mkdir()
    peer.write_text(
        "loss,seed,recall@1,map@r,dirty\ncircle,0,0.6,0.2,False\ncircle,1,0.61,0.2,False\n"
    )
    return root


@pytest.fixture(scope="module")
def first_built(first, tmp_path_factory):
    """The same with everything that dml-report makes; drawn once."""
    folder = copied(first, tmp_path_factory.mktemp("built"))
    build(folder)
    return folder


@pytest.fixture
def root(first, tmp_path):
    return copied(first, tmp_path)


@pytest.fixture
def built(first_built, tmp_path):
    return copied(first_built, tmp_path)


def copied(root, folder):
    return Path(shutil.copytree(root, folder / "root"))


def build(root):
    return command.run([f"root={root}"])


def check(root) -> str:
    """What check=true says against it; "" if nothing."""
    try:
        assert command.run([f"root={root}", "check=true"]) == 0
    except RunError as error:
        return str(error)
    return ""


def test_what_is_built_is_current_and_built_the_same_again(root):
    assert "experiments/RESULTS.md, of the records" in check(root)
    build(root)
    assert check(root) == ""
    made_files = [p for p in root.rglob("*") if p.is_file()]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in made_files}
    build(root)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in before} == before
    for path in (root / "experiments" / "plots").iterdir():
        path.unlink()
    build(root)
    assert {p: p.read_bytes() for p in before} == {p: kept for p, (_, kept) in before.items()}


def test_every_number_in_the_tables_comes_from_a_record(built, tmp_path):
    """Other records, other numbers: nothing of the first set is left, and no number stands without one."""
    text = (built / "experiments" / "RESULTS.md").read_text()
    (line,) = [r for r in text.splitlines() if r.startswith(f"| {BIRDS} |") and "62.56" in r]
    numbers = [100 * (0.61 + seed / 64) for seed in range(3)]
    spread = np.std(numbers, ddof=1)
    assert f"| 61.42 | 55.00 | {np.mean(numbers):.2f} | {spread:.2f} | 3 |" in line
    assert f"| 3.0 | cpu | `{COMMIT[:7]}` |" in line
    (zero,) = [row for row in text.splitlines() if row.startswith(f"| {ZERO} |")]
    published = experiments.experiment(ZERO).claim["published"]  # type: ignore[index]
    assert f"| {published:.2f} | last | 70.00 |  | 1 |  | {70 - published:+.2f} |" in zero
    others = [saved(made(seed=s, recall=0.2), tmp_path / f"n{s}") for s in range(3)]
    records.add(others, built, replace=True)
    assert f"-{line}" in check(built)
    build(built)
    again = (built / "experiments" / "RESULTS.md").read_text()
    for text in (again, (built / "README.md").read_text()):
        assert "62.56" not in text
        assert "20.00" in text
    for path in (built / "experiments" / "records").rglob("*.json"):
        path.unlink()
    (built / "experiments" / "peer" / "birds100.csv").unlink()
    build(built)
    empty = (built / "experiments" / "RESULTS.md").read_text()
    for row in empty.splitlines():
        if row.startswith(("| birds100", "| zero", "| revisiting", "| reality", "| circle")):
            assert "not run" in row
    assert list((built / "experiments" / "plots").iterdir()) == []
    rows = list(csv.DictReader(io.StringIO((built / "experiments" / "results.csv").read_text())))
    known = {"experiment", "family", "metric", "models", "published", "tolerance", "verdict"}
    known |= {"published_epoch", "source", "command"}
    assert {value for row in rows for key, value in row.items() if key not in known} == {""}


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("experiments/RESULTS.md", "62.56", "65.56", "-| birds100_circle |"),
        (
            "experiments/results.csv",
            "62.5625",
            "72.5625",
            "-birds100_circle,birds100,recall@1,single,",
        ),
        ("README.md", "62.56", "72.56", "-| circle |"),
        ("experiments/plots/birds100_recall_at_1.svg", "circle", "circles", "was changed by hand"),
    ],
)
def test_a_number_changed_by_hand_is_found(built, name, old, new, said):
    path = built / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    found = check(built)
    assert found.startswith("not as the records say; dml-report makes them anew.")
    assert name in found
    assert said in found
    build(built)
    assert path.read_text() == text


def test_a_plot_of_other_points_is_stale_and_one_of_none_is_removed(built):
    folder = built / "experiments" / "plots"
    plot = (folder / "birds100_map_at_r.svg").read_text()
    (folder / "birds100_recall_at_1.svg").write_text(plot)
    (folder / "old.svg").write_text(plot)
    said = check(built)
    assert (
        "experiments/plots/birds100_recall_at_1.svg shows other data, or was changed by hand"
        in said
    )
    assert "experiments/plots/old.svg shows what no record says" in said
    (folder / "published.svg").unlink()
    assert "experiments/plots/published.svg is not there" in check(built)
    build(built)
    assert check(built) == ""


def test_a_plots_data_decide_and_not_the_version_of_matplotlib(built, monkeypatch):
    """A check elsewhere draws nothing: it compares points."""
    monkeypatch.setattr(plots, "draw", None)
    assert check(built) == ""


def test_what_stands_around_the_readmes_block_stays(built):
    text = (built / "README.md").read_text()
    assert text.startswith("# Head\n\n<!-- results -->\n| birds100 | ")
    assert text.endswith("<!-- /results -->\n\nFoot\n")
    aims = sum(one.claim is not None for one in claims.listed())
    assert f"Of {aims} published numbers that are aimed at: " in text
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (built / target).exists()


def test_a_readme_without_a_place_says_so_loudly(root, caplog):
    (root / "README.md").write_text("# Head\n")
    build(root)
    assert check(root) == ""
    assert "NOT CHECKED: README.md has no place for the results" in caplog.text
    assert (root / "README.md").read_text() == "# Head\n"


def test_bad_evidence_makes_no_tables(built):
    path = built / "experiments" / "records" / BIRDS / "seed0.json"
    path.write_text(path.read_text().replace("0.61,", "0.91,"))
    before = (built / "experiments" / "RESULTS.md").read_text()
    said = f"experiments/records/{BIRDS}/seed0.json: was changed after it was written"
    assert said in check(built)
    with pytest.raises(RunError, match="nothing was written"):
        build(built)
    assert (built / "experiments" / "RESULTS.md").read_text() == before


def test_claims_are_read_as_they_compose():
    """The quick way to a claim is the same as Hydra's, bases and `claim: null` included."""
    names = ("birds100_circle", "circle_cars196", KFOLD, "revisiting_arcface_sop", ZERO)
    for name in (*names, "zero_resnet50_cub200"):
        assert claims.claim_of(name) == experiments.experiment(name).claim, name


def test_every_experiment_says_how_to_run_it():
    for one in claims.listed():
        assert f"experiment={one.name}" in one.command


def test_this_repository_is_as_its_records_say():
    """As CI asks, in a process of its own: stale tables or bad evidence fail here; torch is not imported."""
    code = (
        "import sys; from dml import cli; from dml.report import command; cli.set_up_log()\n"
        "from dml.errors import RunError\n"
        "try: command.run(['check=true'])\n"
        "except RunError as error: raise SystemExit(str(error))\n"
        "print(sorted({'torch', 'matplotlib', 'timm', 'faiss'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
