r"""The energy guardrail: a bound far beyond the law of the energy change, frozen.

The absolute energy change of a step follows about a Gamma law, matched by its first
two moments. Its far quantile alone is no bound: the energy change holds the difference
between two minibatches' log-densities, which grows with the distance from the mode, and
where the noise is skewed a rejection takes the large kicks of one sign away, which
leaves a force in the direction of the others. A chain far out on the wrong side is
driven further out, for ever (`benchmarks/README.md`). So the bound is where no noise
that the warmup has seen can lead, and catches corrupted minibatches alone.
"""

from typing import NamedTuple

import jax.numpy as jnp
from blackjax.types import Array

from blackjax_smile.gamma import match_gamma, wilson_hilferty

__all__ = ["EnergyMoments", "energy_threshold", "init_energy", "update_energy"]

#: The quantile of the Gamma law leaves out this share.
TAIL = 1e-4

#: The threshold is this many times the quantile or the largest value seen.
MARGIN = 10.0


class EnergyMoments(NamedTuple):
    """Running mean and summed squared deviations (Welford) of ``|energy change|``, its largest."""

    count: Array
    mean: Array
    squared_deviations: Array
    largest: Array


def init_energy(dtype) -> EnergyMoments:
    """Return empty moments."""
    zero = jnp.zeros((), dtype)
    return EnergyMoments(zero, zero, zero, zero)


def update_energy(moments: EnergyMoments, energy_change: Array) -> EnergyMoments:
    """Add the energy change of one step."""
    count = moments.count + 1
    value = jnp.abs(energy_change)
    mean = moments.mean + (value - moments.mean) / count
    deviations = moments.squared_deviations + (value - moments.mean) * (value - mean)
    return EnergyMoments(count, mean, deviations, jnp.maximum(moments.largest, value))


def energy_threshold(moments: EnergyMoments) -> Array:
    r"""Return the threshold, or inf (off) where no Gamma law fits the moments.

    .. math:: 10 \max\left(Q(1 - 10^{-4}), \max_t |\Delta E_t|\right) .
    """
    variance = moments.squared_deviations / jnp.maximum(moments.count - 1, 1)
    usable = (moments.count > 1) & (variance > 0) & (moments.mean > 0)
    usable &= jnp.isfinite(variance) & jnp.isfinite(moments.mean)
    mean, variance = jnp.where(usable, moments.mean, 1), jnp.where(usable, variance, 1)
    shape, scale = match_gamma(mean, jnp.sqrt(variance))
    threshold = MARGIN * jnp.maximum(wilson_hilferty(shape, scale, 1 - TAIL), moments.largest)
    return jnp.where(usable, threshold, jnp.inf)
