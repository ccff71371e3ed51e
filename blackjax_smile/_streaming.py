"""Functions of draws and rows, evaluated block by block.

``fn(position, row)`` is evaluated for blocks of draws and blocks of rows; what a
block leaves is a running summary over the draws (`over_draws`) or a statistic of
all draws of a block of rows (`by_rows`).
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.types import Array, ArrayLikeTree, ArrayTree

from blackjax_smile import _tree
from blackjax_smile._checks import positive_integer
from blackjax_smile._jitted import jitted
from blackjax_smile._sharding import automatic
from blackjax_smile.minibatch import data_size

__all__ = [
    "Blocks",
    "by_rows",
    "by_rows_on_host",
    "flat_draws",
    "init_logsum",
    "init_mean",
    "over_draws",
    "update_logsum",
    "update_mean",
]


class Blocks(NamedTuple):
    """How many rows and how many draws are evaluated at once."""

    rows: int
    draws: int

    @classmethod
    def of(cls, batch_size: int, draw_batch_size: int) -> "Blocks":
        """Return the two, checked."""
        return cls(
            positive_integer("batch_size", batch_size),
            positive_integer("draw_batch_size", draw_batch_size),
        )


def flat_draws(positions: ArrayLikeTree) -> tuple[ArrayTree, tuple[int, int]]:
    """Return the draws with chains and draws in one leading axis, and the two lengths.

    Raises
    ------
    ValueError
        If the leaves do not share two leading axes, or there is no draw.
    """
    leaves = jax.tree_util.tree_leaves_with_path(positions)
    leading = {jax.tree_util.keystr(path) or "positions": jnp.shape(x)[:2] for path, x in leaves}
    lengths = set(leading.values())
    if len(lengths) != 1 or len(min(lengths)) < 2:
        raise ValueError(
            "Every leaf of the positions needs the same leading axes (chain, draw), but they lead "
            f"with {leading}. Add the axis of a single chain: jax.tree.map(lambda x: x[None], ...)."
        )
    chains, draws = lengths.pop()
    if chains * draws == 0:
        raise ValueError(f"There is no draw: the leading axes (chain, draw) are {(chains, draws)}.")

    def flatten(leaf):
        # As an array first: the draws of a store are not yet.
        return jnp.reshape(jnp.asarray(leaf), (chains * draws, *jnp.shape(leaf)[2:]))

    return jax.tree.map(flatten, automatic(positions)), (chains, draws)


def _row_indices(num_rows: int, block: int) -> Array:
    """Return indices of the rows in blocks of equal length; the last row fills the last."""
    num_blocks = -(-num_rows // block)
    return jnp.minimum(jnp.arange(num_blocks * block), num_rows - 1).reshape(num_blocks, block)


def _map_row_blocks(of_rows: Callable, data: ArrayTree, block: int) -> ArrayTree:
    """Return ``of_rows(rows)`` over blocks of rows, put together along the rows."""
    num_rows = data_size(data)
    indices = _row_indices(num_rows, min(block, num_rows))
    out = jax.lax.map(lambda i: of_rows(jax.tree.map(lambda x: x[i], data)), indices)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_rows], out)


def over_draws(
    fn: Callable, update: Callable, init: Callable, positions: Any, data: Any, blocks: Blocks
) -> Any:
    """Accumulate a summary over the draws, for each row.

    Parameters
    ----------
    fn
        ``(position, row) -> tree``.
    update
        ``(summary, values, is_valid) -> summary``; values lead with (draws of the
        block, rows of the block), ``is_valid`` marks the draws that count.
    init
        ``values -> summary``, from the shapes and dtypes of one block's values.
    positions, data
        Leading axes (draw,) and (row,).
    """
    with _axes_in_errors(positions, data):
        return jitted(_over_draws, fn, update, init, blocks)(positions, _as_arrays(data))


def _over_draws(fn, update, init, blocks: Blocks, positions, data):
    num_draws = data_size(positions)
    block = min(blocks.draws, num_draws)

    def of_rows(rows):
        def evaluate(first):
            indices = first + jnp.arange(block)
            some = jax.tree.map(lambda x: x[jnp.minimum(indices, num_draws - 1)], positions)
            values = jax.vmap(jax.vmap(fn, (None, 0)), (0, None))(some, rows)
            return values, indices < num_draws

        def step(summary, first):
            return update(summary, *evaluate(first)), None

        summary = init(jax.eval_shape(evaluate, 0)[0])
        return jax.lax.scan(step, summary, jnp.arange(0, num_draws, block))[0]

    return _map_row_blocks(of_rows, data, blocks.rows)


def _values(fn, block: int, positions, rows):
    """Return the values of all draws on some rows, ``(draw, row, ...)``."""
    of_draw = jax.vmap(fn, (None, 0))
    return jax.lax.map(lambda position: of_draw(position, rows), positions, batch_size=block)


def by_rows(fn: Callable, of_block: Callable, positions: Any, data: Any, blocks: Blocks) -> Any:
    """Return a statistic of all draws of each row.

    Parameters
    ----------
    fn
        ``(position, row) -> tree``.
    of_block
        ``values -> tree``: takes ``(draw, row, ...)`` for a block of rows, returns
        leaves that lead with the rows.
    positions, data
        Leading axes (draw,) and (row,).
    """
    with _axes_in_errors(positions, data):
        return jitted(_by_rows, fn, of_block, blocks)(positions, _as_arrays(data))


def _by_rows(fn, of_block, blocks: Blocks, positions, data):
    return _map_row_blocks(
        lambda rows: of_block(_values(fn, blocks.draws, positions, rows)), data, blocks.rows
    )


def by_rows_on_host(fn: Callable, positions: Any, data: Any, blocks: Blocks) -> Any:
    """Return the values of all draws on all rows, collected in host memory."""
    data = _as_arrays(data)
    num_rows = data_size(data)
    block = min(blocks.rows, num_rows)
    evaluate = jitted(_values, fn, blocks.draws)

    def empty(values: np.ndarray) -> np.ndarray:
        return np.empty((values.shape[0], num_rows, *values.shape[2:]), values.dtype)

    def put(out: np.ndarray, values: np.ndarray, first: int) -> None:
        part = out[:, first : first + block]
        part[...] = values[:, : part.shape[1]]

    out: Any = None
    for i, index in enumerate(_row_indices(num_rows, block)):
        rows = jax.tree.map(lambda x, index=index: x[index], data)
        with _axes_in_errors(positions, data):
            values = jax.device_get(evaluate(positions, rows))
        if out is None:
            out = jax.tree.map(empty, values)
        jax.tree.map(functools.partial(put, first=i * block), out, values)
    return out


@contextlib.contextmanager
def _axes_in_errors(positions: ArrayTree, data: ArrayTree) -> Iterator[None]:
    """Say in the model's own errors what it was called with: a forgotten axis shows here."""
    try:
        yield
    except Exception as error:
        shapes = [
            ", ".join(f"{name} {jnp.shape(leaf)[1:]}" for name, leaf in named.items())
            for named in (_tree.named_leaves(positions, "x"), _tree.named_leaves(data, "row"))
        ]
        error.add_note(
            "The function was called with one position and one row, of shapes "
            f"{shapes[0]} and {shapes[1]}. Positions lead with (chain, draw): a single chain's "
            "draws, (draw, ...), need jax.tree.map(lambda x: x[None], ...)."
        )
        raise


def _as_arrays(data: ArrayLikeTree) -> ArrayTree:
    data_size(data)  # raises if there is no common leading axis
    return jax.tree.map(jnp.asarray, automatic(data))


def init_mean(values: ArrayTree) -> tuple[Array, ArrayTree]:
    """Return the count and the mean of no draws."""

    def zeros(value):
        return jnp.zeros(value.shape[1:], _tree.accumulation_dtype(value))

    # A count per row: every leaf of a summary leads with the rows.
    return jnp.zeros(jax.tree.leaves(values)[0].shape[1]), jax.tree.map(zeros, values)


def update_mean(summary: tuple[Array, ArrayTree], values: ArrayTree, is_valid: Array):
    """Take a block of draws into the running mean."""
    count, mean = summary
    total = count + jnp.sum(is_valid, dtype=count.dtype)

    def add(m, v):
        v = v.astype(m.dtype)
        # A mean that is infinite stays so until the opposite infinity makes it NaN.
        counted = jnp.expand_dims(is_valid, range(1, v.ndim)) & ~(
            jnp.isinf(m)[None] & (jnp.isfinite(v) | (v == m[None]))
        )
        gain = jnp.sum(jnp.where(counted, v - m[None], 0), axis=0)
        return m + gain / jnp.expand_dims(total, range(1, m.ndim)).astype(m.dtype)

    return total, jax.tree.map(add, mean, values)


def init_logsum(values: Array) -> Array:
    """Return the logarithm of an empty sum."""
    if values.ndim != 2:
        raise ValueError(
            "The log-likelihood of a row must be a scalar, but it has the shape "
            f"{values.shape[2:]}. Sum it over the outputs."
        )
    return jnp.full(values.shape[1:], -jnp.inf, _tree.accumulation_dtype(values))


def update_logsum(total: Array, values: Array, is_valid: Array) -> Array:
    """Take a block of draws into the logarithm of the summed exponentials."""
    counted = jnp.where(is_valid[:, None], values.astype(total.dtype), -jnp.inf)
    return jnp.logaddexp(total, jax.nn.logsumexp(counted, axis=0))
