"""Minibatches read and put on the device by a thread, while the steps run."""

import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from blackjax.types import ArrayTree

from blackjax_smile.running.sources import HostSource

__all__ = ["DeviceBlock", "Prefetcher"]

#: Bytes of minibatches in a block; two blocks wait and one is in use.
BLOCK_BYTES = 16 * 2**20

#: A block of more gradients no longer saves time.
MAX_BLOCK = 64


class DeviceBlock(NamedTuple):
    """Minibatches of ``num_gradients`` gradients from ``first`` on, on the device.

    position
        Where the source was before the block.
    is_last
        Whether the source has ended.
    """

    minibatches: ArrayTree
    first: int
    num_gradients: int
    position: Any
    is_last: bool


class Prefetcher:
    """Reads blocks ahead; use as a context manager, which ends the thread."""

    def __init__(self, source: HostSource, put: Callable, num_gradients: int, per_gradient: int):
        self.source, self.put, self.num_gradients = source, put, num_gradients
        example = jax.tree.leaves(source.example())
        size = per_gradient * sum(leaf.size * leaf.dtype.itemsize for leaf in example)
        self.length = int(min(max(BLOCK_BYTES // max(size, 1), 1), MAX_BLOCK))
        self.queue: queue.Queue = queue.Queue(maxsize=2)
        self.stopping = threading.Event()
        self.thread: threading.Thread | None = None
        self.block: DeviceBlock | None = None

    def start(self, gradient: int, position: dict | None) -> None:
        """Begin at a gradient; ``position`` is what `position_at` returned there."""
        position = position or {"state": None, "skip": gradient}
        self.source.seek(gradient, position["state"], position["skip"])
        self.thread = threading.Thread(
            target=self._produce, args=(gradient,), name="minibatches", daemon=True
        )
        self.thread.start()

    def _produce(self, first: int) -> None:
        try:
            is_last = False
            while first < self.num_gradients and not is_last and not self.stopping.is_set():
                position = self.source.position()
                # What comes after the run's end may be short or broken, and is not needed.
                wanted = min(self.length, self.num_gradients - first)
                minibatches, count = self.source.read(first, wanted)
                is_last = count < wanted
                placed = self.put(self._padded(minibatches, count)) if count else None
                self._hand_over(DeviceBlock(placed, first, count, position, is_last))
                first += count
        except BaseException as error:
            self._hand_over(error)

    def _padded(self, minibatches: ArrayTree, count: int) -> ArrayTree:
        """Return a short block in the shape that the program is compiled for."""
        if count == self.length:
            return minibatches
        at = np.minimum(np.arange(self.length), count - 1)
        return jax.tree.map(lambda leaf: leaf[at], minibatches)

    def _hand_over(self, item: Any) -> None:
        while not self.stopping.is_set():
            try:
                return self.queue.put(item, timeout=0.1)
            except queue.Full:
                continue

    def block_at(self, gradient: int) -> DeviceBlock | None:
        """Return the block that holds a gradient, or None if the source has ended."""
        while self.block is None or gradient >= self.block.first + self.block.num_gradients:
            if self.block is not None and self.block.is_last:
                return None
            item = self.queue.get()
            if isinstance(item, BaseException):
                raise item
            self.block = item
        return self.block

    def position_at(self, gradient: int) -> dict | None:
        """Return where the source was at a gradient of the block in use, or at its end."""
        block = self.block
        if block is None:
            return None
        return {"state": block.position, "skip": gradient - block.first} if block.position else None

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *_: Any) -> None:
        self.stopping.set()
        if self.thread is not None:
            self.thread.join(timeout=10)
