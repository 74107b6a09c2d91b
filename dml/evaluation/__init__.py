"""Retrieval metrics of embeddings: exact, bounded in memory, right under ties."""

from dml.evaluation.evaluate import Result, evaluate, evaluate_detailed

__all__ = ["Result", "evaluate", "evaluate_detailed"]
