"""Which variances of the gradient noise are noise, and what is typical of them."""

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree

from blackjax_smile import _tree

__all__ = ["geometric_mean", "has_noise"]

#: A variance below this share of the largest is round-off, not noise. Covers
#: columns of data whose scales differ by 1e8.
NEGLIGIBLE_VARIANCE = 1e-16


def has_noise(variance: ArrayTree) -> ArrayTree:
    """Return which variances are not negligible against the largest of all, a tree."""
    leaves = jax.tree.leaves(variance)
    largest = _tree.reduce_scalars(jnp.max, [jnp.max(v, initial=0.0) for v in leaves])
    return jax.tree.map(lambda v: v > NEGLIGIBLE_VARIANCE * largest, variance)


def geometric_mean(variance: ArrayTree) -> Array:
    """Return the geometric mean of the variances that are not negligible, 0 if all are.

    It follows the parameters' own scales, where an arithmetic mean would drown the small ones.
    """
    present = jax.tree.leaves(has_noise(variance))
    leaves = jax.tree.leaves(variance)
    dtype = jnp.result_type(*leaves)
    count = _tree.reduce_scalars(jnp.sum, [jnp.sum(p).astype(dtype) for p in present])
    logs = [
        jnp.sum(jnp.where(p, jnp.log(jnp.where(p, v, 1)), 0)).astype(dtype)
        for p, v in zip(present, leaves, strict=True)
    ]
    log_sum = _tree.reduce_scalars(jnp.sum, logs)
    return jnp.where(count > 0, jnp.exp(log_sum / jnp.maximum(count, 1)), 0)
