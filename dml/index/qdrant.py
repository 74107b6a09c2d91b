"""Qdrant by qdrant-client: a server, or its embedded form in a directory."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models

from dml.index.servers import Stored, as_text, from_text

METRICS = {
    "cosine": models.Distance.COSINE,
    "dot": models.Distance.DOT,
    "euclidean": models.Distance.EUCLID,
}
PAGE = 1000


class Qdrant:
    """The collection of an index.  See `dml.index.servers.Client`."""

    def __init__(self, address: str, collection: str):
        self.remote, self.name = "://" in address, collection
        self.client = QdrantClient(url=address) if self.remote else QdrantClient(path=address)

    def create(self, dim: int, similarity: str) -> None:
        """Make the collection, with indexes over what is filtered by."""
        self.client.create_collection(
            self.name, vectors_config=models.VectorParams(size=dim, distance=METRICS[similarity])
        )
        if self.remote:  # the embedded form has none, and needs none
            for name in ("label", "path"):
                self.client.create_payload_index(
                    self.name, name, field_schema=models.PayloadSchemaType.KEYWORD
                )

    def insert(self, images: Sequence[Stored]) -> None:
        """Add images; a number that is taken is overwritten."""
        points = []
        for image in images:
            assert image.vector is not None
            names = {"root": image.root, "path": image.path, "label": as_text(image.label)}
            points.append(
                models.PointStruct(id=image.row, vector=image.vector.tolist(), payload=names)
            )
        self.client.upsert(self.name, points, wait=True)

    def delete(self, rows: Sequence[int]) -> None:
        """Remove images."""
        self.client.delete(self.name, models.PointIdsList(points=list(rows)), wait=True)

    def search(self, vectors: np.ndarray, k: int, where: str | None) -> list[list[Stored]]:
        """Candidates of each query, with vectors."""
        condition = None if where is None else same(label=as_text(where))
        requests = [
            models.QueryRequest(
                query=vector.tolist(),
                limit=k,
                filter=condition,
                with_payload=True,
                with_vector=True,
            )
            for vector in vectors
        ]
        found = self.client.query_batch_points(self.name, requests)
        return [[stored(point) for point in answer.points] for answer in found]

    def get(self, rows: Sequence[int]) -> list[Stored]:
        """Images by row, with vectors."""
        found = self.client.retrieve(
            self.name, ids=list(rows), with_payload=True, with_vectors=True
        )
        return [stored(point) for point in found]

    def everything(self) -> Iterator[Stored]:
        """All images, without vectors, page by page."""
        offset: Any = None
        while True:
            page, offset = self.client.scroll(self.name, limit=PAGE, offset=offset)
            for point in page:
                yield stored(point)
            if offset is None:
                return

    def find(self, root: str, path: str) -> int | None:
        """The row of a path."""
        found, _ = self.client.scroll(self.name, same(root=root, path=path), limit=1)
        return int(found[0].id) if found else None

    def count(self) -> int:
        """How many images there are."""
        return self.client.count(self.name, exact=True).count

    def exists(self) -> bool:
        """Whether the collection is there."""
        return self.client.collection_exists(self.name)

    def drop(self) -> None:
        """Remove the collection."""
        self.client.delete_collection(self.name)

    def close(self) -> None:
        """Close the connection."""
        self.client.close()


def same(**values: str) -> models.Filter:
    """Payload fields that must have these values."""
    return models.Filter(
        must=[
            models.FieldCondition(key=name, match=models.MatchValue(value=value))
            for name, value in values.items()
        ]
    )


def stored(point: Any) -> Stored:
    """An image out of a point."""
    payload = point.payload
    return Stored(
        int(point.id),
        payload["root"],
        payload["path"],
        from_text(payload["label"]),
        None if point.vector is None else np.asarray(point.vector, dtype=np.float32),
    )
