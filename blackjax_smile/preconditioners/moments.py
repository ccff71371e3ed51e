"""Moments of a window's gradient noise, shared by the estimators of preconditioners."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree
from blackjax.util import pytree_size
from jax.flatten_util import ravel_pytree

from blackjax_smile import _tree
from blackjax_smile.preconditioners.rare_events import num_present

__all__ = ["NoiseMoments", "eigenvalue_range", "init_moments", "update_moments", "variance_of"]


class NoiseMoments(NamedTuple):
    """Moments of a window's gradient noise, whose mean is zero by construction.

    count
        Number of draws.
    square
        Tree of summed squares.
    present
        Tree of scalars, the summed numbers of each leaf's parameters that had noise.
    whitened_outer
        Summed outer products of the whitened noise, shape ``(d, d)``, or None
        when d is too large for it. In whitened coordinates the matrix is close
        to the identity, so float32 sums lose nothing.
    """

    count: Array
    square: ArrayTree
    present: ArrayTree
    whitened_outer: Array | None


def init_moments(like: ArrayTree, with_outer: bool) -> NoiseMoments:
    """Return empty moments for noise in the shapes of ``like``."""
    d, dtype = pytree_size(like), _tree.scalar_dtype(like)
    return NoiseMoments(
        count=jnp.zeros((), dtype),
        square=jax.tree.map(jnp.zeros_like, like),
        present=jax.tree.map(lambda _: jnp.zeros(()), like),
        whitened_outer=jnp.zeros((d, d), dtype) if with_outer else None,
    )


def update_moments(
    moments: NoiseMoments, noise: ArrayTree, whitened_noise: ArrayTree
) -> NoiseMoments:
    """Add one draw of the noise."""
    outer = moments.whitened_outer
    if outer is not None:
        flat, _ = ravel_pytree(whitened_noise)
        outer = outer + flat[:, None] * flat[None, :]
    return NoiseMoments(
        count=moments.count + 1,
        square=jax.tree.map(lambda s, n: s + n.astype(s.dtype) ** 2, moments.square, noise),
        present=jax.tree.map(jnp.add, moments.present, num_present(noise)),
        whitened_outer=outer,
    )


def variance_of(moments: NoiseMoments) -> ArrayTree:
    """Return the noise variance of each parameter, a tree."""
    count = jnp.maximum(moments.count, 1)
    return jax.tree.map(lambda s: s / count.astype(s.dtype), moments.square)


def eigenvalue_range(moments: NoiseMoments, complement: Array | float = 0.0):
    """Return the smallest and largest eigenvalue of the whitened noise's covariance.

    ``complement`` is added to the covariance. NaN if only the variances were
    followed.
    """
    if moments.whitened_outer is None:
        unknown = jnp.full((), jnp.nan, moments.count.dtype)
        return unknown, unknown
    covariance = moments.whitened_outer / jnp.maximum(moments.count, 1)
    eigenvalues = jnp.linalg.eigvalsh(covariance + complement)
    return eigenvalues[0], eigenvalues[-1]
