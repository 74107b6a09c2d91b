"""Experiments: every file composes and fits its data, claims nothing that was not read, and holds its pins.

The data are indexes with the published counts and no files behind them: labels, splits, super-classes and
roles are those that decide whether a file is legal.
"""

import functools
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from dml import build, cli, eval_request, experiments
from dml.config import check, compose, pins
from dml.data.index import ImageIndex
from dml.data.protocols import training_splits
from dml.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT.parent / "shared" / "reference" / "results.md"
CLAIMS = Path(__file__).with_name("claims.tsv")  # experiment, the row that its numbers were read in
# Images and classes: train, test (dml/data/sets; In-Shop's test images are queries and gallery).
COUNTS = {
    "cub200": ((5_864, 100), (5_924, 100)),
    "cars196": ((8_054, 98), (8_131, 98)),
    "sop": ((59_551, 11_318), (60_502, 11_316)),
    "inshop": ((25_882, 3_997), (26_830, 3_985)),
    "birds100": ((2_949, 50), (2_953, 50)),
}
# A file takes a quarter of a second; a sixth of them are in the default run, all in the slow one.
CHUNKS = [n if n < 2 else pytest.param(n, marks=pytest.mark.slow) for n in range(12)]
MADE: dict[tuple[str, ...], ImageIndex] = {}  # kept from test to test: SOP takes a moment


@pytest.fixture
def published(monkeypatch):
    """Data sets at their published counts, without a file."""

    def index(config) -> ImageIndex:
        data = OmegaConf.to_container(config.data)
        key = tuple(
            str(data.get(k)) for k in ("name", "protocol", "val_fraction", "fold", "halves")
        )
        if key not in MADE:
            MADE[key] = make_index(data)
        return MADE[key]

    monkeypatch.setattr(build, "index", index)


def make_index(data: dict) -> ImageIndex:
    (images, classes), (tested, test_classes) = COUNTS[data["name"]]
    labels = np.concatenate(
        [
            np.sort(np.arange(images) % classes),
            np.sort(np.arange(tested) % test_classes) + classes,
        ]
    )
    train, test = np.arange(images), np.arange(images, images + tested)
    if data.get("halves"):
        cut = np.searchsorted(labels, (classes + test_classes) // 2)
        train, test = np.arange(cut), np.arange(cut, len(labels))
    options = {k: data[k] for k in ("protocol", "val_fraction", "fold", "folds", "seed")}
    splits = {"train": train, "test": test} | training_splits(train, labels, **options)
    total = classes + test_classes
    return ImageIndex(
        name=data["name"],
        root=Path("nowhere"),
        paths=np.arange(len(labels)).astype(str),
        labels=labels,
        class_names=tuple(f"{label:05}" for label in range(total)),
        splits=splits,
        superclasses=labels % 12 if data["name"] == "sop" else None,
        queries=np.arange(len(labels)) % 2 == 0 if data["name"] == "inshop" else None,
    )


def needed(name: str, tmp_path: Path) -> list[str]:
    """What a command line must add to an experiment."""
    words = [f"experiment={name}", f"data.root={tmp_path}"]
    if name.startswith("birds100_"):
        weights = tmp_path / "weights.safetensors"
        weights.touch()
        words.append(f"backbone.weights={weights}")
    if name.startswith(("reality_check_", "birds100_kfold_")):
        words.append("data.fold=1")
    return words


@pytest.mark.parametrize("chunk", CHUNKS)
def test_every_file_composes_and_fits_its_data(chunk, published, tmp_path):
    """All that dml-train and dml-eval check before they begin."""
    wrong = {}
    for name in experiments.names()[chunk :: len(CHUNKS)]:
        words = needed(name, tmp_path)
        try:
            if name.startswith("zero_"):
                config = eval_request.checked(words).subjects[0].config
            else:
                composed, index = cli.checked(words)
                config = composed.config
                wrong |= wrong_epochs(name, len(build.sampler(config, index.part("train"))))
        except ConfigurationError as error:
            wrong[name] = str(error)
            continue
        if (config.experiment, bool(config.pins), config.unpin) != (name, True, False):
            wrong[name] = f"the configuration does not say what it is: {config.experiment}"
        sets = {key.split(".")[0] for key in pins.own_values(name, compose.config_dir())}
        chosen = pins.chosen_groups(name, compose.config_dir())
        if left := sets - chosen - {"selection", "evaluation"}:
            wrong[name] = f"sets values of {left} without choosing a file of these groups"
    assert not wrong


def wrong_epochs(name: str, batches: int) -> dict[str, str]:
    """A schedule counts steps; its comment says of how many batches the paper's epochs are made."""
    text = (compose.config_dir() / "experiment" / f"{name}.yaml").read_text()
    said = {int(number) for number in re.findall(r"epochs.* of (\d+) batches", text)}
    return {} if said <= {batches} else {name: f"epochs of {batches} batches, not {said}"}


def test_shared_bases_are_no_experiments():
    with pytest.raises(ConfigurationError, match="experiment has no 'base_revisiting'"):
        cli.checked(["experiment=base_revisiting"])


# ---------------------------------------------------------------- claims


@functools.cache
def claims() -> dict[str, dict]:
    """Every experiment's claim, as its file and those it builds on write it."""
    found = {}
    for name in experiments.names():
        claim: dict = {}
        for file in reversed(pins.chain(name, compose.config_dir())):
            own = OmegaConf.to_container(file).get("claim", {})
            claim = {} if own is None else {**claim, **own}
        if claim:
            found[name] = claim
    return found


def cited() -> dict[str, str]:
    return dict(line.split("\t") for line in CLAIMS.read_text().splitlines())


def read_numbers(row: str) -> set[float]:
    """The numbers of a table's row, without those that were not read in a source: [M]."""
    cells = [re.sub(r"\([^()]*\[M\][^()]*\)", "", cell) for cell in row.split("|")]
    text = " ".join(cell for cell in cells if "[M]" not in cell)
    return {float(number) for number in re.findall(r"\d*\.\d+|\d+", text)}


def test_numbers_that_nobody_read_are_no_numbers():
    """The guard itself: it must not take what is marked."""
    assert read_numbers("| x | 61.50 +- .17 | 66.45 [M] | 82.7 (82.8/92.9 [M]) |") == {
        61.5,
        0.17,
        82.7,
    }


def test_every_claim_was_read_in_a_row_of_its_source():
    rows = cited()
    assert rows.keys() == claims().keys()
    for name, claim in claims().items():
        values = [claim["published"], *claim.get("others", {}).values()]
        values += claim.get("concatenated", {}).values()
        have = read_numbers(rows[name])
        # open-metric-learning prints fractions
        missing = [v for v in values if float(v) not in have and round(v / 100, 3) not in have]
        assert not missing, f"{name}: {missing} not in {rows[name]}"
        assert claim["source"].strip(), name
        assert claim["tolerance"] > 0
        assert isinstance(claim["known_differences"], list)


def test_the_rows_are_those_of_the_reference():
    if not REFERENCE.is_file():
        pytest.skip("no results.md beside the repository: the rows of claims.tsv are not compared")
    lines = REFERENCE.read_text().splitlines()
    for name, row in cited().items():
        assert any(line.startswith(row) for line in lines), (name, row)


def test_own_differences_are_added_to_those_of_the_base():
    """A list replaces the base's, so that a file that forgot one would hide it."""
    for name in experiments.names():
        files = [OmegaConf.to_container(f) for f in pins.chain(name, compose.config_dir())]
        lists = [(f.get("claim") or {}).get("known_differences", []) for f in files]
        if lists[0]:
            assert set(lists[0]) >= {entry for more in lists[1:] for entry in more}, name


def test_experiments_of_one_loss_differ_in_what_the_paper_says():
    """Revisiting-DML has one setting for all data sets, but for a few values; no file may drift."""
    may = {"loss.arguments.n_bins", "loss.lr_scale", "regularizer.p_switch", "trainer.max_epochs"}
    losses = {name.rsplit("_", 1)[0] for name in experiments.names() if "revisiting_" in name}
    for loss in losses:
        values = []
        for data in ("cub200", "cars196", "sop"):
            if f"{loss}_{data}" in experiments.names():
                file, *_ = pins.chain(f"{loss}_{data}", compose.config_dir())
                kept = {k: v for k, v in OmegaConf.to_container(file).items() if k != "claim"}
                kept.pop("defaults")
                values.append({k: v for k, v in pins.dotted(kept).items() if k not in may})
        assert all(value == values[0] for value in values), loss


def test_birds100_claims_nothing():
    assert not [name for name in claims() if name.startswith("birds100_")]
    of_birds = [name for name in experiments.names() if name.startswith("birds100_")]
    assert len(of_birds) == 9 + 1  # the nine losses, and one of them over folds


# ---------------------------------------------------------------- pins

TRIPLET = "revisiting_triplet_cub200"


def problems(*words: str) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        cli.checked(list(words))
    return {problem.where: problem.what for problem in caught.value.problems}


MEND = "Drop it, or add unpin=true: the run then is not the experiment's and has no claim."


def test_every_changed_pin_is_named_with_both_values(published):
    typed = {
        "loss.margin=0.3": "pins loss, with loss.margin=0.2.",
        "trainer.max_epochs=2": "pins trainer, with trainer.max_epochs=150.",
        "head.dim=512": "pins head, with head.dim=128.",
        "augment=none": "pins augment=paper_revisiting.",
        "data=cars196": "pins data=cub200.",
        "evaluation.average=macro": "pins evaluation, with evaluation.average=micro.",
        "selection.metric=map@r": "pins selection, with selection.metric=recall@1.",
    }
    found = problems(f"experiment={TRIPLET}", *typed)
    for word, what in typed.items():
        assert found[word] == f"experiment={TRIPLET} {what}\n{MEND}"


def test_another_loss_is_refused(published):
    assert problems(f"experiment={TRIPLET}", "loss=circle") == {
        "loss=circle": f"experiment={TRIPLET} pins loss=triplet.\n{MEND}"
    }


def test_a_value_meant_for_one_loss_does_not_land_in_another(published):
    """Hydra would give circle the margin of the triplet loss, unpinned or not."""
    found = problems(f"experiment={TRIPLET}", "loss=circle", "unpin=true")
    assert found == {
        "loss=circle": f"experiment={TRIPLET} sets loss.average, loss.margin, loss.squared_distances, "
        "loss.variant for loss=triplet, which would land in loss=circle.\n"
        "Start without the experiment, or keep its choice."
    }


def test_what_decides_no_number_may_change(published, tmp_path):
    weights = tmp_path / "resnet50.safetensors"
    weights.touch()
    free = ["data.cache=resized", f"data.cache_dir={tmp_path}", "loader.num_workers=0", "seed=3"]
    free += ["trainer.accelerator=cpu", f"run_dir={tmp_path / 'run'}", "callbacks=forensics"]
    free += [f"backbone.weights={weights}", "backbone.pretrained=false", "logger=csv"]
    composed, _ = cli.checked([f"experiment={TRIPLET}", f"data.root={tmp_path}", *free])
    assert composed.config.claim.published == 62.87
    assert experiments.changed(build.plain(composed.config)) == {}


def test_random_weights_are_not_those_of_the_experiment(published):
    found = problems(f"experiment={TRIPLET}", "backbone.pretrained=false")
    assert found["backbone.pretrained=false"].startswith(
        f"experiment={TRIPLET} starts from pretrained weights, not from random ones.\n"
        "Give a file of the same weights: backbone.weights=FILE"
    )


def test_unpin_drops_the_claim(published):
    words = [f"experiment={TRIPLET}", "loss.margin=0.3", "unpin=true"]
    config = build.plain(cli.checked(words)[0].config)
    assert config["claim"] is None
    assert config["unpin"] is True
    assert config["experiment"] == TRIPLET
    assert config["loss"]["margin"] == 0.3
    assert experiments.changed(config)["loss.margin"] == (0.2, 0.3)


def test_the_claim_is_the_files_own(published):
    found = problems(f"experiment={TRIPLET}", "claim.published=99", "pins=[data]")
    what = "stands in the experiment's file and nowhere else."
    assert found == {"claim.published=99": what, "pins=[data]": what}


def test_unpin_is_an_experiments_option():
    found = problems("unpin=true")
    assert found == {"unpin=true": "of which experiment? Add experiment=..., or drop it."}


@pytest.mark.parametrize("source", ["", '  source: " "\n'])
def test_a_claim_without_its_source_is_refused(source, published, tmp_path, monkeypatch):
    """A number of which nobody can say where it was read is none to be compared with."""
    folder = tmp_path / "configs"
    shutil.copytree(compose.config_dir(), folder)
    file = folder / "experiment" / f"{TRIPLET}.yaml"
    file.write_text(re.sub(r"  source: .*\n", source, file.read_text()))
    monkeypatch.setattr(compose, "config_dir", lambda: folder)
    found = problems(f"experiment={TRIPLET}")
    assert list(found) == ["claim.source"]
    assert found["claim.source"].endswith(f"Mend it in configs/experiment/{TRIPLET}.yaml.")


def test_a_record_is_held_against_the_file_of_today(published, tmp_path, monkeypatch):
    config = build.plain(cli.checked([f"experiment={TRIPLET}"])[0].config)
    assert experiments.experiment(TRIPLET).values["loss.margin"] == 0.2
    assert experiments.experiment(TRIPLET).claim == config["claim"]
    older = {**config, "trainer": {k: v for k, v in config["trainer"].items() if k != "timeout"}}
    older["optimizer"] = {k: v for k, v in config["optimizer"].items() if k != "sam_rho"}
    assert experiments.changed(older) == {}
    other = {**config, "loss": {**config["loss"], "margin": 0.25}, "pins": ["data"]}
    other["claim"] = {**config["claim"], "published": 70.0}
    assert experiments.changed(other) == {
        "claim.published": (62.87, 70.0),
        "loss.margin": (0.2, 0.25),
        "pins": (config["pins"], ["data"]),
    }
    with pytest.raises(ConfigurationError, match="there is no configs/experiment/gone"):
        experiments.changed({**config, "experiment": "gone"})
    with pytest.raises(ConfigurationError, match="the run was of no experiment"):
        experiments.changed({**config, "experiment": None})


def test_who_chose_what_names_the_experiment_and_not_its_base(published):
    composed, _ = cli.checked(["experiment=reality_check_arcface_cub200", "data.fold=0"])
    by = {choice.group: (choice.option, choice.chosen_by) for choice in composed.choices}
    asked = "experiment=reality_check_arcface_cub200"
    assert by["sampler"] == ("class_balanced", asked)
    assert by["backbone"] == ("resnet50", asked)
    assert by["experiment"] == ("reality_check_arcface_cub200", "command line")
    assert by["logger"] == ("csv", "default")


def test_an_experiment_may_be_swept(published):
    jobs, _ = compose.expand([f"experiment={TRIPLET},circle_cars196", "seed=0,1"])
    assert [cli.checked(job)[0].config.experiment for job in jobs] == [TRIPLET] * 2 + [
        "circle_cars196"
    ] * 2


def test_evaluation_without_training_keeps_its_pins(published, tmp_path):
    words = ["experiment=zero_dino_vits16_cub200", f"data.root={tmp_path}"]
    assert eval_request.checked(words).subjects[0].config.claim.published == 70.8
    with pytest.raises(ConfigurationError) as caught:
        eval_request.checked([*words, "backbone.resize=224"])
    assert "pins backbone, with backbone.resize=256" in str(caught.value)
    assert eval_request.checked([*words, "backbone.resize=224", "unpin=true"])


def test_each_command_sends_the_others_experiments_there(published, tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        eval_request.checked([f"experiment={TRIPLET}", f"data.root={tmp_path}"])
    assert "trains an encoder. Train it: dml-train experiment=" in str(caught.value)
    zero = "experiment=zero_dino_vits16_cub200"
    told = f"trains nothing. Evaluate it: dml-eval {zero} data.root=DIR"
    assert problems(zero, f"data.root={tmp_path}") == {zero: told}


def test_checks_of_experiments_cover_every_group():
    """A group that decides numbers and is pinned nowhere would be a hole."""
    unpinned = {"callbacks", "loader", "logger"}
    every = set(check.GROUPS) - unpinned
    for name in ("base_birds100", "base_official", "base_revisiting", "base_reality_check"):
        file = OmegaConf.load(compose.config_dir() / "experiment" / f"{name}.yaml")
        assert set(file.pins) == every, name
