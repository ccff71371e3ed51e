"""Arithmetic on pytrees of arrays, leaf by leaf.

Nothing here ravels large leaves: a copy into one flat vector costs as much as a
pass of the dynamics.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.types import Array, ArrayLikeTree, ArrayTree, PRNGKey

__all__ = [
    "add_scaled",
    "all_finite",
    "as_float_tree",
    "init_residual",
    "is_traced",
    "move",
    "named_leaves",
    "random_normals",
    "random_signs",
    "reduce_scalars",
    "scalar_dtype",
    "select",
    "unstack",
    "vdot",
]

#: Up to this number of elements the leaves of a dtype share one draw of random numbers; larger
#: ones are drawn by themselves, so that nothing large is copied out of a common vector.
SMALL_LEAF = 4096

#: Up to this number of scalars are combined one by one, which saves a kernel.
FEW_SCALARS = 16


def named_leaves(tree: ArrayLikeTree, var_name: str = "x") -> dict[str, Any]:
    """Return the leaves of a tree under their paths, joined by dots, in its order.

    ``var_name`` names a bare array, and is the stem of the names of a sequence's.
    """
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        # A bare number is no name.
        indexed = bool(path) and isinstance(path[0], jax.tree_util.SequenceKey)
        parts = [var_name] if indexed or not path else []
        parts += [jax.tree_util.keystr((key,), simple=True) for key in path]
        # netCDF keeps "/" for its groups; flat dicts of some libraries use it as well.
        name = ".".join(parts).replace("/", ".")
        if name in named:
            raise ValueError(f"Two leaves of the position have the name {name!r}: rename one.")
        named[name] = leaf
    return named


def as_float_tree(position: ArrayLikeTree) -> ArrayTree:
    """Return ``position`` with array leaves; raise if a leaf is not floating."""

    def convert(path, leaf):
        name = jax.tree_util.keystr(path) or "the position"
        try:
            leaf = jnp.asarray(leaf)
        except TypeError as error:
            raise ValueError(
                f"A position needs leaves that are arrays of numbers, but {name} is a "
                f"{type(leaf).__name__}. Keep what is not sampled (names, functions) out of it."
            ) from error
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"A position needs floating-point leaves, but {name} has dtype "
                f"{leaf.dtype}. Convert it, e.g. with `jnp.asarray(x, float)`; "
                "a discrete parameter cannot be sampled by gradients."
            )
        return leaf

    return jax.tree_util.tree_map_with_path(convert, position)


def accumulation_dtype(leaf) -> jnp.dtype:
    """Return the dtype in which a leaf's sums are kept: float32 or wider."""
    dtype = jnp.result_type(leaf)
    # NumPy's table for floats: jnp.promote_types refuses where promotion is strict.
    is_float = jnp.issubdtype(dtype, jnp.inexact)
    return np.promote_types(dtype, np.float32) if is_float else jnp.dtype(np.float32)


def scalar_dtype(tree: ArrayLikeTree) -> jnp.dtype:
    """Return the dtype of a tree's norms: float32, or the widest leaf's if wider."""
    dtype = jnp.dtype(jnp.float32)
    for leaf in jax.tree.leaves(tree):
        dtype = np.promote_types(dtype, accumulation_dtype(leaf))
    return dtype


def vdot(a: ArrayTree, b: ArrayTree) -> Array:
    """Return the inner product of two trees, accumulated in `scalar_dtype`."""
    # A sum of products fuses with what computes `a` and `b`; jnp.vdot would
    # write both to memory first.
    dtype = scalar_dtype((a, b))
    return sum(
        (
            jnp.sum(x.astype(accumulation_dtype(x)) * y.astype(accumulation_dtype(y))).astype(dtype)
            for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        ),
        start=jnp.zeros((), dtype),
    )


def reduce_scalars(function: Callable[[Array], Array], scalars: list[Array]) -> Array:
    """Return ``function`` (a sum, a maximum) of one scalar from each leaf of a tree.

    The barrier keeps XLA from making a chain of operations of the reduction, which it would repeat
    in every kernel that needs the result: their number squared, minutes of compilation for the
    leaves of a deep network.
    """
    stacked = jnp.stack(scalars)
    if len(scalars) > FEW_SCALARS:
        stacked = jax.lax.optimization_barrier(stacked)
    return function(stacked)


def add_scaled(tree: ArrayTree, scale: Array, direction: ArrayTree) -> ArrayTree:
    """Return ``tree + scale * direction`` in the dtypes of ``tree``."""
    return jax.tree.map(
        lambda x, v: (x + scale.astype(v.dtype) * v).astype(x.dtype), tree, direction
    )


def init_residual(tree: ArrayTree) -> ArrayTree:
    """Return a float32 zero for each leaf of lower precision, and None for the others."""
    low = [jnp.finfo(leaf.dtype).bits < 32 for leaf in jax.tree.leaves(tree)]
    zeros = [
        jnp.zeros(leaf.shape, jnp.float32) if is_low else None
        for is_low, leaf in zip(low, jax.tree.leaves(tree), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), zeros)


def move(
    tree: ArrayTree, residual: ArrayTree, scale: Array, direction: ArrayTree
) -> tuple[ArrayTree, ArrayTree]:
    """Return ``tree + scale * direction`` and what its rounding left behind.

    In bfloat16 a small step would be rounded away every time; ``residual`` (see
    `init_residual`) keeps it in float32, so that small steps add up.
    """

    def add(x, r, v):
        start = x if r is None else x.astype(r.dtype) + r
        return start + scale.astype(v.dtype) * v

    exact = jax.tree.map(add, tree, residual, direction)
    rounded = jax.tree.map(lambda e, x: e.astype(x.dtype), exact, tree)
    left = jax.tree.map(
        lambda x, e, r: None if r is None else e - x.astype(r.dtype), rounded, exact, residual
    )
    return rounded, left


def select(predicate: Array, on_true: ArrayTree, on_false: ArrayTree) -> ArrayTree:
    """Return one of two trees of the same structure, chosen by a traced scalar."""
    return jax.tree.map(lambda a, b: jnp.where(predicate, a, b), on_true, on_false)


def unstack(draws: ArrayTree) -> list[ArrayTree]:
    """Return the trees that were stacked along the leading axis."""
    return [jax.tree.map(lambda x, j=j: x[j], draws) for j in range(len(jax.tree.leaves(draws)[0]))]


def all_finite(tree: ArrayTree) -> Array:
    """Return whether every element of the tree is finite."""
    return reduce_scalars(jnp.all, [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)])


def is_traced(tree: Any) -> bool:
    """Return whether a value of the tree is unknown, inside a transformation."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def random_normals(rng_key: PRNGKey, tree: ArrayTree) -> ArrayTree:
    """Draw standard normals in the shapes and dtypes of ``tree``."""
    return _random_tree(rng_key, tree, lambda key, n, dtype: jax.random.normal(key, (n,), dtype))


def random_signs(rng_key: PRNGKey, tree: ArrayTree) -> ArrayTree:
    """Draw independent signs (mean 0, variance 1) in the shapes and dtypes of ``tree``.

    One random word serves 32 elements, which makes this several times cheaper
    than normals.
    """
    return _random_tree(rng_key, tree, _signs)


def _signs(rng_key: PRNGKey, size: int, dtype: Any) -> Array:
    words = jax.random.bits(rng_key, (math.ceil(size / 32), 1), jnp.uint32)
    bits = (words >> jnp.arange(32, dtype=jnp.uint32)[None]) & 1
    return (bits.astype(dtype) * 2 - 1).reshape(-1)[:size]


def _random_tree(
    rng_key: PRNGKey, tree: ArrayTree, draw: Callable[[PRNGKey, int, Any], Array]
) -> ArrayTree:
    """Draw for each large leaf, and once for all small leaves of a dtype.

    A generator is a hundred operations to compile, and kernels to start, whatever its size.
    """
    leaves, treedef = jax.tree.flatten(tree)
    groups: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        groups.setdefault(leaf.dtype if leaf.size <= SMALL_LEAF else i, []).append(i)
    draws: dict[int, Array] = {}
    for key, group in zip(jax.random.split(rng_key, len(groups)), groups.values(), strict=True):
        ends = np.cumsum([leaves[i].size for i in group])
        drawn = draw(key, int(ends[-1]), leaves[group[0]].dtype)
        if len(group) > 1:  # else XLA compiles what makes numbers of random bits for each part
            drawn = jax.lax.optimization_barrier(drawn)
        parts = jnp.split(drawn, ends[:-1])
        draws |= {i: part.reshape(leaves[i].shape) for i, part in zip(group, parts, strict=True)}
    return jax.tree.unflatten(treedef, [draws[i] for i in range(len(leaves))])
