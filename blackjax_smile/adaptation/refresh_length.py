r"""The distance :math:`L` over which the momentum is refreshed.

Gradient noise that is not white biases the result at every step size, unless an
isotropic refresh outweighs it. Two lengths and a number decide, see
`choose_length`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree

from blackjax_smile import _tree

__all__ = [
    "WhitenedPath",
    "choose_length",
    "deflection_share",
    "diffusive_length",
    "init_path",
    "natural_length",
    "noise_length",
    "update_path",
]

#: Where the noise is weak the momentum is forgotten over this many natural lengths. With control
#: variates, b2mean and b2var of four regressions: 0.00071 and 0.00095 at 1, 0.00051 and 0.00091 at
#: 1.5, 0.00034 and 0.00113 at 2.5.
PERSISTENCE = 1.5

#: The refresh outweighs the anisotropic part of the gradient noise this many times,
DOMINANCE = 4.0

#: but turns the momentum at most this many times as fast as the noise does by itself. A
#: chain is slower by one plus that, and on a network that has far to go a remaining bias
#: costs less than a chain that does not arrive (`benchmarks/README.md`).
MAX_REFRESH = 1.5

#: The same while the warmup is still looking for the posterior.
MAX_SEARCHING_REFRESH = 0.4

#: The deflection is lowered to this share of its target at most.
MIN_DEFLECTION_SHARE = 0.1

#: A path this many times as wide as diffusion makes it is that of a chain on its way.
TRANSIT = 1.5

#: A length below this many steps would make the dynamics a random walk.
MIN_STEPS = 4.0


class WhitenedPath(NamedTuple):
    r"""The path of a chain in whitened coordinates, :math:`y = F^{-1} x`, and its spread.

    ``y`` starts at zero and is accumulated from the momenta, so :math:`F^{-1}`
    is never needed. Mean and summed squared deviations follow Welford.
    """

    count: Array
    y: ArrayTree
    mean: ArrayTree
    squared_deviations: Array


def init_path(like: ArrayTree) -> WhitenedPath:
    """Return the path at its start, for momenta in the shapes of ``like``."""
    zero = jnp.zeros((), _tree.scalar_dtype(like))
    zeros = jax.tree.map(jnp.zeros_like, like)
    return WhitenedPath(zero, zeros, zeros, zero)


def update_path(
    path: WhitenedPath, momentum: ArrayTree, new_momentum: ArrayTree, step_size: Array
) -> WhitenedPath:
    r"""Move by :math:`\tfrac{\epsilon}{2} (u + u')`."""
    count = path.count + 1
    y = _tree.add_scaled(path.y, 0.5 * step_size, jax.tree.map(jnp.add, momentum, new_momentum))
    before = jax.tree.map(jnp.subtract, y, path.mean)
    mean = _tree.add_scaled(path.mean, 1 / count, before)
    after = jax.tree.map(jnp.subtract, y, mean)
    return WhitenedPath(count, y, mean, path.squared_deviations + _tree.vdot(before, after))


def natural_length(path: WhitenedPath) -> Array:
    r"""Return :math:`L_{nat}`, the root of the summed variances of :math:`y`."""
    return jnp.sqrt(path.squared_deviations / jnp.maximum(path.count - 1, 1))


def noise_length(step_size: Array, noise_variance: Array, dimension: int) -> Array:
    r"""Return :math:`L_{eff} = 2 (d - 1) / (\epsilon t_1)`.

    The distance over which gradient noise alone, of mean whitened variance
    :math:`t_1`, turns the momentum.
    """
    return 2 * (dimension - 1) / (step_size * noise_variance)


def diffusive_length(path: WhitenedPath, step_size: Array, turning_length: Array) -> Array:
    r"""Return the spread of a path that nothing confines and nothing draws.

    .. math:: \sqrt{n \epsilon L / 3}

    The root of the summed variances of a walk of :math:`n` steps at unit speed, whose direction
    is forgotten over :math:`L`, the ``turning_length``.
    """
    return jnp.sqrt(path.count * step_size * turning_length / 3)


def deflection_share(natural: Array, noise: Array, diffusive: Array) -> Array:
    r"""Return the share of the deflection that the chain needs to move as fast.

    .. math:: \max\left(\min\left(1, \frac{L_{eff}}{L_{nat}}\right), 0.1\right)

    Where the noise turns the momentum many times over :math:`L_{nat}` the chain diffuses, by
    :math:`4 (d - 1) / (d t_1)` a step whatever the step size, since :math:`L_{eff}` grows
    as :math:`\epsilon` falls. Up to where the two lengths are equal a smaller step costs means
    next to nothing (second moments, which then oscillate, up to 0.4 of their ESS), and the bias
    by skewed noise falls with its square. 1 where a length is not known (NaN), or where the
    chain went farther than it could have diffused: the length is then that of its way.
    """
    share = jnp.clip(noise / natural, MIN_DEFLECTION_SHARE, 1)
    in_transit = natural > TRANSIT * diffusive
    return jnp.where(in_transit | jnp.isnan(share), 1, share)


def choose_length(
    natural: Array,
    noise: Array,
    anisotropy: Array,
    step_size: Array,
    most: float = MAX_REFRESH,
) -> Array:
    r"""Return the refresh length, at least a few steps.

    .. math::

        \frac{1}{L} = \max\left(\frac{1}{1.5\,L_{nat}} - \frac{1}{L_{eff}},
            \frac{\min(4 a, \rho)}{L_{eff}}\right) .

    The refresh supplies what the gradient noise lacks to turn the momentum once
    over :math:`1.5\,L_{nat}`, and outweighs the noise's anisotropy :math:`a` (what of it is
    significant, as a short window shows some of any noise), within :math:`\rho` = ``most``.
    Where the noise is white and strong neither needs a refresh, which would only slow the
    chain: :math:`L = \infty`. A length that is not known (NaN) asks for none.
    """
    lacking = 1 / (PERSISTENCE * natural) - 1 / noise
    rates = jnp.stack([lacking, jnp.minimum(DOMINANCE * anisotropy, most) / noise])
    rate = jnp.max(jnp.where(jnp.isfinite(rates) & (rates > 0), rates, 0))
    return jnp.maximum(1 / rate, MIN_STEPS * step_size)
