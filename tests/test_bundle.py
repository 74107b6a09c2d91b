"""Bundles at run time: the encoder is the one that was measured, or loading says why it is not.

What was measured is what is exported: every kind of input goes through the evaluation's own decoding.
"""

import dataclasses
import inspect
import io
import json
import pickle
import shutil
import socket
import struct
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from bundles import tiny_bundle, tiny_encoder
from PIL import Image
from safetensors.torch import load_file, save_file

import dml
from dml import bundle, bundle_format
from dml.bundle_format import DESCRIPTION, PROBE, WEIGHTS, BundleError
from dml.data.decode import UnreadableImage, open_rgb
from dml.export import bundle_writer


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "encoder")


@pytest.fixture(scope="module")
def encoder(path) -> bundle.ImageEncoder:
    return dml.load_encoder(path)


@pytest.fixture
def copy(path, tmp_path) -> Path:
    """A bundle to be damaged."""
    return Path(shutil.copytree(path, tmp_path / "copy"))


def picture(height: int = 90, width: int = 120, seed: int = 0) -> np.ndarray:
    """Smooth colours, uint8 [height, width, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    resized = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def change(directory: Path, edit) -> None:
    """Edit encoder.json."""
    content = json.loads((directory / DESCRIPTION).read_text())
    edit(content)
    (directory / DESCRIPTION).write_text(json.dumps(content))


def seal(directory: Path, name: str) -> None:
    """Record a file's new size and checksum, as one who forges a bundle would."""
    told = dataclasses.asdict(bundle_format.file_of(directory / name))
    change(directory, lambda content: content["files"].update({name: told}))


# Images in


def test_every_kind_of_input_is_the_same_image(encoder, tmp_path):
    array = picture()
    file = tmp_path / "picture.png"
    Image.fromarray(array).save(file)
    chw = torch.from_numpy(array.copy()).permute(2, 0, 1)
    kinds = [
        *(Image.fromarray(array), array, chw, file, str(file)),
        encoder.preprocess(Image.fromarray(array)),
    ]
    found = encoder(kinds)
    assert found.shape == (6, 16)
    assert found.dtype == torch.float32
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, found[:1].expand(6, -1))
    torch.testing.assert_close(encoder(array[None]), found[:1])
    torch.testing.assert_close(encoder(chw[None]), found[:1])


def test_embeddings_are_those_of_the_encoder_that_was_exported(encoder):
    """Bit for bit: same weights, same pixels, same operations."""
    original = tiny_encoder()
    images = [Image.fromarray(picture(seed=seed)) for seed in range(5)]
    crops = torch.stack([original.preprocess.crop(image) for image in images])
    with torch.inference_mode():
        expected = original(crops)
    assert torch.equal(encoder(images), expected)
    assert (expected[0] @ expected[1]).item() < 0.9999, "the images must tell encoders apart"


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16", "YCbCr", "F"])
def test_odd_modes_are_decoded_as_in_evaluation(encoder, tmp_path, mode):
    rgb = Image.fromarray(picture())
    if mode == "I;16":
        image = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    else:
        image = rgb.convert(mode)
    suffix = {"CMYK": "jpg", "YCbCr": "jpg", "F": "tiff"}.get(mode, "png")
    file = tmp_path / f"odd.{suffix}"
    image.save(file)
    with Image.open(file) as lazy:
        found = [encoder.pixels(lazy), encoder.pixels(file)]
    evaluated = encoder.preprocess.crop(open_rgb(file))
    assert evaluated.float().std() > 10, "the picture must survive the mode"
    assert all(torch.equal(pixels, evaluated) for pixels in found)


def test_grey_and_transparent_arrays(encoder):
    array = picture()
    grey = np.asarray(Image.fromarray(array).convert("L"))
    alpha = np.concatenate([array, np.full_like(array[..., :1], 7)], axis=-1)
    found = encoder(
        [
            *(grey, Image.fromarray(grey), torch.from_numpy(grey.copy())[None]),
            *(grey.astype(np.uint16) * 256, np.stack([grey] * 3, -1), alpha, array),
        ]
    )
    torch.testing.assert_close(found[:5], found[:1].expand(5, -1))
    torch.testing.assert_close(found[5], found[6])
    assert not torch.allclose(found[0], found[6])


def test_exif_rotation_is_ignored_as_in_evaluation(encoder, tmp_path):
    """The published data sets' results ignore it; a bundle that turned images would not reproduce them."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(picture()).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(picture()).save(tmp_path / "plain.jpg")
    turned, plain = encoder([tmp_path / "turned.jpg", tmp_path / "plain.jpg"])
    assert torch.equal(turned, plain)


def test_the_first_frame_of_an_animation(encoder, tmp_path):
    frames = [Image.fromarray(picture(seed=seed)).convert("P") for seed in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "still.gif")
    moving, still = encoder([tmp_path / "moving.gif", tmp_path / "still.gif"])
    torch.testing.assert_close(moving, still)


def test_batches_change_nothing(encoder):
    images = [picture(50 + 7 * n, 140 - 3 * n, seed=n) for n in range(7)]
    whole = encoder(images)
    for size in (1, 3, 7, 100):
        torch.testing.assert_close(encoder.embed(images, batch_size=size), whole)
    assert encoder([]).shape == (0, 16)
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        encoder.embed(images, batch_size=0)


def test_a_mixture_of_pixels_and_normalised_tensors_keeps_its_order(encoder):
    images = [picture(seed=seed) for seed in range(4)]
    mixed = [images[0], encoder.preprocess(Image.fromarray(images[1])), images[2], images[3]]
    torch.testing.assert_close(encoder(mixed), encoder(images))


def test_several_threads_at_once(encoder):
    images = [picture(seed=seed) for seed in range(8)]
    expected, found = encoder(images), {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: encoder([images[n]])}))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(torch.cat([found[n] for n in range(8)]), expected)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (Image.new("RGB", (9, 9)), TypeError, r"write encoder\(\[image\]\)"),
        ("picture.png", TypeError, "a list of images"),
        (picture(), ValueError, "4 dimensions, not 3"),
        (7, TypeError, "not int"),
        ([None], TypeError, "image 0: is NoneType"),
        ([picture(), picture() / 255.0], ValueError, "image 1: .*Float pixels have no one scale"),
        ([picture()[..., :2]], ValueError, r"not uint8 \[90, 120, 2\]"),
        ([torch.zeros(3, 63, 64)], ValueError, r"must be \[3, 64, 64\]"),
        ([torch.zeros(5, 64, 64, dtype=torch.uint8)], ValueError, r"not uint8 \[5, 64, 64\]"),
        ([np.zeros((0, 9, 3), np.uint8)], UnreadableImage, "9 x 0 pixels"),
    ],
)
def test_what_is_no_image_is_refused(encoder, images, error, message):
    with pytest.raises(error, match=message):
        encoder(images)


def test_unreadable_files_are_named(encoder, tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    Image.fromarray(picture()).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name in ("text.jpg", "cut.png", "missing.png"):
        with pytest.raises(UnreadableImage, match=name):
            encoder([tmp_path / name])
    with pytest.raises(UnreadableImage, match="image 0"):
        encoder([Image.open(tmp_path / "cut.png")])


def bomb(width: int, height: int) -> bytes:
    """A PNG of some bytes whose header claims width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [50_000, 10_000])
def test_decompression_bombs_are_not_decoded(encoder, tmp_path, side):
    """50,000 a side is beyond Pillow's own limit, 10,000 only beyond ours."""
    file = tmp_path / "bomb.png"
    file.write_bytes(bomb(side, side))
    with pytest.raises(UnreadableImage, match=r"bomb\.png: .*pixels"):
        encoder([file])


def test_the_limit_on_pixels_can_be_set(path, tmp_path):
    own = dml.load_encoder(path)
    Image.fromarray(picture()).save(tmp_path / "a.jpg")
    own.max_pixels = 90 * 120
    assert len(own([tmp_path / "a.jpg", picture()])) == 2
    own.max_pixels -= 1
    for image in (tmp_path / "a.jpg", picture(), Image.fromarray(picture())):
        with pytest.raises(UnreadableImage, match="120 x 90 pixels are more than 10799"):
            own([image])


# What a bundle says


def test_attributes(encoder):
    assert (encoder.dim, encoder.normalized, encoder.geometry) == (16, True, "cosine")
    assert encoder.preprocess == tiny_encoder().preprocess
    assert "resnet10t, 64 x 64 pixels -> 16 numbers" in repr(encoder)


def test_a_bundle_keeps_lengths_that_are_not_1(tmp_path):
    bundle_path = tiny_bundle(tmp_path / "own", normalize=False, geometry="euclidean")
    own = dml.load_encoder(bundle_path)
    assert (own.normalized, own.geometry) == (False, "euclidean")
    with torch.inference_mode():
        expected = tiny_encoder(normalize=False)(own.pixels(picture())[None])
    assert torch.equal(own([picture()]), expected)
    # The direction of the probe alone would not show this.
    change(bundle_path, lambda content: content.update(normalized=True))
    with pytest.raises(BundleError, match=r"lengths 1\.0000 now and"):
        dml.load_encoder(bundle_path)


def test_the_fingerprint_stands_for_the_function(encoder, path, tmp_path):
    other = bundle_format.read(tiny_bundle(tmp_path / "other", seed=1))
    again = bundle_format.read(tiny_bundle(tmp_path / "again"))
    told = bundle_format.read(path)
    assert told.fingerprint == again.fingerprint == encoder.fingerprint
    resized = dataclasses.replace(told.preprocess, resize=80)
    prints = {
        told.fingerprint,
        other.fingerprint,
        dataclasses.replace(told, preprocess=resized).fingerprint,
        dataclasses.replace(told, normalized=False).fingerprint,
    }
    assert len(prints) == 4
    unlike = dataclasses.replace(told, versions={"torch": "9"}, geometry="dot")
    assert unlike.fingerprint == told.fingerprint


WRONG = {
    "version 2": (lambda c: c.update(format_version=2), "has format version 2; .* reads 1"),
    "version true": (lambda c: c.update(format_version=True), "format version True"),
    "no version": (lambda c: c.pop("format_version"), "format version None"),
    "extra key": (lambda c: c.update(trust=True), "trust is unknown"),
    "_target_": (lambda c: c["head"].update(_target_="os.system"), "head._target_ is unknown"),
    "missing key": (lambda c: c["preprocess"].pop("std"), "preprocess.std is missing"),
    "wrong type": (lambda c: c.update(dim="16"), "dim is str, not int"),
    "bool for int": (lambda c: c.update(dim=True), "dim is bool, not int"),
    "list for dict": (lambda c: c.update(backbone=[]), "backbone is list, not a dictionary"),
    "two numbers": (lambda c: c["preprocess"].update(mean=[0, 0]), "mean has 2 numbers"),
    "std 0": (lambda c: c["preprocess"].update(std=[1, 0, 1]), "std is not positive"),
    "interpolation": (lambda c: c["preprocess"].update(interpolation="x"), "'x' is unknown"),
    "huge image": (lambda c: c["preprocess"].update(image_size=10**6), "image_size 1000000 is out"),
    "geometry": (lambda c: c.update(geometry="taxicab"), "geometry 'taxicab' is unknown"),
    "pooling": (lambda c: c["head"].update(pooling="x"), "pooling 'x' is unknown"),
    "hub name": (lambda c: c["backbone"].update(name="hf-hub:a/b"), "no name of a timm arch"),
    "path name": (lambda c: c["backbone"].update(name="local-dir:/x"), "no name of a timm arch"),
    "pickle": (
        lambda c: c["backbone"]["kwargs"].update(checkpoint_path="/tmp/x.pth"),
        "kwargs.checkpoint_path is not for bundles",
    ),
    "download": (
        lambda c: c["backbone"]["kwargs"].update(pretrained_cfg={"url": "http://x"}),
        "kwargs.pretrained_cfg is not for bundles",
    ),
    "traversal": (
        lambda c: c["files"].update({"../../x": c["files"][WEIGHTS]}),
        r"'../../x' is no plain file name",
    ),
    "absolute": (
        lambda c: c["files"].update({"/etc/passwd": c["files"][WEIGHTS]}),
        "'/etc/passwd' is no plain file name",
    ),
    "no probe": (lambda c: c["files"].pop(PROBE), "files.probe.npz is missing"),
    "checksum": (lambda c: c["files"][PROBE].update(sha256="0" * 63), "sha256 is no checksum"),
    "dims disagree": (lambda c: c.update(dim=17), "head.dim 16 is not dim 17"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_description_is_refused_before_anything_is_built(copy, wrong, monkeypatch):
    edit, message = WRONG[wrong]
    change(copy, edit)
    monkeypatch.setattr(bundle, "rebuilt", lambda *_: pytest.fail("built"))
    with pytest.raises(BundleError, match=message):
        dml.load_encoder(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON of ours"),
        ("[]", "format version None"),
        ("null", "format version None"),
        ('{"format_version": 1, "dim": NaN}', "NaN is no number"),
        ('{"format_version": 1, "format_version": 1}', "a key is given twice"),
        ("[" * 100_000, "is no JSON of ours"),
        (" " * (1 << 20) + "{}", "is larger than"),
        (b"\xff\xfe{".decode("latin1"), "is no JSON of ours"),
    ],
    ids=range(8),
)
def test_what_is_no_description_is_refused(copy, content, message):
    (copy / DESCRIPTION).write_text(content, encoding="latin1")
    with pytest.raises(BundleError, match=message):
        dml.load_encoder(copy)


def test_every_mistake_is_named_at_once(copy):
    def edit(content):
        content["backbone"].pop("name")
        content.update(dim="x", more=1)

    change(copy, edit)
    with pytest.raises(BundleError) as caught:
        dml.load_encoder(copy)
    for part in ("backbone.name is missing", "dim is str", "more is unknown"):
        assert part in str(caught.value)


def test_no_bundle(tmp_path):
    with pytest.raises(BundleError, match=r"holds no encoder\.json"):
        dml.load_encoder(tmp_path)
    with pytest.raises(BundleError, match=r"holds no encoder\.json"):
        dml.load_encoder(tmp_path / "nowhere")


# Files


def test_a_changed_byte_in_the_weights(copy):
    data = bytearray((copy / WEIGHTS).read_bytes())
    data[-5] ^= 1
    (copy / WEIGHTS).write_bytes(data)
    with pytest.raises(BundleError, match=r"checksum of .*weights\.safetensors is not that"):
        dml.load_encoder(copy)


@pytest.mark.parametrize("name", [WEIGHTS, PROBE])
def test_a_missing_or_shortened_file(copy, name):
    size = (copy / name).stat().st_size
    (copy / name).write_bytes((copy / name).read_bytes()[:-1])
    with pytest.raises(BundleError, match=f"{name} has {size - 1} bytes, not {size}"):
        dml.load_encoder(copy)
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"lacks {name}"):
        dml.load_encoder(copy)


def test_the_model_card_may_be_completed(copy):
    (copy / "README.md").write_text("by hand")
    assert dml.load_encoder(copy).dim == 16


def test_other_weights_with_a_right_checksum_are_caught_by_the_probe(copy):
    """As when another version of a library computes something else."""
    weights = load_file(copy / WEIGHTS)
    torch.manual_seed(7)
    key = "head.linear.weight"
    save_file(weights | {key: torch.randn_like(weights[key])}, copy / WEIGHTS)
    seal(copy, WEIGHTS)
    with pytest.raises(BundleError, match=r"cosine 0\.\d+|cosine -0\.\d+"):
        dml.load_encoder(copy)


def test_a_probe_that_no_longer_matches_names_the_versions(copy):
    change(copy, lambda content: content["versions"].update(timm="0.1", torch="1.0"))
    with np.load(copy / PROBE) as arrays:
        image, embedding = arrays["image"], arrays["embedding"]
    np.savez(copy / PROBE, image=image, embedding=-embedding)
    seal(copy, PROBE)
    with pytest.raises(BundleError, match=r"cosine -1\.000000(.|\n)*torch 1\.0 then, .* timm 0\.1"):
        dml.load_encoder(copy)


def test_preprocessing_that_was_changed_is_caught_by_the_probe(copy):
    """The probe is a whole image and no crop, so that resizing is checked as well."""
    change(copy, lambda content: content["preprocess"].update(resize=200))
    with pytest.raises(BundleError, match="does not compute what it did"):
        dml.load_encoder(copy)


def test_weights_that_do_not_fit(copy):
    weights = load_file(copy / WEIGHTS)
    weights["head.linear.bias"] = torch.zeros(3)
    save_file(weights, copy / WEIGHTS)
    seal(copy, WEIGHTS)
    with pytest.raises(BundleError, match=r"does not fit the network.*head\.linear\.bias"):
        dml.load_encoder(copy)


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_nothing_is_ever_unpickled(copy, tmp_path):
    mark = tmp_path / "unpickled"
    (copy / WEIGHTS).write_bytes(pickle.dumps(Trap(mark)))
    seal(copy, WEIGHTS)
    with pytest.raises(BundleError, match="is no safetensors file"):
        dml.load_encoder(copy)
    np.savez(copy / PROBE, image=np.array([Trap(mark)], dtype=object), embedding=np.zeros(16))
    seal(copy, PROBE)
    with pytest.raises(BundleError, match=r"probe\.npz cannot be read: Object arrays"):
        dml.load_encoder(copy)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists(), "the trap must work"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.zeros((9, 9, 3), np.uint8)}, "must hold an image and an embedding"),
        (
            {"image": np.zeros((3000, 2000, 3), np.uint8), "embedding": np.zeros(16, np.float32)},
            "at most 16 MiB",
        ),
        ({"image": np.zeros((9, 9), np.uint8), "embedding": np.zeros(16, np.float32)}, "the image"),
        (
            {"image": np.zeros((9, 9, 3), np.uint8), "embedding": np.zeros(15, np.float32)},
            r"float32 \[15\], not \[16\]",
        ),
    ],
    ids=range(4),
)
def test_a_probe_of_another_shape(copy, arrays, message):
    """Compressed, 18 MB of zeros are a small file."""
    np.savez_compressed(copy / PROBE, **arrays)
    seal(copy, PROBE)
    with pytest.raises(BundleError, match=message):
        dml.load_encoder(copy)


def test_a_probe_that_is_no_archive(copy):
    (copy / PROBE).write_bytes(b"PK but no archive")
    seal(copy, PROBE)
    with pytest.raises(BundleError, match=r"probe\.npz cannot be read"):
        dml.load_encoder(copy)


def test_an_architecture_that_timm_does_not_know(copy):
    change(copy, lambda content: content["backbone"].update(name="resnet10t_of_2031"))
    with pytest.raises(BundleError, match=r"timm \S+ cannot build .*is no timm model"):
        dml.load_encoder(copy)


def test_arguments_that_timm_does_not_take(copy):
    change(copy, lambda content: content["backbone"]["kwargs"].update(wings=2))
    with pytest.raises(BundleError, match=r"cannot build(.|\n)*wings"):
        dml.load_encoder(copy)


def test_loading_asks_no_network(path, monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("opened a socket"))
    assert dml.load_encoder(path).dim == 16


@pytest.mark.gpu
def test_on_a_gpu_embeddings_are_those_of_the_cpu(path, encoder):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    there = dml.load_encoder(path, device="cuda")
    images = [picture(seed=seed) for seed in range(9)]
    assert there.device.type == "cuda"
    found = there(images)
    assert found.device.type == "cpu"
    assert torch.nn.functional.cosine_similarity(found, encoder(images)).min() > 0.9999
    assert there.to("cpu").device.type == "cpu"


# The hub


class Hub:
    """Holds repositories as directories; takes the calls of huggingface_hub that the package makes.

    Each call is held against the real function's signature.
    """

    def __init__(self, folder: Path):
        self.folder, self.calls, self.tokens = folder, [], []

    def take(self, name: str, real, *args, **kwargs) -> dict:
        bound = inspect.signature(real).bind(*args, **kwargs)
        self.calls.append((name, dict(bound.arguments)))
        return dict(bound.arguments)

    def snapshot_download(self, *args, **kwargs) -> str:
        told = self.take("download", huggingface_hub.snapshot_download, *args, **kwargs)
        self.tokens.append(told["token"])
        found = self.folder / told["repo_id"] / (told["revision"] or "main")
        if not found.is_dir():
            raise FileNotFoundError(f"404 Client Error: {told['repo_id']}")
        target = self.folder / "cache" / told["repo_id"]
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for file in found.iterdir():
            if file.name in told["allow_patterns"]:
                (target / file.name).symlink_to(file)  # as in the real cache
        return str(target)

    def api(self, token=None) -> SimpleNamespace:
        self.tokens.append(token)
        real = huggingface_hub.HfApi

        def create_repo(*args, **kwargs) -> None:
            told = self.take("create", real.create_repo, None, *args, **kwargs)
            (self.folder / told["repo_id"] / "main").mkdir(parents=True, exist_ok=True)

        def upload_folder(*args, **kwargs) -> SimpleNamespace:
            told = self.take("upload", real.upload_folder, None, *args, **kwargs)
            for file in Path(told["folder_path"]).iterdir():
                if file.name in told["allow_patterns"]:
                    shutil.copy(file, self.folder / told["repo_id"] / "main")
            return SimpleNamespace(commit_url=f"https://hub/{told['repo_id']}/commit/1")

        return SimpleNamespace(create_repo=create_repo, upload_folder=upload_folder)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    fake = Hub(tmp_path / "hub")
    monkeypatch.setattr(bundle, "snapshot_download", fake.snapshot_download)
    monkeypatch.setattr(bundle, "HfApi", fake.api)
    return fake


def test_up_to_the_hub_and_back(hub, copy, encoder):
    (copy / "README.md").write_text("# card")
    (copy / "secret.txt").write_text("not part of the bundle")
    address = dml.push_to_hub(copy, "someone/birds", token="t")
    assert address == "https://hub/someone/birds/commit/1"
    uploaded = sorted(file.name for file in (hub.folder / "someone/birds/main").iterdir())
    assert uploaded == ["README.md", DESCRIPTION, PROBE, WEIGHTS]
    created = dict(hub.calls)["create"]
    assert created["private"] is True, "nothing is published unless it is asked for"
    assert created["exist_ok"] is True
    back = dml.load_encoder("hf://someone/birds", token="t")
    assert hub.tokens == ["t", "t"]
    assert torch.equal(back([picture()]), encoder([picture()]))


def test_a_revision_of_the_hub(hub, path):
    shutil.copytree(path, hub.folder / "someone/birds/v1")
    assert dml.load_encoder("hf://someone/birds@v1").dim == 16
    with pytest.raises(BundleError, match=r"hf://someone/birds cannot be had .*404"):
        dml.load_encoder("hf://someone/birds")


def test_a_damaged_bundle_is_not_uploaded(hub, copy):
    (copy / PROBE).write_bytes(b"x")
    with pytest.raises(BundleError, match="has 1 bytes"):
        dml.push_to_hub(copy, "someone/birds")
    assert hub.calls == []


def test_a_hub_that_refuses(hub, path, monkeypatch):
    def refuse(**_):
        raise PermissionError("403 Forbidden\nmore")

    api = SimpleNamespace(create_repo=lambda *_, **__: None, upload_folder=refuse)
    monkeypatch.setattr(bundle, "HfApi", lambda token: api)
    with pytest.raises(BundleError, match=r"someone/birds \(PermissionError: 403 Forbidden\)"):
        dml.push_to_hub(path, "someone/birds")
    for name in ("birds", "a/b/c"):
        with pytest.raises(BundleError, match="owner/name"):
            dml.push_to_hub(path, name)
        with pytest.raises(BundleError, match="owner/name"):
            dml.load_encoder(f"hf://{name}")


# Writing


def test_a_bundle_of_an_encoder_that_diverged_is_not_written(tmp_path):
    own = tiny_encoder()
    with torch.no_grad():
        own.head.linear.weight.fill_(float("nan"))
    with (
        pytest.raises(Exception, match="not finite"),
        bundle_writer.directory_aside(tmp_path / "new") as work,
    ):
        bundle_writer.write(own, work, "cosine", None)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_takes_its_name_only_once_it_is_whole(tmp_path):
    out = tmp_path / "new"
    with bundle_writer.directory_aside(out) as work:
        (work / "a").write_text("first")
        assert not out.exists()
    assert (out / "a").read_text() == "first"

    def stopped() -> None:
        with bundle_writer.directory_aside(out) as work:
            (work / "a").write_text("second")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert (out / "a").read_text() == "first"
    with bundle_writer.directory_aside(out) as work:
        (work / "b").write_text("third")
    assert [file.name for file in out.iterdir()] == ["b"]
    assert [file.name for file in tmp_path.iterdir()] == ["new"], "nothing is left beside it"


def test_the_probe_is_the_same_picture_everywhere():
    """A change to how it is drawn would make every new bundle's file differ."""
    image = bundle_writer.probe_image()
    assert image.shape == (260, 300, 3)
    again = io.BytesIO()
    np.save(again, bundle_writer.probe_image())
    assert np.array_equal(np.load(io.BytesIO(again.getvalue())), image)
