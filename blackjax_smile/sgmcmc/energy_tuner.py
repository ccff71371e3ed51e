r"""The paper's step-size tuner: quantiles of the energy error's own running law.

It has no target: its thresholds are quantiles of the law that they judge. Where
the Gamma law fits, the step size shrinks twice as often as it grows, at any step
size, and

.. math::

    E[\Delta \log \epsilon] = \frac{a}{3} \log(1 + \sigma) + \frac{2 a}{3} \log(1 - \sigma),

-6.9e-4 a step with the paper's :math:`a = 0.1` and :math:`\sigma = 0.02`: a factor
of 1000 in 10 000 steps. Where another law holds, so does another drift: normal
energy changes, whose absolute value no Gamma law fits, give +0.7e-4.
"""

from typing import NamedTuple

import jax.numpy as jnp
from blackjax.types import Array

from blackjax_smile import _tree
from blackjax_smile.gamma import gamma_quantile, match_gamma
from blackjax_smile.sgmcmc.running_moments import (
    RunningMoments,
    init_running_moments,
    update_running_moments,
)

__all__ = [
    "FIRST_STEPS",
    "EnergyThresholds",
    "EnergyTuner",
    "energy_thresholds",
    "init_energy_tuner",
    "update_energy_tuner",
]

#: Nothing adapts, and no energy error is judged, in the first steps of a chain.
FIRST_STEPS = 10

#: A larger energy error enters the running law as this many deviations above its mean.
LARGEST_DEVIATION = 10.0


class EnergyTuner(NamedTuple):
    """State of the tuner.

    step_size
        The step size for the next step.
    moments
        Running moments of the energy error.
    num_steps
        Number of steps seen, rejected ones included.
    """

    step_size: Array
    moments: RunningMoments
    num_steps: Array


class EnergyThresholds(NamedTuple):
    """What an energy error is compared with, in nats.

    growth
        Below it the step size grows.
    shrinkage
        Above it the step size shrinks.
    rejection
        Above it the step is rejected.
    """

    growth: Array
    shrinkage: Array
    rejection: Array


def init_energy_tuner(step_size: Array) -> EnergyTuner:
    """Return the tuner at the start of a chain."""
    moments = init_running_moments(jnp.zeros_like(step_size))
    return EnergyTuner(step_size, moments, jnp.zeros((), jnp.int32))


def energy_thresholds(
    tuner: EnergyTuner, adaption_prob: Array | float, reset_prob: Array | float
) -> EnergyThresholds:
    r"""Return the quantiles :math:`Q(a/3)`, :math:`Q(1 - 2a/3)` and :math:`Q(r)`.

    Of the Gamma law with the running mean and deviation; 0, inf and inf (which
    judge nothing) in the first steps, and where no Gamma law has these moments.
    The quantile is `blackjax_smile.gamma.gamma_quantile`: the paper's Wilson-Hilferty
    approximation wherever that holds.
    """
    mean, variance = tuner.moments.mean, tuner.moments.variance
    usable = (tuner.num_steps >= FIRST_STEPS) & (variance > 0) & (mean > 0)
    usable &= jnp.isfinite(mean) & jnp.isfinite(variance)
    mean, variance = jnp.where(usable, mean, 1), jnp.where(usable, variance, 1)
    shape, scale = match_gamma(mean, jnp.sqrt(variance))

    def quantile(probability, otherwise):
        probability = jnp.asarray(probability, mean.dtype)
        return jnp.where(usable, gamma_quantile(shape, scale, probability), otherwise)

    return EnergyThresholds(
        growth=quantile(adaption_prob / 3, 0.0),
        shrinkage=quantile(1 - 2 * adaption_prob / 3, jnp.inf),
        rejection=quantile(reset_prob, jnp.inf),
    )


def update_energy_tuner(
    tuner: EnergyTuner,
    energy_error: Array,
    thresholds: EnergyThresholds,
    adaption_prob: Array | float,
    adaption_strength: Array | float,
    smoothing_factor: Array | float,
) -> EnergyTuner:
    r"""Take in the energy error of one step, rejected or not.

    .. math::

        \epsilon \leftarrow \epsilon \begin{cases}
            1 - \sigma & |\Delta E| > Q(1 - 2a/3) \\
            1 + \sigma & |\Delta E| < Q(a/3)
        \end{cases}

    Parameters
    ----------
    tuner
        The state, from whose past ``thresholds`` were taken.
    energy_error
        :math:`|\Delta E|`; inf for a step that was not finite, which counts as too
        large; NaN for a step that has none, which counts for nothing.
    thresholds
        Of `energy_thresholds`.
    adaption_prob, adaption_strength, smoothing_factor
        :math:`a`, :math:`\sigma` and the weight of the new value.

    Notes
    -----
    The law is that of all steps. If rejected ones were left out, a chain whose
    energy errors have grown for good would reject for ever. But no value enters as
    more than ten deviations above the mean: a spike entered as it is would lift all
    thresholds for hundreds of steps, in which the step size would only grow.
    (Entered as the rejection threshold instead, rejected steps would narrow the law
    that they are judged by: measured, the step size falls 12 % faster.)
    """
    adapts = (tuner.num_steps >= FIRST_STEPS) & (jnp.asarray(adaption_prob) > 0)
    too_large = (energy_error > thresholds.shrinkage) | jnp.isposinf(energy_error)
    too_small = energy_error < thresholds.growth
    factor = jnp.where(
        too_large, 1 - adaption_strength, jnp.where(too_small, 1 + adaption_strength, 1)
    )
    limits = jnp.finfo(tuner.step_size.dtype)
    step_size = jnp.where(adapts, tuner.step_size * factor, tuner.step_size)
    step_size = jnp.clip(step_size, limits.tiny, 0.5 * limits.max).astype(tuner.step_size.dtype)

    mean, variance = tuner.moments.mean, tuner.moments.variance
    largest = mean + LARGEST_DEVIATION * jnp.sqrt(variance)
    clipped = jnp.where(
        tuner.num_steps >= FIRST_STEPS, jnp.minimum(energy_error, largest), energy_error
    )
    updated = update_running_moments(tuner.moments, clipped, smoothing_factor)
    moments = _tree.select(jnp.isfinite(energy_error), updated, tuner.moments)
    return EnergyTuner(step_size, moments, tuner.num_steps + 1)
