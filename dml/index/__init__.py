"""Embedded images on disk, searchable: what `dml-index` writes and `dml-search` asks.

Imports neither torch nor Faiss until an index is opened or written.
"""

from dml.index.hits import Calibration, Hit, Item
from dml.index.opening import open_index
from dml.index.searchable import Searchable
from dml.index.store import Index

__all__ = ["Calibration", "Hit", "Index", "Item", "Searchable", "open_index"]
