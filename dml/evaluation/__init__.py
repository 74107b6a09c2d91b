"""Retrieval metrics of embeddings: exact, bounded in memory, right under ties."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dml.evaluation.result import Result
    from dml.evaluation.retrieval import evaluate, evaluate_detailed

__all__ = ["Result", "evaluate", "evaluate_detailed"]


def __getattr__(name: str) -> Any:
    """Import torch only for those who evaluate: names of metrics are checked without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("dml.evaluation.retrieval"), name)
