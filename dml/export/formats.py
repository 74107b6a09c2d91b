"""The encoder as a graph for other run times, and that graph run again to hold it against the encoder."""

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dml.encoder import Encoder
from dml.errors import RunError
from dml.export.graph import FromCrops, FromImages

Run = Callable[[np.ndarray], np.ndarray]  # uint8 images -> float32 [n, dim]
FILES = {
    "onnx": "encoder.onnx",
    "torchscript": "encoder.torchscript.pt",
    "exported_program": "encoder.pt2",
}
INT8 = "encoder.int8.onnx"
SIDES = (150, 170)  # of the example that in-graph preprocessing is traced with; any size goes in


def module_of(encoder: Encoder, preprocess: str) -> nn.Module:
    """The module whose graph is written; the encoder itself is left as it is."""
    encoder = copy.deepcopy(encoder)
    # The memory layout is a matter of speed here; in a graph it would be an operation.
    encoder.trunk.memory_format = torch.contiguous_format
    module = FromImages(encoder) if preprocess == "in_graph" else FromCrops(encoder)
    return module.eval().requires_grad_(False)


def input_of(encoder: Encoder, preprocess: str) -> str:
    """The graph's input in words."""
    size = encoder.preprocess.image_size
    if preprocess == "in_graph":
        return "images: uint8 [batch, height, width, 3], RGB, whole images of any one size"
    return f"images: uint8 [batch, 3, {size}, {size}], RGB, resized and cropped"


def write(encoder: Encoder, format: str, preprocess: str, directory: Path) -> list[str]:
    """Write one format; returns the names of its files, the graph first.

    Raises RunError with the reason if torch cannot express the network in it.
    """
    module = module_of(encoder, preprocess)
    size = encoder.preprocess.image_size
    shape = (2, *SIDES, 3) if preprocess == "in_graph" else (2, 3, size, size)
    example = torch.zeros(shape, dtype=torch.uint8)
    free = ("batch", "height", "width") if preprocess == "in_graph" else ("batch",)
    path, before = directory / FILES[format], set(directory.iterdir())
    try:
        with torch.inference_mode(False), torch.no_grad(), quiet():
            WRITE[format](module, example, free, path)
    except Exception as error:  # exporters fail in any way; every one means the same
        lines = str(error).strip().splitlines()
        raise RunError(
            f"the encoder cannot be written as {format} ({type(error).__name__}: "
            f"{lines[0] if lines else 'no reason given'}).\nLeave format={format} out."
        ) from error
    more = sorted(file.name for file in set(directory.iterdir()) - before - {path})
    return [path.name, *more]


def write_onnx(module: nn.Module, example: Tensor, free: tuple[str, ...], path: Path) -> None:
    """ONNX, its free dimensions named; weights beyond 2 GB go into a file of their own."""
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        input_names=["images"],
        output_names=["embeddings"],
        dynamic_shapes=({place: name for place, name in enumerate(free)},),  # noqa: C416
        verbose=False,
    )
    assert program is not None
    program.save(path)


def write_torchscript(
    module: nn.Module, example: Tensor, free: tuple[str, ...], path: Path
) -> None:
    """TorchScript by tracing; every dimension is free that the operations leave free."""
    del free
    torch.jit.save(torch.jit.trace(module, (example,), check_trace=False), path)


def write_exported_program(
    module: nn.Module, example: Tensor, free: tuple[str, ...], path: Path
) -> None:
    """torch.export, its free dimensions dynamic."""
    shapes = dict.fromkeys(range(len(free)), torch.export.Dim.DYNAMIC)
    torch.export.save(torch.export.export(module, (example,), dynamic_shapes=(shapes,)), path)


WRITE: dict[str, Callable[[nn.Module, Tensor, tuple[str, ...], Path], None]] = {
    "onnx": write_onnx,
    "torchscript": write_torchscript,
    "exported_program": write_exported_program,
}


def write_int8(source: Path, images: np.ndarray, path: Path) -> None:
    """An ONNX graph with int8 weights (one scale a channel) and int8 activations, for onnxruntime.

    images: uint8 [n, 3, s, s] that the ranges of activations are taken from.  Weights alone as int8 lose as
    much on convolutions and are slower; dynamic quantisation is meant for layers other than these.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    class Batches(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(np.array_split(images, -(-len(images) // 16)))

        def get_next(self) -> Any:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    with quiet():
        quantize(
            source,
            path,
            Batches(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )


def load(path: Path, format: str) -> Run:
    """A written graph as a function, on the CPU, in the run time it is meant for."""
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda images: np.asarray(session.run(None, {"images": images})[0])
    with quiet():
        module = (
            torch.jit.load(path) if format == "torchscript" else torch.export.load(path).module()
        )

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(images.copy())).numpy()

    return run


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out what exporters say of their own inner affairs."""
    roots = logging.getLogger().level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*is deprecated.*")
        tracer_warning = torch.jit.TracerWarning  # pyright: ignore[reportPrivateImportUsage]
        warnings.simplefilter("ignore", tracer_warning)  # the graph is compared anyway
        warnings.filterwarnings("ignore", message=".*No complete tensor found in the group.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
        warnings.filterwarnings("ignore", message=".*The tensor attributes? .* assigned during.*")
        logging.getLogger().setLevel(logging.ERROR)  # onnxruntime's quantiser logs to the root
        try:
            yield
        finally:
            logging.getLogger().setLevel(roots)
