r"""The energy guardrail: a quantile of the law of the energy change, frozen.

The absolute energy change of a step follows about a Gamma law, matched by its
first two moments; a step beyond a far quantile is not part of the run.
"""

from typing import NamedTuple

import jax.numpy as jnp
from blackjax.types import Array

from blackjax_smile.gamma import match_gamma, wilson_hilferty

__all__ = ["EnergyMoments", "energy_threshold", "init_energy", "update_energy"]

#: Share of the steps of a regular run that the threshold may reject.
REJECTED_SHARE = 1e-4


class EnergyMoments(NamedTuple):
    """Running mean and summed squared deviations of ``|energy change|`` (Welford)."""

    count: Array
    mean: Array
    squared_deviations: Array


def init_energy(dtype) -> EnergyMoments:
    """Return empty moments."""
    zero = jnp.zeros((), dtype)
    return EnergyMoments(zero, zero, zero)


def update_energy(moments: EnergyMoments, energy_change: Array) -> EnergyMoments:
    """Add the energy change of one step."""
    count = moments.count + 1
    value = jnp.abs(energy_change)
    mean = moments.mean + (value - moments.mean) / count
    deviations = moments.squared_deviations + (value - moments.mean) * (value - mean)
    return EnergyMoments(count, mean, deviations)


def energy_threshold(moments: EnergyMoments) -> Array:
    """Return the threshold, or inf (off) where no Gamma law fits the moments."""
    variance = moments.squared_deviations / jnp.maximum(moments.count - 1, 1)
    usable = (moments.count > 1) & (variance > 0) & (moments.mean > 0)
    usable &= jnp.isfinite(variance) & jnp.isfinite(moments.mean)
    mean, variance = jnp.where(usable, moments.mean, 1), jnp.where(usable, variance, 1)
    shape, scale = match_gamma(mean, jnp.sqrt(variance))
    threshold = wilson_hilferty(shape, scale, 1 - REJECTED_SHARE)
    # A law so heavy-tailed that its far quantile lies below its mean is no Gamma's.
    return jnp.where(usable & (threshold > mean), threshold, jnp.inf)
