"""`dml-export`: a finished run as a bundle that `dml.load_encoder` opens, and as graphs for other run times.

Nothing at the top imports torch: a wrong command line is reported within a second.
"""

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from rich.table import Table

from dml import eval_request, record, tables
from dml.bundle_format import CARD, DESCRIPTION, Graph, Training
from dml.config import saved
from dml.config.options import one_of, parsed, several, text, truth, whole
from dml.data.index import ImageIndex
from dml.errors import ConfigurationError, Problem, RunError

if TYPE_CHECKING:
    from dml.bundle import ImageEncoder
    from dml.encoder import Encoder

log = logging.getLogger("dml")

HELP = """A finished run as a bundle: an encoder to use elsewhere.

  dml-export run=DIR out=NAME                      encoder.json, weights, a probe, a model card
  dml-export run=DIR out=NAME format=onnx          and a graph: onnx | torchscript | exported_program, or
                                                   several: format=[onnx,exported_program]
  dml-export run=DIR out=NAME format=onnx preprocess=in_graph
                                                   the graph resizes and crops whole images itself
  dml-export run=DIR out=NAME format=onnx int8=true
                                                   and one of int8, with the accuracy it loses

preprocess=none (graphs take cropped images) | in_graph     overwrite=true replaces a bundle
license=NAME for the model card, such as cc-by-4.0
Graphs are compared with the encoder on images=500 of the run's test images, drawn by seed=0; a graph that is
not the encoder fails the export. The run's images have moved? data.root=DIR.

In Python: encoder = dml.load_encoder("NAME"); encoder(images)
To others: dml.push_to_hub("NAME", "owner/name")
"""
FORMATS = (
    "onnx",
    "torchscript",
    "exported_program",
)  # those of dml.export.formats, which imports torch
OPTIONS: dict[str, Any] = {
    "run": text,
    "out": text,
    "format": several,
    "preprocess": one_of("none", "in_graph"),
    "int8": truth,
    "overwrite": truth,
    "images": whole(10),
    "seed": whole(0),
    "license": text,
}
DATA = ("data", "loader")
CALIBRATION = 128  # training images that the ranges of int8 activations are taken from


@dataclass(frozen=True)
class Request:
    """A checked command line.  index, config: the run's images and options, where graphs are asked for."""

    run: Path
    out: Path
    formats: list[str]
    preprocess: str
    int8: bool
    images: int
    seed: int
    license: str | None
    record: dict[str, Any]
    index: ImageIndex | None
    config: DictConfig | None


def run(words: list[str]) -> int:
    """Do as the words say; returns the exit code.

    Raises ConfigurationError with everything wrong with the words, RunError where the work fails; then
    nothing new is left behind, and what was there is as it was.
    """
    if not words or any(word in ("--help", "-h") for word in words):
        print(HELP)
        return 0 if words else 2
    request = checked(words)
    try:
        export(request)
    except OSError as error:
        raise RunError(
            f"cannot write {request.out} ({error.strerror or error}). Nothing was changed there."
        ) from error
    return 0


def checked(words: list[str]) -> Request:
    """A command line as a request.  Raises ConfigurationError with all that is wrong."""
    data_words = [word for word in words if eval_request.option(word) in DATA]
    own = [word for word in words if word not in data_words]
    given, problems = parsed("dml-export", own, OPTIONS)
    formats, preprocess = given.get("format", []), given.get("preprocess", "none")
    for name, what in (("run", "the directory of a finished run"), ("out", "the new bundle")):
        if not any(eval_request.option(word) == name for word in own):
            problems.append(Problem("dml-export", f"needs {name}=..., {what}."))
    problems += format_problems(formats, given)
    run, out = (Path(given.get(name, "")).expanduser() for name in ("run", "out"))
    if "out" in given:
        problems += out_problems(out, given.get("overwrite", False))
    finished, subject = {}, None
    if "run" in given:
        try:
            finished = record.read(run)
        except RunError as error:
            problems.append(Problem(f"run={given['run']}", str(error)))
        else:
            problems += run_problems(finished, run, preprocess)
            if formats:
                subject, found = eval_request.subject_of(run, data_words, "run", problems)
                problems += found
            elif data_words:
                what = "a bundle without graphs needs no images; format=... compares on them."
                problems += [Problem(word, what) for word in data_words]
    if subject is not None:
        for split in ("test", *(["train"] if given.get("int8") else [])):
            if len(subject.index.part(split)) == 0:
                what = f"graphs need {split} images, and this data has none."
                problems.append(Problem(f"data={subject.index.name}", what))
    if problems:
        raise ConfigurationError(dict.fromkeys(problems))
    return Request(
        run=run,
        out=out,
        formats=formats,
        preprocess=preprocess,
        int8=given.get("int8", False),
        images=given.get("images", 500),
        seed=given.get("seed", 0),
        license=given.get("license"),
        record=finished,
        index=None if subject is None else subject.index,
        config=None if subject is None else subject.config,
    )


def format_problems(formats: list[str], given: dict[str, Any]) -> list[Problem]:
    """Formats that do not exist or cannot be made here, and options that go with none of them."""
    found = []
    for name in formats:
        if name not in FORMATS:
            found.append(Problem(f"format={name}", f"must be one of {', '.join(FORMATS)}."))
    if len(set(formats)) < len(formats):
        found.append(Problem(f"format=[{','.join(formats)}]", "names a format twice."))
    if "onnx" in formats:
        needed = ("onnx", "onnxscript", "onnxruntime")
        missing = [name for name in needed if find_spec(name) is None]
        if missing:
            what = f"needs {' and '.join(missing)}: pip install 'dml[onnx]'."
            found.append(Problem("format=onnx", what))
    if given.get("int8") and "onnx" not in formats:
        found.append(Problem("int8=true", "is a graph for onnxruntime. Add format=onnx."))
    if given.get("int8") and given.get("preprocess") == "in_graph":
        what = "would round the resizing as well. Take preprocess=none, or leave int8 out."
        found.append(Problem("int8=true", what))
    for name in ("preprocess", "images", "seed"):
        if name in given and not formats:
            what = f"goes with a graph. Add format={'|'.join(FORMATS)}."
            found.append(Problem(f"{name}={given[name]}", what))
    return found


def out_problems(out: Path, overwrite: bool) -> list[Problem]:
    """A place that the bundle cannot take."""
    if not out.exists() and not out.is_symlink():
        return []
    where = f"out={out}"
    if not overwrite:
        return [Problem(where, "is there already. Choose another, or add overwrite=true.")]
    if out.is_symlink() or not out.is_dir() or (any(out.iterdir()) and not is_bundle(out)):
        return [Problem(where, "is no bundle, and overwrite=true replaces bundles alone.")]
    return []


def is_bundle(directory: Path) -> bool:
    """Whether a directory looks like a bundle, whole or not."""
    return (directory / DESCRIPTION).is_file()


def run_problems(finished: dict[str, Any], run: Path, preprocess: str) -> list[Problem]:
    """What of a run cannot be exported."""
    found = []
    where = f"run={run}"
    try:
        name = saved.of_record(finished, run, saved.ENCODER).backbone.name
        checkpoint = saved.checkpoint_of(finished, run)
        told = saved.protocol_of(finished, run)["preprocess"]
    except RunError as error:
        return [Problem(where, str(error))]
    if not checkpoint.is_file():
        found.append(Problem(where, f"its checkpoint {checkpoint} is gone."))
    if ":" in name:
        what = (
            f"its backbone {name} is described on a hub alone, and a bundle must be rebuilt without "
            "one.\nTrain with the architecture's own name: backbone.name=... backbone.weights=FILE."
        )
        found.append(Problem(where, what))
    if preprocess == "in_graph" and told["interpolation"] not in ("bilinear", "bicubic"):
        what = (
            f"this run resizes by {told['interpolation']}; graphs do by bilinear and bicubic alone."
        )
        found.append(Problem("preprocess=in_graph", what))
    elif preprocess == "in_graph" and told["resize"] < told["image_size"]:
        what = "this run's crop is larger than its resized image, and graphs do not pad."
        found.append(Problem("preprocess=in_graph", what))
    return found


def export(request: Request) -> None:
    """Write the bundle aside, compare everything, and give it its name."""
    from dml import measure
    from dml.bundle import load_encoder
    from dml.export import bundle_writer, card

    encoder, geometry = measure.run_encoder(request.run)
    encoder.eval()
    with bundle_writer.directory_aside(request.out) as work:
        exported = bundle_writer.write(encoder, work, geometry, training_of(request.record))
        add_graphs(request, encoder, exported, work)
        text = card.written(exported, request.out.name, request.license)
        with record.aside(work / CARD) as file:
            file.write(text.encode())
        load_encoder(work)  # what a user will do, checks and all
    show(request.out, exported)


def add_graphs(request: Request, encoder: "Encoder", exported: "ImageEncoder", work: Path) -> None:
    """Write and compare every graph; encoder.json lists them.

    Raises RunError: one that cannot be written, or is not the encoder.
    """
    if not request.formats:
        return
    from dml.data.images import BadImages
    from dml.export import bundle_writer, comparing, formats

    assert request.index is not None
    assert request.config is not None
    bad_images = BadImages(request.config.data.on_bad_image)
    chosen = comparing.sample(request.index.part("test"), request.images, request.seed)
    sample = comparing.Sample(chosen, encoder, bad_images)
    expected = sample.embed(comparing.reference(encoder), "none", "PyTorch")
    graphs: list[Graph] = []
    files: list[str] = []
    for name in request.formats:
        written = formats.write(encoder, name, request.preprocess, work)
        runner = formats.load(work / written[0], name)
        found = sample.embed(runner, request.preprocess, name)
        parity = comparing.parity(found, expected, sample.labels, exported.geometry)
        if reason := comparing.miss(parity):
            raise RunError(
                f"the graph for {name} is not the encoder on {parity.images} images: {reason}.\n"
                f"Nothing was written. Leave format={name} out, or try another version of torch."
            )
        asked = formats.input_of(encoder, request.preprocess)
        graphs.append(Graph(written[0], name, request.preprocess, "float32", asked, parity))
        files += written
    if request.int8:
        train = comparing.sample(request.index.part("train"), CALIBRATION, request.seed)
        images = comparing.Sample(train, encoder, bad_images).crops
        formats.write_int8(work / formats.FILES["onnx"], images, work / formats.INT8)
        found = sample.embed(formats.load(work / formats.INT8, "onnx"), "none", "int8")
        parity = comparing.parity(found, expected, sample.labels, exported.geometry)
        asked = formats.input_of(encoder, "none")
        graphs.append(Graph(formats.INT8, "onnx", "none", "int8", asked, parity))
        files.append(formats.INT8)
    bundle_writer.describe(work, exported, *files, graphs=graphs)


def training_of(finished: dict[str, Any]) -> Training:
    """What a bundle says of the run it comes from."""
    choices = {choice["group"]: choice["option"] for choice in finished["choices"]}
    checkpoint = finished["checkpoint"]
    return Training(
        command=finished["command"],
        experiment=choices.get("experiment"),
        loss=choices["loss"],
        data=finished["data"]["name"],
        data_fingerprint=finished["data"]["fingerprint"],
        commit=finished["code"]["commit"],
        dirty=finished["code"]["dirty"],
        started=finished["started"],
        checkpoint=f"{checkpoint['rule']} (epoch {checkpoint['epoch']}, step {checkpoint['step']})",
        protocol={k: v for k, v in finished["protocol"].items() if k != "preprocess"},
        metrics={split: m for split, m in finished["metrics"].items() if m is not None},
        versions=finished["versions"],
    )


def show(out: Path, exported: "ImageEncoder") -> None:
    """The files of a bundle, and how its graphs compare."""
    told = exported.description
    table = Table()
    for column in ("file", "MB", "largest difference", "smallest cosine", "Recall@1", "PyTorch"):
        is_file = column == "file"
        table.add_column(column, justify="left" if is_file else "right", no_wrap=is_file)
    graphs = {graph.file: graph for graph in told.graphs}
    for name, file in told.files.items():
        cells = []
        if name in graphs:
            parity = graphs[name].parity
            cells = [
                f"{parity.largest_difference:.2e}",
                f"{parity.smallest_cosine:.6f}",
                f"{parity.recall_at_1:.4f}",
                f"{parity.recall_at_1_torch:.4f}",
            ]
        table.add_row(name, f"{file.bytes / 1e6:.2f}", *cells)
    images = {graph.parity.images for graph in told.graphs}
    foot = f"compared on {images.pop()} of the run's test images" if images else ""
    tables.show(table, f"\n{out}: {exported!r}", foot)
    log.info('Use it: encoder = dml.load_encoder("%s")', out)
