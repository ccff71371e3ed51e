r"""The step size by the paper's energy-variance tuner, run during the warmup alone.

It has no target (see `blackjax_smile.sgmcmc.energy_tuner`), so where it starts
decides: at the deflection that the default rule aims at. From there the step size
drifts, for energy errors of a Gamma law down by a factor of about two in 1000 steps.
"""

from typing import NamedTuple

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

__all__ = ["ENERGY_VARIANCE", "EnergyVarianceState"]

#: The paper's values: share of the steps that change the step size, by how much,
#: and the weight of a new energy error in the running law.
ADAPTION_PROB, ADAPTION_STRENGTH, SMOOTHING_FACTOR = 0.1, 0.02, 0.01


class EnergyVarianceState(NamedTuple):
    """The tuner, and the last finite deflection, which a change of the map keeps."""

    tuner: EnergyTuner
    deflection: Array

    @property
    def step_size(self) -> Array:
        return self.tuner.step_size


def _init(step_size: Array, grad_norm: Array, dimension: int, target: float):
    """Start on the target deflection, where there is a gradient."""
    on_target = target * (dimension - 1) / jnp.where(grad_norm > 0, grad_norm, 1)
    step_size = jnp.where(grad_norm > 0, on_target, step_size)
    return EnergyVarianceState(init_energy_tuner(step_size), jnp.full_like(step_size, target))


def _update(state: EnergyVarianceState, info: SmileInfo, dimension: int, target: ArrayLike):
    del dimension, target
    thresholds = energy_thresholds(state.tuner, ADAPTION_PROB, 1.0)
    tuner = update_energy_tuner(
        state.tuner,
        jnp.abs(info.energy_change),
        thresholds,
        ADAPTION_PROB,
        ADAPTION_STRENGTH,
        SMOOTHING_FACTOR,
    )
    known = ~info.is_divergent & (info.deflection > 0)
    return EnergyVarianceState(tuner, jnp.where(known, info.deflection, state.deflection))


def _restart(state: EnergyVarianceState, grad_norm2: Array, dimension: int, target: ArrayLike):
    """Keep the deflection, and with it the law of the energy errors."""
    del target
    known = (grad_norm2 > 0) & jnp.isfinite(grad_norm2)
    grad_norm = jnp.sqrt(jnp.where(known, grad_norm2, 1))
    step_size = jnp.where(known, state.deflection * (dimension - 1) / grad_norm, state.step_size)
    return state._replace(tuner=state.tuner._replace(step_size=step_size))


ENERGY_VARIANCE = StepSizeRule(_init, _update, _restart, holds_target=False)
