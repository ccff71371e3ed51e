"""Moments of a window's gradient noise, shared by the estimators of preconditioners."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree
from blackjax.util import pytree_size
from jax.flatten_util import ravel_pytree

from blackjax_smile import _tree
from blackjax_smile.preconditioners.base import CurvatureStep
from blackjax_smile.preconditioners.rare_events import num_present
from blackjax_smile.preconditioners.stiffness import (
    CurvatureMoments,
    init_curvature,
    update_curvature,
)

__all__ = [
    "NoiseMoments",
    "eigenvalue_range",
    "init_moments",
    "unknown_range",
    "update_gradient",
    "update_moments",
    "variance_of",
]


class NoiseMoments(NamedTuple):
    r"""Moments of a window's gradient noise, whose mean is zero by construction.

    count
        Number of draws.
    square
        Tree of summed squares.
    present
        How many draws had noise: a tree of each parameter's number, or of scalars, summed over
        a leaf's parameters, if ``gradient_square`` is None.
    whitened_outer
        Summed outer products of the whitened noise, shape ``(d, d)``, or None
        when d is too large for it. In whitened coordinates the matrix is close
        to the identity, so float32 sums lose nothing.
    num_gradients
        Number of gradients.
    gradient_square
        Tree of their summed squares, noise and all, or None.
    secant, displacement_square
        Trees of summed :math:`-\Delta g_i \Delta x_i` and :math:`\Delta x_i^2`, from step to step,
        or None.
    curvature
        What tells the curvature of directions, or None.
    """

    count: Array
    square: ArrayTree
    present: ArrayTree
    whitened_outer: Array | None
    num_gradients: Array
    gradient_square: ArrayTree | None
    secant: ArrayTree | None = None
    displacement_square: ArrayTree | None = None
    curvature: CurvatureMoments | None = None


def init_moments(
    like: ArrayTree,
    with_outer: bool = False,
    with_gradient: bool = False,
    with_curvature: bool = False,
) -> NoiseMoments:
    """Return empty moments for noise in the shapes of ``like``."""
    d, dtype = pytree_size(like), _tree.scalar_dtype(like)
    zeros = jax.tree.map(jnp.zeros_like, like)
    return NoiseMoments(
        count=jnp.zeros((), dtype),
        square=zeros,
        present=zeros if with_gradient else jax.tree.map(lambda _: jnp.zeros(()), like),
        whitened_outer=jnp.zeros((d, d), dtype) if with_outer else None,
        num_gradients=jnp.zeros((), dtype),
        gradient_square=zeros if with_gradient else None,
        secant=zeros if with_gradient else None,
        displacement_square=zeros if with_gradient else None,
        curvature=init_curvature(d, dtype) if with_curvature else None,
    )


def update_moments(
    moments: NoiseMoments, noise: ArrayTree, whitened_noise: ArrayTree
) -> NoiseMoments:
    """Add one draw of the noise."""
    outer = moments.whitened_outer
    if outer is not None:
        flat, _ = ravel_pytree(whitened_noise)
        outer = outer + flat[:, None] * flat[None, :]
    if moments.gradient_square is None:
        present = jax.tree.map(jnp.add, moments.present, num_present(noise))
    else:
        present = jax.tree.map(lambda k, n: k + (n != 0).astype(k.dtype), moments.present, noise)
    return moments._replace(
        count=moments.count + 1,
        square=add_square(moments.square, noise),
        present=present,
        whitened_outer=outer,
    )


def update_gradient(
    moments: NoiseMoments, gradient: ArrayTree, step: CurvatureStep
) -> NoiseMoments:
    """Add the gradient of a step, if they are followed."""
    if moments.gradient_square is None:
        return moments
    # The displacement from the last window's last step was under another map.
    has_last = moments.num_gradients > 0
    moved, whitened = jax.tree.map(
        lambda x: jnp.where(has_last, x, 0), (step.displacement, step.whitened_displacement)
    )
    step = step._replace(displacement=moved, whitened_displacement=whitened)
    return moments._replace(
        num_gradients=moments.num_gradients + 1,
        gradient_square=add_square(moments.gradient_square, gradient),
        secant=jax.tree.map(lambda s, g, x: s - g * x, moments.secant, step.change, moved),
        displacement_square=add_square(moments.displacement_square, moved),
        curvature=update_curvature(moments.curvature, step),
    )


def add_square(total: ArrayTree, x: ArrayTree) -> ArrayTree:
    """Return the tree with the other's squares added, in the first one's precision."""
    return jax.tree.map(lambda s, n: s + n.astype(s.dtype) ** 2, total, x)


def variance_of(moments: NoiseMoments) -> ArrayTree:
    """Return the noise variance of each parameter, a tree."""
    count = jnp.maximum(moments.count, 1)
    return jax.tree.map(lambda s: s / count.astype(s.dtype), moments.square)


def unknown_range(count: Array) -> tuple[Array, Array]:
    """Return bounds that hold for any eigenvalues; no NaN, which stops under `jax_debug_nans`."""
    return jnp.zeros_like(count), jnp.full_like(count, jnp.inf)


def eigenvalue_range(moments: NoiseMoments, complement: Array | float = 0.0):
    """Return the smallest and largest eigenvalue of the whitened noise's covariance.

    ``complement`` is added to the covariance. 0 and infinity if only the variances
    were followed.
    """
    if moments.whitened_outer is None:
        return unknown_range(moments.count)
    covariance = moments.whitened_outer / jnp.maximum(moments.count, 1)
    eigenvalues = jnp.linalg.eigvalsh(covariance + complement)
    return eigenvalues[0], eigenvalues[-1]
