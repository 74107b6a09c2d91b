"""Milvus by pymilvus: a server, or Milvus Lite in a file."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pymilvus import DataType, MilvusClient

from dml.errors import ConfigurationError, Problem
from dml.index.servers import Stored, as_text, from_text

METRICS = {"cosine": "COSINE", "dot": "IP", "euclidean": "L2"}
NAMES = ["root", "path", "label"]
LONGEST = 65_535  # bytes of a text
PAGE = 1000
MOST = 16_384  # results of a search that Milvus gives


class Milvus:
    """The collection of an index.  See `dml.index.servers.Client`."""

    def __init__(self, address: str, collection: str):
        if "://" not in address and not address.endswith(".db"):
            what = "must be http://host:port, or a file that ends in .db (Milvus Lite)."
            raise ConfigurationError([Problem(f"address={address}", what)])
        self.client, self.name = MilvusClient(uri=address), collection

    def create(self, dim: int, similarity: str) -> None:
        """Make the collection."""
        schema = self.client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        for name in NAMES:
            schema.add_field(name, DataType.VARCHAR, max_length=LONGEST)
        params = self.client.prepare_index_params()
        params.add_index("vector", index_type="AUTOINDEX", metric_type=METRICS[similarity])
        self.client.create_collection(
            self.name, schema=schema, index_params=params, consistency_level="Strong"
        )

    def insert(self, images: Sequence[Stored]) -> None:
        """Add images; a number that is taken is overwritten."""
        self.client.upsert(self.name, [self._entity(image) for image in images])

    def _entity(self, image: Stored) -> dict[str, Any]:
        assert image.vector is not None
        names = {"root": image.root, "path": image.path, "label": as_text(image.label)}
        return {"id": image.row, "vector": image.vector.tolist(), **names}

    def delete(self, rows: Sequence[int]) -> None:
        """Remove images."""
        self.client.delete(self.name, ids=list(rows))

    def search(self, vectors: np.ndarray, k: int, where: str | None) -> list[list[Stored]]:
        """Candidates of each query, with vectors."""
        if k > MOST:
            raise ValueError(f"Milvus finds at most {MOST} images at once")
        found = self.client.search(
            self.name,
            vectors.tolist(),
            filter="" if where is None else f"label == {literal(as_text(where))}",
            limit=k,
            output_fields=[*NAMES, "vector"],
        )
        return [
            [self._stored({"id": hit["id"], **hit["entity"]}) for hit in hits] for hits in found
        ]

    def get(self, rows: Sequence[int]) -> list[Stored]:
        """Images by row, with vectors."""
        found = self.client.get(self.name, list(rows), output_fields=["id", *NAMES, "vector"])
        return [self._stored(entity) for entity in found]

    def everything(self) -> Iterator[Stored]:
        """All images, without vectors, page by page in the order of their rows."""
        last = -1
        while True:
            page = self.client.query(
                self.name, filter=f"id > {last}", output_fields=["id", *NAMES], limit=PAGE
            )
            if not page:
                return
            page.sort(key=lambda entity: entity["id"])
            for entity in page:
                yield self._stored(entity)
            last = page[-1]["id"]

    def find(self, root: str, path: str) -> int | None:
        """The row of a path."""
        found = self.client.query(
            self.name,
            filter=f"root == {literal(root)} and path == {literal(path)}",
            output_fields=["id"],
        )
        return int(found[0]["id"]) if found else None

    def count(self) -> int:
        """How many images there are."""
        found = self.client.query(self.name, filter="", output_fields=["count(*)"])
        return int(found[0]["count(*)"])

    def exists(self) -> bool:
        """Whether the collection is there."""
        return bool(self.client.has_collection(self.name))

    def drop(self) -> None:
        """Remove the collection."""
        self.client.drop_collection(self.name)

    def close(self) -> None:
        """Close the connection."""
        self.client.close()

    def _stored(self, entity: dict[str, Any]) -> Stored:
        vector = entity.get("vector")
        return Stored(
            int(entity["id"]),
            entity["root"],
            entity["path"],
            from_text(entity["label"]),
            None if vector is None else np.asarray(vector, dtype=np.float32),
        )


def literal(text: str) -> str:
    """A text within a filter; Milvus Lite knows no templates.  Escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False)
