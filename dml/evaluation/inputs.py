"""What `evaluate` accepts: arrays, checked and brought into one form.

Every refusal is a ValueError that names the argument and what is wrong with it.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray


@dataclass(frozen=True)
class Inputs:
    """Checked arguments of `evaluate`.

    query [q, d], gallery [g, d]: real numbers, finite in float32; gallery None for the queries.
    query_labels [q], gallery_labels [g]: int64.  ids [q]: the queries' ids, or their positions.
    self_column: int64 [q], the gallery position with the query's id, or -1.
    """

    query: Tensor
    query_labels: np.ndarray
    gallery: Tensor | None
    gallery_labels: np.ndarray | None
    ids: np.ndarray
    self_column: np.ndarray

    @property
    def gallery_size(self) -> int:
        """Items in the gallery, the query itself included where it is there."""
        return len(self.query if self.gallery is None else self.gallery)


def checked(
    query: Array,
    query_labels: Array,
    gallery: Array | None,
    gallery_labels: Array | None,
    query_ids: Array | None,
    gallery_ids: Array | None,
    device: torch.device,
) -> Inputs:
    """The arguments of `evaluate` in one form, embeddings on `device`; see there."""
    values = _embeddings("query", query, device)
    labels = _labels("query_labels", query_labels, len(values), "query")
    ids = np.arange(len(values))
    if query_ids is not None:
        ids = _ids("query_ids", query_ids, len(values), "query")
    if gallery is None:
        for name, value in (("gallery_labels", gallery_labels), ("gallery_ids", gallery_ids)):
            if value is not None:
                raise ValueError(f"{name} is given without gallery")
        return Inputs(values, labels, None, None, ids, np.arange(len(values)))
    others = _embeddings("gallery", gallery, device)
    if others.shape[1] != values.shape[1]:
        raise ValueError(
            f"query has {values.shape[1]} dimensions and gallery {others.shape[1]}; "
            "both must come from the same encoder"
        )
    if gallery_labels is None:
        raise ValueError("gallery is given without gallery_labels")
    other_labels = _labels("gallery_labels", gallery_labels, len(others), "gallery")
    if (query_ids is None) != (gallery_ids is None):
        missing = "query_ids" if query_ids is None else "gallery_ids"
        raise ValueError(f"{missing} is missing: ids are needed for both sets, or for neither")
    self_column = np.full(len(values), -1)
    if gallery_ids is not None:
        other_ids = _ids("gallery_ids", gallery_ids, len(others), "gallery")
        if (ids.dtype.kind in "iu") != (other_ids.dtype.kind in "iu"):
            raise ValueError(f"query_ids hold {ids.dtype} and gallery_ids {other_ids.dtype}")
        self_column = _positions(ids, other_ids)
    return Inputs(values, labels, others, other_labels, ids, self_column)


def one_of(name: str, value: object, legal: Sequence[str]) -> None:
    """Refuse a value that is not among `legal`."""
    if value not in legal:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(legal)}")


def _embeddings(name: str, value: Array, device: torch.device) -> Tensor:
    """Real numbers [n, d] on `device`, checked; float64 stays float64 here."""
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{name} holds {array.dtype}, not real numbers")
        native = array.dtype.kind == "f" and array.dtype.itemsize <= 8
        kind = array.dtype.newbyteorder("=") if native else np.float64
        array = np.ascontiguousarray(array, dtype=kind)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # read-only memory is only read
            value = torch.from_numpy(array)
    elif value.is_complex() or value.dtype == torch.bool:
        raise ValueError(f"{name} holds {value.dtype}, not real numbers")
    value = value.detach()
    if value.ndim != 2:
        raise ValueError(f"{name} has shape {list(value.shape)}; expected [items, dimensions]")
    if 0 in value.shape:
        raise ValueError(f"{name} is empty: shape {list(value.shape)}")
    value = value.to(device)
    rows = max(1, (1 << 20) // value.shape[1])
    bad = [
        start + (~part.float().isfinite().all(1)).nonzero()[:, 0]
        for start, part in zip(range(0, len(value), rows), value.split(rows), strict=True)
    ]
    bad = torch.cat(bad).tolist()
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise ValueError(
            f"{name} holds NaN, infinity or numbers beyond float32 in row"
            f"{'s' if len(bad) > 1 else ''} {', '.join(map(str, bad[:5]))}{more}"
        )
    return value


def _labels(name: str, value: Array, length: int, of: str) -> np.ndarray:
    """int64 [length]."""
    array = _vector(name, value, length, of)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} holds {array.dtype}; labels must be integers")
    return _int64(name, array)


def _int64(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} holds {array.max()}, beyond int64")
    return array.astype(np.int64)


def _vector(name: str, value: Array, length: int, of: str) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {list(array.shape)}; expected one dimension")
    if len(array) != length:
        raise ValueError(f"{name} has {len(array)} entries for {length} rows of {of}")
    return array


def _ids(name: str, value: Array, length: int, of: str) -> np.ndarray:
    array = _vector(name, value, length, of)
    if array.dtype.kind not in "iuUS":
        raise ValueError(f"{name} holds {array.dtype}; ids must be integers or strings")
    if array.dtype.kind in "iu":
        array = _int64(name, array)
    distinct, counts = np.unique(array, return_counts=True)
    if len(distinct) < length:
        twice = distinct[counts > 1][:5].tolist()
        raise ValueError(
            f"{name} must be unique: {length - len(distinct)} repeat, for example {twice[0]!r}"
        )
    return array


def _positions(wanted: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Where each of `wanted` is in `among`, or -1."""
    order = np.argsort(among, kind="stable")
    place = np.searchsorted(among, wanted, sorter=order)
    candidate = order[np.minimum(place, len(among) - 1)]
    return np.where(among[candidate] == wanted, candidate, -1)
