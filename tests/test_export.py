"""`dml-export`: the bundle and its graphs are the run's encoder; a failure leaves nothing behind.

On scikit-learn's digits with an encoder of seconds. Graphs are run again by their own run times.
"""

import dataclasses
import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from bundles import tiny_encoder
from PIL import Image

import dml
from dml import bundle_format, cli, eval_command, export, measure, record, run
from dml.data.preprocess import Preprocess
from dml.encoder import Encoder, Head, Trunk, pooled_features
from dml.errors import ConfigurationError, RunError
from dml.export import bundle_writer, command, comparing, formats
from dml.export.graph import ResizedCrop

FORMATS = ("onnx", "torchscript", "exported_program")


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory) -> Path:
    """A run of some steps, in a directory named as a sweep names it."""
    cli.set_up_log()
    directory = tmp_path_factory.mktemp("sweep") / "loss=proxy_nca,seed=0"
    words = [
        "data=digits",
        f"data.root={cache}",
        f"run_dir='{directory}'",
        "loss=proxy_nca",
        "sampler.batch_size=140",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
        "loader.num_workers=0",
        "loader.eval_batch_size=500",
        "backbone.kwargs.channels=[8,8,8,8]",
        "backbone.image_size=32",
        "backbone.resize=36",
    ]
    run.train(*cli.checked(words))
    return directory


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory) -> Path:
    """Every format at once."""
    out = tmp_path_factory.mktemp("exported") / "digits"
    words = [f"run={finished}", f"out={out}", "format=[onnx,torchscript,exported_program]"]
    assert command.run([*words, "int8=true", "images=120", "license=cc0-1.0"]) == 0
    return out


def problems(*words: str) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        command.checked(list(words))
    return {problem.where: problem.what for problem in caught.value.problems}


def drawn(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours, uint8 [height, width, 3]: like a photograph, and unlike noise, in neighbours."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    resized = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# The bundle


def test_the_bundle_is_the_runs_encoder(finished, exported):
    encoder, geometry = measure.run_encoder(finished)
    loaded = dml.load_encoder(exported)
    images = [drawn(50 + n, 90 - n, n) for n in range(6)]
    crops = torch.stack([encoder.preprocess.crop(Image.fromarray(image)) for image in images])
    with torch.inference_mode():
        expected = encoder.eval()(crops)
    assert torch.equal(loaded(images), expected)
    assert (loaded.geometry, loaded.preprocess) == (geometry, encoder.preprocess)


def test_what_the_bundle_tells_of_its_run(finished, exported):
    told, was = bundle_format.read(exported), record.read(finished)
    assert told.training is not None
    assert told.training.metrics["test"] == was["metrics"]["test"]
    assert told.training.loss == "proxy_nca"
    assert told.training.data == "digits"
    assert told.training.command == was["command"]
    assert told.training.commit == was["code"]["commit"]
    assert told.training.data_fingerprint == was["data"]["fingerprint"]
    assert told.backbone.kwargs["channels"] == [8, 8, 8, 8]
    listed = [*told.files, "README.md", "encoder.json"]
    assert files(exported) == sorted(listed)
    bundle_format.check_files(exported, told, told.files)


def test_the_model_card(exported):
    card = (exported / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    told, metrics = yaml.safe_load(front), bundle_format.read(exported).training.metrics["test"]
    assert told["license"] == "cc0-1.0"
    (result,) = told["model-index"][0]["results"]
    assert {entry["type"]: entry["value"] for entry in result["metrics"]} == metrics
    assert f"| recall@1 | {'0.'}" in text
    assert f"{metrics['recall@1']:.4f} |" in text
    assert 'dml.load_encoder("digits")' in text
    assert "no test class was seen in training" in text
    for graph in bundle_format.read(exported).graphs:
        assert f"| {graph.file} | {graph.weights} |" in text


def test_a_card_without_a_licence_says_so(tmp_path):
    from dml.export import card

    with bundle_writer.directory_aside(tmp_path / "own") as work:
        encoder = bundle_writer.write(tiny_encoder(), work, "cosine", None)
    text = card.written(encoder, 'of "quotes": and # colons', None)
    assert "license" not in yaml.safe_load(text.split("---\n")[1])
    assert "Not stated" in text


def test_dml_eval_of_the_bundle_gives_the_runs_number(finished, exported, cache, tmp_path):
    """The acceptance of an export: what was measured is what is exported."""
    words = [f"encoder={exported}", "data=digits", f"data.root={cache}", f"out={tmp_path}"]
    assert eval_command.run([*words, "loader.num_workers=0", "post=[flip]"]) == 0
    found = json.loads((tmp_path / "evaluation_digits_test.json").read_text())
    assert found["metrics"] == pytest.approx(record.read(finished)["metrics"]["test"], abs=1e-6)
    assert found["fingerprint"] == bundle_format.read(exported).fingerprint
    assert found["preprocess"]["resize"] == 36, "the bundle's preprocessing, not an option's"
    assert found["post"]["metrics"] != found["metrics"]


def test_dml_eval_names_what_is_no_bundle(tmp_path, cache, exported):
    with pytest.raises(ConfigurationError) as caught:
        eval_command.run([f"encoder={tmp_path}", "data=digits", f"data.root={cache}"])
    assert f"encoder={tmp_path}" in str(caught.value)
    assert "holds no encoder.json" in str(caught.value)
    with pytest.raises(ConfigurationError, match="does not go with encoder="):
        eval_command.run([f"encoder={exported}", "head=none", "data=digits"])


# Graphs


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_embeds_as_the_encoder_does(exported, name):
    """At batch sizes it was not traced with."""
    encoder = dml.load_encoder(exported)
    graph = formats.load(exported / formats.FILES[name], name)
    images = [drawn(40 + n, 50, n) for n in range(7)]
    crops = torch.stack([encoder.pixels(image) for image in images])
    for count in (7, 1, 3):
        found = graph(crops[:count].numpy())
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, encoder.embed_pixels(crops[:count]), atol=2e-6)


def test_the_figures_of_the_comparison(exported):
    graphs = {g.file: g for g in bundle_format.read(exported).graphs}
    assert len(graphs) == 4
    for graph in graphs.values():
        assert graph.parity.images == 120
        assert 0 <= graph.parity.recall_at_1_torch <= 1
        assert graph.input == "images: uint8 [batch, 3, 32, 32], RGB, resized and cropped"
    floats = [graph.parity for graph in graphs.values() if graph.weights == "float32"]
    assert all(parity.smallest_cosine > 0.999999 for parity in floats)
    assert all(parity.recall_at_1 == parity.recall_at_1_torch for parity in floats)
    int8 = graphs["encoder.int8.onnx"]
    assert int8.weights == "int8"
    assert 0.9 < int8.parity.smallest_cosine < 0.99999, "a loss, and reported as one"


def test_int8_weights_are_int8(exported):
    import onnx

    kinds = [
        onnx.TensorProto.DataType.Name(tensor.data_type)
        for tensor in onnx.load(exported / formats.INT8).graph.initializer
        if len(tensor.dims) == 4
    ]
    assert len(kinds) > 5
    assert set(kinds) == {"INT8"}


def test_the_onnx_graph_names_its_input_output_and_free_dimension(exported):
    import onnx

    graph = onnx.load(exported / "encoder.onnx").graph
    onnx.checker.check_model(str(exported / "encoder.onnx"), full_check=True)
    ((name, shape),) = [(i.name, i.type.tensor_type.shape) for i in graph.input]
    assert name == "images"
    assert [dim.dim_param or dim.dim_value for dim in shape.dim] == ["batch", 3, 32, 32]
    assert [output.name for output in graph.output] == ["embeddings"]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "resize"), [(32, 36), (64, 64), (224, 256)])
def test_resizing_in_the_graph_is_pillows(size, resize, interpolation):
    """Up and down, upright and across, one of odd length; Pillow's own rounding apart."""
    preprocess = Preprocess(size, resize, interpolation, (0.5,) * 3, (0.5,) * 3)
    crop = ResizedCrop(preprocess)
    for height, width in [(300, 400), (400, 299), (40, 50), (resize, resize), (177, 178), (7, 5)]:
        image = drawn(height, width)
        expected = preprocess.crop(Image.fromarray(image)).float()
        found = crop(torch.tensor(image).permute(2, 0, 1)[None])[0]
        difference = (found - expected).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.04


def test_a_shifted_crop_would_be_noticed():
    """The test above must see half a pixel."""
    preprocess = Preprocess(64, 72, "bilinear", (0.5,) * 3, (0.5,) * 3)
    crop = ResizedCrop(preprocess)
    crop.resize = 73
    image = drawn(300, 400)
    expected = preprocess.crop(Image.fromarray(image)).float()
    found = crop(torch.tensor(image).permute(2, 0, 1)[None])[0]
    assert ((found - expected).abs() > 0).float().mean() > 0.2


def test_noise_and_the_other_order_of_passes():
    """Tall noise is the worst that rounding in between can do; photographs stay far from it."""
    noise = np.random.default_rng(0).integers(0, 256, (900, 80, 3), dtype=np.uint8)
    preprocess = Preprocess(64, 72, "bicubic", (0.5,) * 3, (0.5,) * 3)
    expected = preprocess.crop(Image.fromarray(noise)).float()
    found = ResizedCrop(preprocess)(torch.tensor(noise).permute(2, 0, 1)[None])[0]
    assert (found - expected).abs().mean() < 1
    assert (found - expected).abs().max() < 40


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_whole_images_of_any_size_go_into_every_format(tmp_path, name):
    encoder = tiny_encoder()
    (written,) = formats.write(encoder, name, "in_graph", tmp_path)
    graph = formats.load(tmp_path / written, name)
    for count, height, width in [(1, 300, 400), (3, 90, 60), (2, 64, 500), (1, 20, 30)]:
        images = np.stack([drawn(height, width, seed) for seed in range(count)])
        crops = torch.stack([encoder.preprocess.crop(Image.fromarray(i)) for i in images])
        with torch.inference_mode():
            expected = encoder(crops).numpy()
        assert (graph(images) * expected).sum(1).min() > comparing.LEAST_COSINE


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("trunk", "pooling", "normalize"),
    [
        ("test_vit", "native", True),
        ("test_resnet", "gem", True),
        ("test_efficientnet", "avg_max", False),
        ("test_convnext", "avg", True),
    ],
)
def test_other_networks_and_heads(tmp_path, name, trunk, pooling, normalize):
    torch.manual_seed(0)
    built = Trunk(trunk)
    head = Head(pooled_features(built, pooling), 8, pooling, layer_norm=True)
    encoder = Encoder(built, head, normalize).eval()
    (written,) = formats.write(encoder, name, "none", tmp_path)
    size = encoder.preprocess.image_size
    crops = np.stack([np.moveaxis(drawn(size, size, n), -1, 0) for n in range(5)])
    found = formats.load(tmp_path / written, name)(crops)
    expected = comparing.reference(encoder)(crops)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-3)
    bundled = tmp_path / "bundle"
    with bundle_writer.directory_aside(bundled) as work:
        bundle_writer.write(encoder, work, "cosine", None)
    again = dml.load_encoder(bundled).embed_pixels(torch.tensor(crops))
    np.testing.assert_allclose(again, expected, atol=1e-5)


def test_a_sample_holds_whole_classes(finished):
    """Images drawn one by one would leave most queries of a data set with many classes without a positive."""
    subject = command.checked([f"run={finished}", "out=x", "format=torchscript"])
    assert subject.index is not None
    images = subject.index.part("test")
    chosen = comparing.sample(images, 200, seed=3)
    assert len(chosen) == 200
    counts = np.bincount(chosen.labels, minlength=images.num_classes)
    assert sum((counts > 0) & (counts < images.class_sizes())) <= 1
    assert not np.array_equal(chosen.ids, comparing.sample(images, 200, seed=4).ids)
    assert len(comparing.sample(images, 10**6, seed=0)) == len(images)


def test_what_counts_as_a_miss():
    same = bundle_format.Parity(100, 1e-6, 1.0, 0.8, 0.8)
    assert comparing.miss(same) is None
    assert "0.999800" in comparing.miss(dataclasses.replace(same, smallest_cosine=0.9998))
    assert "0.7900 instead of 0.8000" in comparing.miss(dataclasses.replace(same, recall_at_1=0.79))
    vectors = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    with pytest.raises(RunError, match="not finite"):
        comparing.parity(vectors * np.nan, vectors, labels, "cosine")
    turned = comparing.parity(-vectors, vectors, labels, "cosine")
    assert turned.smallest_cosine == pytest.approx(-1)
    assert turned.recall_at_1 == turned.recall_at_1_torch


# Failures


def test_a_graph_that_is_not_the_encoder_fails_the_export(finished, tmp_path, monkeypatch):
    def skewed(path, format):
        graph = load(path, format)
        return lambda images: graph(images) + np.float32(0.01)

    load = formats.load
    monkeypatch.setattr(formats, "load", skewed)
    words = [f"run={finished}", f"out={tmp_path / 'new'}", "format=torchscript", "images=50"]
    with pytest.raises(RunError, match="torchscript is not the encoder on 50 images: smallest"):
        command.run(words)
    assert files(tmp_path) == []


def test_a_format_that_cannot_be_written_fails_the_export(finished, tmp_path, monkeypatch):
    def refuse(*_):
        raise NotImplementedError("no such operator\ntrace")

    monkeypatch.setitem(formats.WRITE, "onnx", refuse)
    words = [f"run={finished}", f"out={tmp_path / 'new'}", "format=onnx", "images=50"]
    with pytest.raises(RunError, match="as onnx \\(NotImplementedError: no such operator\\)"):
        command.run(words)
    assert files(tmp_path) == []


def test_a_full_disk_leaves_the_old_bundle(finished, tmp_path, monkeypatch):
    out = tmp_path / "encoder"
    assert command.run([f"run={finished}", f"out={out}"]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    for place, name in [(bundle_writer, "save_file"), (record, "aside"), (np, "savez")]:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            with pytest.raises(RunError, match="No space left on device"):
                command.run([f"run={finished}", f"out={out}", "overwrite=true"])
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        assert files(tmp_path) == ["encoder"]
    assert dml.load_encoder(out).dim == 128


def test_overwriting_replaces_all_of_the_old_bundle(finished, exported, tmp_path):
    out = tmp_path / "encoder"
    shutil.copytree(exported, out)
    assert command.run([f"run={finished}", f"out={out}", "overwrite=true"]) == 0
    assert files(out) == ["README.md", "encoder.json", "probe.npz", "weights.safetensors"]
    assert files(tmp_path) == ["encoder"]


def test_all_that_is_wrong_is_said_at_once(finished, tmp_path):
    (tmp_path / "taken").mkdir()
    found = problems(
        *("--force", f"out={tmp_path / 'taken'}", "format=[onxx,onnx]", "int8=yes", "images=3"),
        *("optimizer.lr=1", "run=nowhere"),
    )
    assert "is no flag" in found["--force"]
    assert "is there already" in found[f"out={tmp_path / 'taken'}"]
    assert "onnx, torchscript, exported_program" in found["format=onxx"]
    assert "true, false" in found["int8=yes"]
    assert "at least 10" in found["images=3"]
    assert "is no option of dml-export" in found["optimizer.lr=1"]
    assert "no finished run" in found["run=nowhere"]


def test_what_does_not_go_together(finished, tmp_path):
    words = [f"run={finished}", f"out={tmp_path / 'new'}"]
    assert "Add format=onnx" in problems(*words, "int8=true")["int8=true"]
    found = problems(*words, "format=onnx", "int8=true", "preprocess=in_graph")
    assert "preprocess=none" in found["int8=true"]
    assert "Add format=" in problems(*words, "preprocess=in_graph")["preprocess=in_graph"]
    assert "needs no images" in problems(*words, "data.root=x")["data.root=x"]
    twice = problems(*words, "format=[onnx,onnx]")
    assert "twice" in twice["format=[onnx,onnx]"]
    assert problems("format=onnx").keys() == {"dml-export"}


def test_overwrite_replaces_bundles_alone(finished, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_text("dear")
    found = problems(f"run={finished}", f"out={tmp_path / 'photos'}", "overwrite=true")
    assert "is no bundle" in found[f"out={tmp_path / 'photos'}"]
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    found = problems(f"run={finished}", f"out={tmp_path / 'link'}", "overwrite=true")
    assert "is no bundle" in found[f"out={tmp_path / 'link'}"]


def test_a_run_that_cannot_be_exported(finished):
    """By its record alone, before torch is imported."""
    told = record.read(finished)
    told["checkpoint"]["file"] = "checkpoints/gone.ckpt"
    told["config"]["backbone"]["name"] = "hf-hub:someone/net"
    told["protocol"]["preprocess"]["interpolation"] = "lanczos"
    found = " ".join(p.what for p in command.run_problems(told, finished, "in_graph"))
    assert "gone.ckpt is gone" in found
    assert "described on a hub alone" in found
    assert "resizes by lanczos" in found
    told["protocol"]["preprocess"].update(interpolation="bicubic", resize=8, image_size=9)
    (problem,) = [p for p in command.run_problems(told, finished, "in_graph") if "in_" in p.where]
    assert "larger than its resized image" in problem.what


def test_a_missing_package_is_named(finished, tmp_path, monkeypatch):
    real = command.find_spec
    monkeypatch.setattr(command, "find_spec", lambda n: None if n == "onnxruntime" else real(n))
    found = problems(f"run={finished}", f"out={tmp_path / 'new'}", "format=onnx")
    assert found == {"format=onnx": "needs onnxruntime: pip install 'dml[onnx]'."}


def test_the_formats_are_named_once():
    assert set(command.FORMATS) == set(formats.FILES) == set(formats.WRITE)
    assert export.__doc__


def test_help(capsys):
    assert command.run(["--help"]) == 0
    assert command.run([]) == 2
    shown = capsys.readouterr().out
    assert all(f"{option}=" in shown for option in command.OPTIONS)


@pytest.mark.slow
def test_photographs_through_every_graph(birds, mobilenet_weights, tmp_path):
    """Untrained, on real photographs, with pixels resized in the graph."""
    trunk = Trunk(
        "mobilenetv2_035",
        weights=str(mobilenet_weights),
        kwargs={"pad_type": "same", "bn_eps": 0.001},
        image_size=128,
        resize=144,
        mean=[0.5],
        std=[0.5],
        interpolation="bicubic",
    )
    encoder = Encoder(trunk, Head(pooled_features(trunk, "avg"))).eval()
    paths = sorted((birds / "images").glob("*/000*.jpg"))[::25]
    assert len(paths) >= 20
    for name in FORMATS:
        (written,) = formats.write(encoder, name, "in_graph", tmp_path)
        graph = formats.load(tmp_path / written, name)
        for path in paths:
            with Image.open(path) as image:
                rgb = image.convert("RGB")
            expected = comparing.reference(encoder)(encoder.preprocess.crop(rgb)[None].numpy())
            cosine = (graph(np.asarray(rgb)[None]) * expected).sum()
            assert cosine > comparing.LEAST_COSINE
