"""The model card of a bundle: README.md in the form of the Hugging Face Hub."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dml.bundle import ImageEncoder
from dml.bundle_format import Description

COLUMNS = {
    "frozen": "trunk before training",
    "untrained": "as initialised",
    "val": "val",
    "test": "test",
}


def written(encoder: ImageEncoder, name: str, license: str | None) -> str:
    """The card as Markdown.  name: of the bundle.  license: as the hub names it, or None: not stated."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown; values of the front matter go through `quoted`
    )
    environment.filters["quoted"] = json.dumps  # JSON's text is YAML's
    told = encoder.description
    return environment.get_template("card.md.j2").render(
        name=name,
        license=license,
        told=told,
        metrics=metric_rows(told),
        fingerprint=encoder.fingerprint,
    )


def metric_rows(told: Description) -> dict[str, Any]:
    """Columns and rows of the table of metrics; empty without a record."""
    metrics = {} if told.training is None else told.training.metrics
    splits = [split for split in COLUMNS if split in metrics]
    names = list(metrics.get("test", {}))
    rows = [(name, [metrics[split].get(name) for split in splits]) for name in names]
    return {"columns": [COLUMNS[split] for split in splits], "rows": rows}
