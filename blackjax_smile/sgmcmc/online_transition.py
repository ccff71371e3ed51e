"""State and Info of an always-on chain, and the parts of its transition."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.mcmc.integrators import IntegratorState, with_isokinetic_maruyama
from blackjax.types import Array, ArrayTree, PRNGKey
from jax.flatten_util import ravel_pytree

from blackjax_smile import _tree
from blackjax_smile._batching import rarely
from blackjax_smile.sgmcmc import dynamics
from blackjax_smile.sgmcmc.energy_tuner import FIRST_STEPS, EnergyThresholds, EnergyTuner
from blackjax_smile.sgmcmc.running_moments import RunningMoments, update_running_moments

__all__ = ["OnlineSmileInfo", "OnlineSmileState", "propose", "reject"]

#: Bounds of a gradient's running standard deviation, before it becomes a scale.
DEVIATION_RANGE = (1e-2, 1e4)


class OnlineSmileState(NamedTuple):
    """State of a chain, adaptation included.

    position
        The parameters, any pytree of floating-point arrays (float32 or wider).
    momentum
        Direction of motion in preconditioned coordinates, of unit norm.
    logdensity, logdensity_grad
        Log-density and its gradient at the position on the minibatch of the last
        accepted step; -inf and 0 before the first step of a minibatch chain.
    grad_moments
        Running mean and variance of the accepted gradients, the preconditioner;
        None without preconditioning.
    tuner
        Step size and running law of the energy error. It alone, and the momentum,
        change in a rejected step.
    """

    position: ArrayTree
    momentum: ArrayTree
    logdensity: Array
    logdensity_grad: ArrayTree
    grad_moments: RunningMoments | None
    tuner: EnergyTuner


class OnlineSmileInfo(NamedTuple):
    """What happened in a step.

    logdensity
        The log-density that the new state holds.
    kinetic_change
        Change of the kinetic energy.
    energy_change
        Kinetic change plus the last log-density minus the new one: with
        minibatches, a difference of two batches' estimates. 0 in the first step
        of a minibatch chain; inf where anything was not finite.
    energy_error
        Its absolute value, what is compared with the thresholds.
    growth_threshold, shrinkage_threshold, rejection_threshold
        The quantiles below which the step size grows, above which it shrinks, and
        above which the step is rejected. 0 and inf where they are off.
    energy_mean, energy_deviation
        Running mean and standard deviation of the energy error before this step,
        from which the thresholds follow.
    step_size
        Step size of this step.
    is_divergent
        Whether the step was rejected.
    """

    logdensity: Array
    kinetic_change: Array
    energy_change: Array
    energy_error: Array
    growth_threshold: Array
    shrinkage_threshold: Array
    rejection_threshold: Array
    energy_mean: Array
    energy_deviation: Array
    step_size: Array
    is_divergent: Array


def propose(
    rng_key: PRNGKey,
    state: OnlineSmileState,
    logdensity_fn: Callable,
    minibatch: Any,
    integrator: Callable,
    num_integration_steps: int,
    L: Array,
    smoothing_factor: Array | float,
) -> tuple[OnlineSmileState, Array, Array]:
    """Return the proposed state, its kinetic and its energy change (inf if not finite)."""
    dtype = state.logdensity.dtype
    batch = () if minibatch is None else (minibatch,)
    step = with_isokinetic_maruyama(
        integrator(lambda position: logdensity_fn(position, *batch), inverse_mass_matrix(state))
    )

    def body(carry, key):
        end, kinetic_change = step(carry, state.tuner.step_size, L.astype(dtype), key)
        return end._replace(logdensity=end.logdensity.astype(dtype)), kinetic_change

    start = IntegratorState(state.position, state.momentum, state.logdensity, state.logdensity_grad)
    keys = jax.random.split(rng_key, num_integration_steps)
    end, kinetic_changes = jax.lax.scan(body, start, keys)
    kinetic_change = jnp.sum(kinetic_changes).astype(dtype)
    energy_change = kinetic_change + state.logdensity - end.logdensity
    # The first step of a minibatch chain has nothing to compare with.
    energy_change = jnp.where(state.logdensity == -jnp.inf, 0, energy_change)
    finite = jnp.isfinite(end.logdensity) & jnp.isfinite(energy_change)
    finite &= jnp.isfinite(kinetic_change) & _tree.all_finite((end.position, end.momentum))
    moments = state.grad_moments
    if moments is not None:
        moments = update_running_moments(moments, end.logdensity_grad, smoothing_factor)
    proposed = state._replace(**end._asdict(), grad_moments=moments)
    return proposed, kinetic_change, jnp.where(finite, energy_change, jnp.inf)


def inverse_mass_matrix(state: OnlineSmileState) -> Array | float:
    """Return the squared scale of position and gradient; 1 in the first steps."""
    if state.grad_moments is None:
        return 1.0
    variance, _ = ravel_pytree(state.grad_moments.variance)
    smallest, largest = DEVIATION_RANGE
    variance = jnp.clip(variance, smallest**2, largest**2)
    return jnp.where(state.tuner.num_steps >= FIRST_STEPS, jnp.mean(variance) / variance, 1)


def reject(
    rng_key: PRNGKey,
    state: OnlineSmileState,
    proposed: OnlineSmileState,
    energy_change: Array,
    thresholds: EnergyThresholds,
) -> tuple[OnlineSmileState, Array]:
    """Return the new state, the old one with a fresh momentum if rejected, and whether."""
    # An infinite change is above no infinite threshold.
    rejected = jnp.isinf(energy_change) | (jnp.abs(energy_change) > thresholds.rejection)
    new = _tree.select(rejected, state, proposed)
    momentum = rarely(rejected, _redraw, new.momentum, rng_key)
    return new._replace(momentum=momentum), rejected


def _redraw(momentum: ArrayTree, rng_key: PRNGKey) -> ArrayTree:
    return dynamics.random_momentum(rng_key, momentum)
