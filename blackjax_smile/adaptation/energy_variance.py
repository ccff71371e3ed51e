r"""The step size by the paper's energy-variance tuner, run during the warmup alone.

It has no target (see `blackjax_smile.sgmcmc.energy_tuner`), so where it starts
decides: at the deflection that the default rule aims at. From there the step size
drifts, for energy errors of a Gamma law down by a factor of about two in 1000 steps.
"""

import jax.numpy as jnp
from blackjax.types import Array
from jax.typing import ArrayLike

from blackjax_smile.adaptation.step_size import StepSizeRule
from blackjax_smile.sgmcmc.energy_tuner import (
    EnergyTuner,
    energy_thresholds,
    init_energy_tuner,
    update_energy_tuner,
)
from blackjax_smile.sgmcmc.smile import SmileInfo

__all__ = ["ENERGY_VARIANCE"]

#: The paper's values: share of the steps that change the step size, by how much,
#: and the weight of a new energy error in the running law.
ADAPTION_PROB, ADAPTION_STRENGTH, SMOOTHING_FACTOR = 0.1, 0.02, 0.01


def _init(step_size: Array, grad_norm: Array, dimension: int, target: float) -> EnergyTuner:
    """Start on the target deflection, where there is a gradient."""
    on_target = target * (dimension - 1) / jnp.where(grad_norm > 0, grad_norm, 1)
    return init_energy_tuner(jnp.where(grad_norm > 0, on_target, step_size))


def _update(tuner: EnergyTuner, info: SmileInfo, dimension: int, target: ArrayLike) -> EnergyTuner:
    del dimension, target
    thresholds = energy_thresholds(tuner, ADAPTION_PROB, 1.0)
    return update_energy_tuner(
        tuner,
        jnp.abs(info.energy_change),
        thresholds,
        ADAPTION_PROB,
        ADAPTION_STRENGTH,
        SMOOTHING_FACTOR,
    )


def _restart(
    tuner: EnergyTuner, growth: Array, dimension: int, target: ArrayLike, is_last: ArrayLike
) -> EnergyTuner:
    """Keep the deflection, and with it the law of the energy errors."""
    del dimension, target, is_last
    known = (growth > 0) & jnp.isfinite(growth)
    return tuner._replace(step_size=tuner.step_size / jnp.where(known, growth, 1))


ENERGY_VARIANCE = StepSizeRule(_init, _update, _restart, holds_target=False)
