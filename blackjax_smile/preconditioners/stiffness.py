r"""Directions that are stiff in whitened coordinates, and by how much to move them less.

A map that whitens the gradient noise moves a direction the more freely the less noise it has.
Where something other than the data holds it tightly, as a prior of small deviation, a soft
constraint on a sum, it is then stiff: the step, set by the
gradient as a whole, is too long for it, or too short for all others.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.types import Array

from blackjax_smile.preconditioners.base import CurvatureStep
from blackjax_smile.preconditioners.eigen import eigh

__all__ = [
    "SOFT",
    "CurvatureMoments",
    "excess_stiffness",
    "init_curvature",
    "principal_curvature",
    "smaller_curvature",
    "update_curvature",
]

#: A direction is stiff from this many times the third power of the typical square on. (In the
#: posterior 4 would do; on the way, where steps are long, chains got stuck with it.)
STIFF = 2.0

#: The curvature of a softened direction, as a share of its noise, beyond the typical one.
SOFT = 0.1


class CurvatureMoments(NamedTuple):
    r"""Outer products in whitened coordinates, summed over a window's steps, shape ``(d, d)``.

    gradient
        Of the gradients.
    secant
        Of minus the gradients' changes from step to step and the displacements.
    displacement
        Of the displacements.
    """

    gradient: Array
    secant: Array
    displacement: Array


def init_curvature(dimension: int, dtype: Any) -> CurvatureMoments:
    """Return empty sums."""
    zeros = jnp.zeros((dimension, dimension), dtype)
    return CurvatureMoments(zeros, zeros, zeros)


def update_curvature(
    moments: CurvatureMoments | None, step: CurvatureStep
) -> CurvatureMoments | None:
    """Add a step."""
    if moments is None:
        return None
    _, _, change, displacement, gradient = step
    return CurvatureMoments(
        moments.gradient + jnp.outer(gradient, gradient),
        moments.secant - jnp.outer(change, displacement),
        moments.displacement + jnp.outer(displacement, displacement),
    )


def principal_curvature(
    moments: CurvatureMoments, count: Array, lower: Array, complement: Array
) -> tuple[Array, Array]:
    r"""Return the principal axes of a window's gradient, and the curvature along each.

    In the stationary law the mean square of a whitened gradient along an axis, complementary noise
    included, is :math:`s_k = 1 + h_k`, the noise and the curvature. On the way there it is
    more, and what the gradient changes by over a displacement tells the curvature:

    .. math:: h_k = \min\left(s_k - 1, -\frac{E[\Delta g_k \Delta y_k]}{E[\Delta y_k^2]}\right)

    (The last gradient's noise has turned the momentum, which adds 1 to the ratio.)

    Parameters
    ----------
    moments
        In the coordinates whitened by :math:`F`.
    count
        Number of gradients.
    lower
        :math:`W`: the axes are those of the coordinates whitened by :math:`F W^{-T}`.
    complement
        Covariance of the complementary noise there.

    Returns
    -------
    Axes, as columns, and their curvatures, not negative.
    """
    half = jax.scipy.linalg.solve_triangular(lower, moments.gradient, lower=True)
    squares = jax.scipy.linalg.solve_triangular(lower, half.T, lower=True)
    squares, axes = eigh(squares / jnp.maximum(count, 1) + complement)
    along = jax.scipy.linalg.solve_triangular(lower.T, axes, lower=False)  # of gradients
    across = lower @ axes  # of displacements
    secant = jnp.sum(along * (moments.secant @ across), axis=0)
    displacement = jnp.sum(across * (moments.displacement @ across), axis=0)
    return axes, smaller_curvature(squares - 1, secant, displacement)


def smaller_curvature(signal: Array, secant: Array, displacement: Array) -> Array:
    """Return the smaller of a gradient's square beyond its noise and the secant, at least 0."""
    tiny = jnp.finfo(displacement.dtype).tiny
    return jnp.maximum(jnp.minimum(signal, secant / jnp.maximum(displacement, tiny)), 0)


def excess_stiffness(curvature: Array, spread: Array) -> Array:
    r"""Return by what to multiply the noise of each direction so that none is stiff.

    With :math:`q` the harmonic mean of all :math:`1 + h_k`, typical of the softer ones however
    many are stiff, a direction with :math:`1 + h_k > 2 q^3` gets the curvature of a soft one,

    .. math:: \frac{h_k}{q - 1 + 0.1} .

    The third power leaves directions alone where the noise is weak, :math:`q \gg 1`, as under
    control variates: the momentum is kept for long there, and injected noise would turn it.

    Parameters
    ----------
    curvature
        :math:`h_k`, shape ``(d,)``.
    spread
        Up to what sampling alone spreads :math:`1 + h_k`.
    """
    typical = 1 / jnp.mean(1 / (1 + curvature))
    is_stiff = 1 + curvature > STIFF * spread * typical**3
    return jnp.where(is_stiff, curvature / (typical - 1 + SOFT), 1)
