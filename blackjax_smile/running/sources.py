"""Where minibatches come from: a function on the device, arrays, files, loaders.

A `HostSource` yields the minibatches of one gradient after another; what is
random in it is a function of the gradient's number, or it can say where it is.
"""

import base64
import math
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from blackjax.types import ArrayTree

from blackjax_smile._epochs import EpochDetector
from blackjax_smile.minibatch import (
    check_batch_size,
    check_no_data_set,
    data_size,
    minibatch_sampler,
)
from blackjax_smile.running.fingerprint import MAX_ELEMENTS, digest

__all__ = ["HostSource", "RowSampler", "Stream", "open_source"]

#: Rows of an array that are read to tell data sets apart.
MAX_DIGESTED_ROWS = 1024


class HostSource(Protocol):
    """Minibatches of this process's chains on the host, gradient by gradient."""

    def read(self, first: int, count: int) -> tuple[ArrayTree, int]:
        """Return up to ``count`` gradients' minibatches, stacked, and how many there are."""
        ...

    def position(self) -> Any:
        """Return where the source is, as JSON, or None if its number says it all."""
        ...

    def seek(self, gradient: int, position: Any, skip: int) -> None:
        """Go to a gradient: ``skip`` gradients after ``position`` if that is known."""
        ...

    def example(self) -> ArrayTree:
        """Return the shapes and dtypes of one minibatch."""
        ...

    @property
    def first(self) -> ArrayTree:
        """One minibatch, which is not taken away."""
        ...

    @property
    def description(self) -> str: ...


class RowSampler:
    """Minibatches of rows, drawn with replacement, of arrays that stay on the host.

    For memory-mapped files larger than memory: rows are read as they are needed.
    The indices of a gradient are a function of the seed and its number alone.
    """

    def __init__(
        self, data: ArrayTree, batch_size: int, seed: np.ndarray, axes: tuple, chains: slice
    ):
        self.size = data_size(data)
        self.batch_size = check_batch_size(batch_size, self.size)
        self.data, self.axes, self.chains = data, axes, chains
        self.key = int.from_bytes(np.asarray(seed, np.uint32).tobytes()[:16], "little")

    @property
    def description(self) -> str:
        rows = digest(self._some_rows(leaf) for leaf in jax.tree.leaves(self.data))
        return f"rows of {self.size} ({rows}), {self.batch_size} each, drawn on the host"

    def _some_rows(self, leaf: Any) -> np.ndarray:
        """Return rows from all over, to tell data sets apart; the file need not be read for it."""
        row_size = max(math.prod(leaf.shape[1:]), 1)
        count = min(max(MAX_ELEMENTS // row_size, 2), MAX_DIGESTED_ROWS, self.size)
        return np.asarray(leaf[np.linspace(0, self.size - 1, count).astype(int)])

    @property
    def first(self) -> ArrayTree:
        return jax.tree.map(lambda leaf: np.asarray(leaf[: self.batch_size]), self.data)

    def example(self) -> ArrayTree:
        return jax.tree.map(
            lambda leaf: _like((self.batch_size, *leaf.shape[1:]), leaf.dtype), self.data
        )

    def indices(self, gradient: int) -> np.ndarray:
        """Return the rows of one gradient's minibatches."""
        generator = np.random.Generator(np.random.Philox(key=self.key, counter=gradient << 64))
        indices = generator.integers(0, self.size, (*self.axes, self.batch_size))
        return indices[self.chains] if self.axes else indices

    def read(self, first: int, count: int) -> tuple[ArrayTree, int]:
        indices = np.stack([self.indices(first + i) for i in range(count)])
        # In the order of the file; the halves of a minibatch must not be sorted.
        rows, places = np.unique(indices, return_inverse=True)
        places = places.reshape(indices.shape)

        def take(leaf):
            # By indexing: np.take would copy all of a leaf that is a view of some columns.
            return np.asarray(leaf[rows])[places]

        return jax.tree.map(take, self.data), count

    def position(self) -> None:
        return None

    def seek(self, gradient: int, position: Any, skip: int) -> None:
        del gradient, position, skip


#: Of one loader's epochs so many chains, which take turns, see parts that are as good as
#: independent: variances of 0.58, 0.91, 0.98, 1.01 for 1, 2, 4, 8 (`benchmarks/README.md`).
ENOUGH_TURNS = 4


class Stream:
    """Minibatches from an iterable or iterator on the host, one per chain and gradient.

    Where it is can be told if the iterator has ``get_state`` and ``set_state`` (as
    grain's) or the iterable ``state_dict`` and ``load_state_dict``; otherwise a
    resumed run takes and drops the minibatches that were used.
    """

    def __init__(self, iterable: Iterable[ArrayTree], num_chains: int | None):
        self.iterable, self.num_chains = iterable, num_chains
        self.detector = EpochDetector()
        self.iterator: Iterator = iter(iterable)
        self.ahead: list = []
        self.before: Any = self._state()
        self.has_state = self.before is not None
        first = self.first = self._next()
        if first is None:
            raise ValueError("The iterable of minibatches is empty.")
        self.ahead = [first]
        self.structure: Any = jax.tree.structure(first)
        self.shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(first)]

    @property
    def per_gradient(self) -> int:
        """Minibatches that a gradient of all (local) chains takes."""
        return self.num_chains or 1

    @property
    def narrows(self) -> bool:
        """Whether each chain sees so much of each epoch that its posterior is too narrow."""
        return self.detector.in_epochs and self.per_gradient < ENOUGH_TURNS

    @property
    def description(self) -> str:
        return f"an iterable, {self.per_gradient} minibatches for each gradient"

    @property
    def first_digest(self) -> str | None:
        """What the first minibatch shows of the data; None where a state says what comes first."""
        return None if self.has_state else digest(jax.tree.leaves(self.first))

    def example(self) -> ArrayTree:
        return jax.tree.map(lambda x: _like(x.shape, x.dtype), self.first)

    def _next(self) -> ArrayTree:
        if self.ahead:
            return self.ahead.pop()
        try:
            minibatch = next(self.iterator)
        except StopIteration:
            return None
        minibatch = jax.tree.map(np.asarray, minibatch)
        self.detector.look(minibatch)
        return minibatch

    def read(self, first: int, count: int) -> tuple[ArrayTree, int]:
        del first
        rows: list = []
        for _ in range(count):
            minibatches = [self._checked() for _ in range(self.per_gradient)]
            if minibatches[-1] is None:
                break
            stack = jax.tree.map(lambda *xs: np.stack(xs), *minibatches)
            rows.append(stack if self.num_chains else minibatches[0])
        if not rows:
            return None, 0
        return jax.tree.map(lambda *xs: np.stack(xs), *rows), len(rows)

    def _checked(self) -> ArrayTree:
        minibatch = self._next()
        if minibatch is None:
            return None
        shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(minibatch)]
        if jax.tree.structure(minibatch) != self.structure or shapes != self.shapes:
            raise ValueError(
                "Every minibatch of the iterable must have the same structure, shapes and dtypes: "
                f"one has {shapes}, the first had {self.shapes}. Drop an epoch's short last batch "
                "(drop_last=True for a data loader)."
            )
        return minibatch

    def _state(self) -> Any:
        """Return the state of what was handed to us, encoded, or None if it has none."""
        for owner, method in ((self.iterator, "get_state"), (self.iterable, "state_dict")):
            if hasattr(owner, method):
                return base64.b64encode(pickle.dumps(getattr(owner, method)())).decode()
        return None

    def position(self) -> Any:
        return self.before if self.ahead else self._state()

    def seek(self, gradient: int, position: Any, skip: int) -> None:
        if position is not None:
            state = pickle.loads(base64.b64decode(position))
            if hasattr(self.iterator, "set_state"):
                self.iterator.set_state(state)
            else:
                self.iterable.load_state_dict(state)  # type: ignore[attr-defined]
                self.iterator = iter(self.iterable)
            self.ahead, gradient = [], skip
        for _ in range(gradient * self.per_gradient):
            if self._next() is None:
                raise ValueError(
                    f"The run to be resumed had taken {gradient} minibatches for each of "
                    f"{self.per_gradient} chains; the iterable ends before. Pass the same one, "
                    "from its start."
                )


def open_source(
    minibatches: Any,
    batch_size: int | None,
    seed: np.ndarray,
    num_chains: int,
    local_chains: slice,
    shared: bool,
) -> Callable | HostSource:
    """Return a function ``rng_key -> minibatch`` for the device, or a source on the host."""
    if batch_size is not None:
        if callable(minibatches):
            raise ValueError("batch_size belongs to arrays; minibatches is a function already.")
        # To JAX an iterator or a loader is a leaf.
        is_leaf = jax.tree_util.all_leaves([minibatches]) and not hasattr(minibatches, "shape")
        if is_leaf and isinstance(minibatches, Iterable):
            raise ValueError(
                f"batch_size belongs to arrays; minibatches is a {type(minibatches).__name__}. If "
                "it yields minibatches, drop batch_size."
            )
        leaves = jax.tree.leaves(minibatches)
        if any(_stays_on_host(leaf) for leaf in leaves) or shared:
            axes = () if shared else (num_chains,)
            return RowSampler(minibatches, batch_size, seed, axes, local_chains)
        return minibatch_sampler(minibatches, batch_size)
    if callable(minibatches):
        if shared:
            raise ValueError(
                "share_minibatches=True is for minibatches from the host; drawn on the device, "
                "each chain has its own at no cost."
            )
        return minibatches
    check_no_data_set(minibatches, "pass batch_size with it")
    if not isinstance(minibatches, Iterable) or isinstance(minibatches, str | bytes):
        raise ValueError(
            "minibatches must be a function rng_key -> minibatch, arrays with batch_size, or an "
            f"iterable of minibatches; got {type(minibatches).__name__}."
        )
    local = None if shared else local_chains.stop - local_chains.start
    return Stream(minibatches, local)


def _stays_on_host(leaf: Any) -> bool:
    """Whether a leaf is a view of a file (memory-mapped), which must not be loaded whole."""
    while isinstance(leaf, np.ndarray):
        if isinstance(leaf, np.memmap):
            return True
        leaf = leaf.base
    return False


def _like(shape: tuple, dtype: Any) -> jax.ShapeDtypeStruct:
    """Return what an array becomes on the device, where float64 may not be enabled."""
    return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype))
