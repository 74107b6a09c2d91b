"""Classes of a user's own, for tests of what a command line may name."""

from dataclasses import replace
from typing import Any

from dml.data.index import ImageIndex
from dml.data.sets import csv_file


def load(**options: Any) -> ImageIndex:
    """The images of a labels file under a name of one's own."""
    return replace(csv_file.load(**options), name="own")
