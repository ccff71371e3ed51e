r"""The floor under the noise: what keeps parameters of little noise from moving too freely.

A map that whitens gradient noise says nothing of a parameter that has none. So the
noise of variance :math:`V_{ii}` that it whitens is taken to be :math:`V_{ii} + R_{ii}`, and
:math:`R_{ii}` is injected, so that the sum is white:

.. math:: R_{ii} = \lambda (V_{ii} + G_i) .
"""

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree
from jax.flatten_util import ravel_pytree

from blackjax_smile.preconditioners.moments import NoiseMoments, variance_of
from blackjax_smile.preconditioners.rare_events import missed_variance
from blackjax_smile.preconditioners.stiffness import SOFT, excess_stiffness, smaller_curvature
from blackjax_smile.preconditioners.variances import geometric_mean, has_noise

__all__ = ["FLOOR", "curvature_bound", "floor_level", "noise_floor"]

#: :math:`\lambda`.
FLOOR = 1e-4

#: A floor need not be more than this share of the mean curvature.
CURVATURE_SHARE = 0.25

#: :math:`\kappa`: a curvature below this share of the noise's variance cannot be told from none.
MIN_CURVATURE = 0.04

#: By what a window may lower a floor: a parameter that has not moved yet has a small gradient.
MAX_DECREASE = 0.01


def noise_floor(variance: ArrayTree, level: ArrayTree) -> ArrayTree:
    r"""Return :math:`R_{ii} = \lambda (V_{ii} + G_i)`, a tree.

    Parameters
    ----------
    variance
        Tree of :math:`V_{ii}`.
    level
        Tree of :math:`G_i`, each leaf a scalar or an array in the shape of the leaf.
    """
    return jax.tree.map(lambda v, G: FLOOR * (v + G.astype(v.dtype)), variance, level)


def floor_level(moments: NoiseMoments, old_floor: ArrayTree) -> ArrayTree:
    r"""Return :math:`G_i` of `noise_floor` from a window's moments.

    .. math:: \lambda G_i = \min(\lambda G, B_i) + e_i ,

    where :math:`G` is the `geometric_mean` of all variances, :math:`B_i` the `curvature_bound`, or
    :math:`10 E[g_i^2]` without noise, and :math:`e_i` what the window may have missed, see
    `missed_variance`.

    Where :math:`\lambda G` is far above what a parameter's own curvature asks for, as for a column
    of small numbers or the mean of effects in large units, :math:`B_i` lets it move as freely as
    the others. It lowers a floor by a factor of a hundred per window: the gradient of a parameter
    that has not come far yet is small, and if it has not in a window of :math:`n` steps,
    :math:`H_{ii} / R_{ii} < 1 / n`. What it leaves stiff is softened: more
    floor under it, by `excess_stiffness`.

    Parameters
    ----------
    moments
        Where they do not follow the gradients' squares, :math:`G` is not bounded and the
        leaves of the result are scalars.
    old_floor
        Tree of :math:`R_{ii}` in that window; not used in that case.
    """
    variance = variance_of(moments)
    G = geometric_mean(variance)
    missed = missed_variance(moments.count, variance, moments.present)
    if moments.gradient_square is None:
        return jax.tree.map(lambda e: G.astype(e.dtype) + e / FLOOR, missed)

    def level(v, is_noisy, square, old, e):
        bound = jnp.where(is_noisy, curvature_bound(square, v), square / SOFT)
        bound = jnp.where(square > 0, jnp.maximum(bound, MAX_DECREASE * old), jnp.inf)
        return jnp.minimum(G.astype(v.dtype), bound / FLOOR) + e / FLOOR

    hard = jax.tree.map(
        level, variance, has_noise(variance), mean_gradient_square(moments), old_floor, missed
    )
    return _softened_level(moments, hard)


def _softened_level(moments: NoiseMoments, level: ArrayTree) -> ArrayTree:
    r"""Return the level with more under parameters that it leaves stiff, by themselves.

    As `stiffness.principal_curvature` and `excess_stiffness` have it for directions: of a
    parameter whose noise, floor included, is :math:`T_i = V_{ii} + R_{ii}`,

    .. math:: h_i = \frac{1}{T_i} \min\left(E[g_i^2] - V_{ii},
        -\frac{E[\Delta g_i \Delta x_i]}{E[\Delta x_i^2]}\right) .
    """
    variance = variance_of(moments)
    total = jax.tree.map(jnp.add, variance, noise_floor(variance, level))
    squares = mean_gradient_square(moments)

    def curvature(v, t, square, secant, displacement):
        return smaller_curvature(square - v, secant, displacement) / jnp.where(t > 0, t, 1)

    h, unravel = ravel_pytree(
        jax.tree.map(
            curvature, variance, total, squares, moments.secant, moments.displacement_square
        )
    )
    # Five standard errors of a mean square.
    spread = 1 + 5 * jnp.sqrt(2 / jnp.maximum(moments.num_gradients, 1))
    excess = unravel(excess_stiffness(h, spread).astype(h.dtype))
    return jax.tree.map(
        lambda G, v, t, x: jnp.where(x > 1, (t * x - v) / FLOOR - v, G),
        level,
        variance,
        total,
        excess,
    )


def mean_gradient_square(moments: NoiseMoments) -> ArrayTree:
    """Return the mean squares of a window's gradients, noise and all."""
    count = jnp.maximum(moments.num_gradients, 1)
    return jax.tree.map(lambda s: s / count.astype(s.dtype), moments.gradient_square)


def curvature_bound(gradient_square: Array, variance: Array) -> Array:
    r"""Return :math:`\tfrac14 H_{ii}`, which a floor need not exceed.

    From the mean square of a gradient and the variance of its noise:

    .. math:: H_{ii} = \max(E[g_i^2] - V_{ii}, \kappa V_{ii})

    In the stationary law :math:`E[g_i^2] = V_{ii} + H_{ii}`; on the way there it is more. Below
    :math:`\kappa V_{ii}` a window cannot tell it, nor does it matter there.
    """
    curvature = jnp.maximum(gradient_square - variance, MIN_CURVATURE * variance)
    return CURVATURE_SHARE * curvature
