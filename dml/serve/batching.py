"""Images of concurrent requests, embedded together."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger("dml")


class Closed(RuntimeError):
    """The batcher was closed before the image was embedded."""


class Batcher:
    """A thread that embeds what others submit, several images at once.

    embed: uint8 [n, 3, s, s] -> float32 [n, dim].  The first image of a batch waits at most `wait` seconds
    for others, and a batch holds at most `most`.  batches, images: how many there were so far.
    """

    def __init__(self, embed: Callable[[Tensor], Tensor], most: int, wait: float):
        self._embed, self._most, self._wait = embed, most, wait
        self._queue: queue.Queue[tuple[Tensor, Future[np.ndarray]] | None] = queue.Queue()
        self._lock = threading.Lock()  # nothing is submitted after the None that ends the thread
        self._closed = False
        self.batches = self.images = 0
        self._thread = threading.Thread(target=self._work, name="embedding", daemon=True)
        self._thread.start()

    def submit(self, pixels: Tensor) -> "Future[np.ndarray]":
        """One image, uint8 [3, s, s]; its embedding comes as float32 [dim].

        A future cancelled before its batch begins costs nothing.  Raises Closed.
        """
        future: Future[np.ndarray] = Future()
        with self._lock:
            if self._closed:
                raise Closed("the server is stopping")
            self._queue.put((pixels, future))
        return future

    def close(self) -> None:
        """End the thread after the batch at work; images still waiting get `Closed`."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            if self._closed:
                for _, future in batch:
                    future.set_exception(Closed("the server is stopping"))
                continue
            try:
                found = self._embed(torch.stack([pixels for pixels, _ in batch])).numpy()
            except Exception as error:  # whatever it is, those who wait must learn of it
                log.exception("A batch of %d images could not be embedded:", len(batch))
                for _, future in batch:
                    future.set_exception(error)
                continue
            self.batches += 1
            self.images += len(batch)
            for (_, future), row in zip(batch, found, strict=True):
                future.set_result(row)

    def _next(self) -> list[tuple[Tensor, Future[np.ndarray]]]:
        """The next batch, without what was cancelled; empty: no more will come."""
        batch: list[tuple[Tensor, Future[np.ndarray]]] = []
        until: float | None = None
        while len(batch) < self._most:
            try:
                left = None if until is None else max(0.0, until - time.monotonic())
                got = self._queue.get(timeout=left)
            except queue.Empty:
                break
            if got is None:
                if batch:
                    self._queue.put(None)  # for the call after this batch
                break
            if got[1].set_running_or_notify_cancel():
                batch.append(got)
                until = until or time.monotonic() + self._wait
        return batch
