"""Every experiment trains two steps, or is evaluated, on a miniature of its data set in its own layout.

What a miniature cannot hold is overridden, unpinned: the encoder becomes the smallest of its family with
random weights, batches fit eight classes.  Loss, miner, regulariser, memory, optimizer, schedule,
augmentation and protocol are those of the file, and a record is written.
"""

import csv
import json
import sys
import time
from pathlib import Path

import pytest
import timm
from omegaconf import OmegaConf
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent / "data"))
import archives

from dml import cli, eval_command, experiments, record, run
from dml.config import compose, pins
from dml.data.sets import cars196, cub200, inshop, sop

pytestmark = pytest.mark.slow

SETS = {"cub200": cub200, "cars196": cars196, "sop": sop, "inshop": inshop}
FAMILIES = {"resnet50": "test_resnet", "vit": "test_vit", "deit": "test_vit"}
IMAGE = {"backbone.image_size": "32", "backbone.resize": "36"}


@pytest.fixture(scope="module", autouse=True)
def clock():
    """Says how long all of them took together (pytest -s shows it)."""
    begun = time.monotonic()
    yield
    print(f"\nexperiments on miniatures: {time.monotonic() - begun:.0f} s")


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory) -> dict[str, Path]:
    """data.root of each data set, and of a folder with a labels file for birds100."""
    folder = tmp_path_factory.mktemp("miniatures")
    roots = {name: archives.MAKERS[name](folder / name) for name in SETS}
    pictures, root = archives.Pictures(linked=False), folder / "birds100"
    rows = []
    for label in archives.labels_of([(33, 8), (26, 6)]):
        path = f"images/{label:02}/{len(rows)}.jpg"
        pictures.put(root / path, label)
        rows.append((path, label, f"bird {label}", "train" if label < 8 else "test"))
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("path", "label", "class_name", "split"), *rows])
    return roots | {"birds100": root}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, Path]:
    """Files of random weights, by timm's name."""
    folder, files = tmp_path_factory.mktemp("weights"), {}
    options = {
        "mobilenetv2_035": {"pad_type": "same", "bn_eps": 0.001},
        "test_vit": {"img_size": 32},
    }
    for name in ("test_resnet", "test_vit", "mobilenetv2_035"):
        model = timm.create_model(name, num_classes=0, **options.get(name, {}))
        files[name] = folder / f"{name}.safetensors"
        save_file(model.state_dict(), files[name])
    return files


@pytest.fixture
def small_counts(monkeypatch):
    for name, module in SETS.items():
        monkeypatch.setattr(module, "COUNTS", archives.SMALL[name])


def overrides(config, data: str) -> dict[str, str]:
    """Pinned options that the miniature of an experiment changes -> what they become."""
    found = dict(IMAGE)
    if data != "birds100":
        family = next(k for k in FAMILIES if config.backbone.name.startswith(k))
        found["backbone.name"] = FAMILIES[family]
    if data == "sop" and config.data.halves and config.data.protocol == "kfold":
        found["data.folds"] = "2"  # of seven classes, four folds would validate on one each
    return found


def batches(config) -> dict[str, str]:
    """Batches that eight classes of four images fill, and a run of two steps."""
    found = {"trainer.max_steps": "2"}
    if "classes_per_batch" in config.sampler:
        found |= {"sampler.classes_per_batch": "3", "sampler.images_per_class": "2"}
    else:
        found["sampler.batch_size"] = "6"
    if "superclasses_per_batch" in config.sampler:
        found["sampler.classes_per_batch"] = "2"  # two kinds of product hold two classes here
    if config.memory._target_ is not None:
        found |= {"memory.start_step": "0", "memory.size": "12"}
    if config.trainer.batch_chunks > 1:
        found["trainer.batch_chunks"] = "2"
    return found


def miniature(
    name: str, miniatures: dict[str, Path], weights: dict[str, Path]
) -> tuple[list[str], dict[str, str]]:
    """The command line of a run of two steps, and the pinned options that it changes."""
    config, data = compose.compose_all([f"experiment={name}"])[0].config, data_of(name)
    changed = overrides(config, data) | batches(config)
    words = [f"experiment={name}", f"data.root={miniatures[data]}", "unpin=true"]
    words += [f"{key}={value}" for key, value in changed.items()]
    words += ["trainer.accelerator=cpu", "loader.num_workers=0"]
    if data == "birds100":
        words.append(f"backbone.weights={weights['mobilenetv2_035']}")
    else:
        words += [
            f"backbone.weights={weights[changed['backbone.name']]}",
            "backbone.pretrained=false",
        ]
    if config.data.protocol == "kfold":
        words.append("data.fold=1")
    return words, changed


def data_of(name: str) -> str:
    return "birds100" if name.startswith("birds100_") else name.rsplit("_", 1)[1]


@pytest.mark.parametrize(
    "name", [name for name in experiments.names() if not name.startswith("zero_")]
)
def test_two_steps(name, miniatures, weights, small_counts, tmp_path):
    words, changed = miniature(name, miniatures, weights)
    run.train(*cli.checked([*words, f"run_dir={tmp_path / 'run'}"]))
    written = record.read(tmp_path / "run")
    assert written["checkpoint"]["step"] == 2
    assert written["config"]["experiment"] == name
    before = pins.dotted(experiments.experiment(name).config)
    really = {key for key, value in changed.items() if str(before.get(key)) != value}
    assert (written["config"]["claim"], written["config"]["unpin"]) == (None, True)
    today = experiments.changed(written["config"])
    assert {key for key in today if not key.startswith("claim.")} == really


def test_a_run_of_an_experiment_is_evaluated_again(miniatures, weights, small_counts, tmp_path):
    """dml-eval takes the images and metrics of a run from its words, the experiment's among them."""
    words, _ = miniature("reality_check_triplet_cub200", miniatures, weights)
    run.train(*cli.checked([*words, f"run_dir={tmp_path}"]))
    written = record.read(tmp_path)
    assert eval_command.run([f"run={tmp_path}", "loader.num_workers=0"]) == 0
    again = json.loads((tmp_path / "evaluation_cub200_test.json").read_text())
    assert again["metrics"] == pytest.approx(written["metrics"]["test"])
    assert again["data"]["fingerprint"] == written["data"]["fingerprint"]
    more = ["evaluation.metrics=[mrr]", f"out={tmp_path / 'more'}", "loader.num_workers=0"]
    assert eval_command.run([f"run={tmp_path}", *more]) == 0
    inshop_words = ["data=inshop", f"data.root={miniatures['inshop']}", f"out={tmp_path / 'other'}"]
    assert eval_command.run([f"run={tmp_path}", *inshop_words, "loader.num_workers=0"]) == 0


@pytest.mark.parametrize("name", [name for name in experiments.names() if name.startswith("zero_")])
def test_evaluation(name, miniatures, weights, small_counts, tmp_path):
    composed, _ = compose.compose_all([f"experiment={name}"])
    data = data_of(name)
    changed = overrides(composed.config, data)
    words = [f"experiment={name}", f"data.root={miniatures[data]}", "unpin=true"]
    words += [f"{key}={value}" for key, value in changed.items()]
    words += [f"backbone.weights={weights[changed['backbone.name']]}", "backbone.pretrained=false"]
    if data == "inshop" and composed.config.data.highres:
        words.append("data.highres=false")  # the miniature has the small images
    assert eval_command.run([*words, "loader.num_workers=0", f"out={tmp_path}"]) == 0
    (file,) = tmp_path.glob("evaluation_*.json")
    written = json.loads(file.read_text())
    assert written["experiment"] == name
    assert (written["claim"], written["unpin"]) == (None, True)
    assert written["pins"] == list(OmegaConf.to_container(composed.config.pins))
    assert set(written["metrics"]) == set(composed.config.evaluation.metrics)
