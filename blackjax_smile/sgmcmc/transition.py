"""State and Info of a SMILE chain, and the parts of its transition."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from blackjax.mcmc.integrators import IntegratorState
from blackjax.types import Array, ArrayTree
from blackjax.util import pytree_size

from blackjax_smile import _tree
from blackjax_smile._batching import rarely
from blackjax_smile.minibatch_gradient import SplitGradient, value_and_grad
from blackjax_smile.preconditioners.metric import Metric
from blackjax_smile.sgmcmc import dynamics

__all__ = [
    "SmileInfo",
    "SmileState",
    "integrator_step",
    "kicked",
    "moved",
    "refreshed",
    "reject",
]


class SmileState(NamedTuple):
    """State of a chain.

    position
        The parameters, any pytree of floating-point arrays.
    residual
        What the rounding of bfloat16 (or float16) leaves has left behind, in
        float32: the chain is at ``position + residual``. None for other leaves.
    momentum
        Direction of motion in whitened coordinates, of unit norm over the tree;
        leaves in float32 or wider.
    logdensity
        The last accepted log-density: at the last midpoint (one-gradient step)
        or at the position (`integrator=`). With minibatches it is an estimate
        from the last minibatch, and -inf before the first step.
    kinetic_change
        Kinetic energy given by the last accepted kick.
    logdensity_grad
        Gradient at the position, kept only for full-batch integrators, else None.
    num_failures
        Number of steps in a row that were rejected for something that was not finite,
        modulo 4; `reject` says what follows.
    clock
        Number of steps taken, modulo 64: says when the momentum is refreshed.
        It goes on when a step is rejected, so that vmapped chains stay in
        phase and skip the same draws.
    """

    position: ArrayTree
    residual: ArrayTree
    momentum: ArrayTree
    logdensity: Array
    kinetic_change: Array
    logdensity_grad: ArrayTree | None
    num_failures: Array
    clock: Array


class SmileInfo(NamedTuple):
    """What happened in a step.

    logdensity
        The log-density that the new state holds.
    kinetic_change
        Change of the kinetic energy by the step's kick (rejected or not).
    energy_change
        Change of the energy between this step's and the last one's midpoint. With
        minibatches it contains the difference between two batches' estimates of
        the log-density. 0 in the first step of a minibatch chain; inf where
        anything was not finite.
    deflection
        Angle by which the gradient, at a right angle to the momentum, turns it:
        ``step_size * |F^T gradient| / (d - 1)``, in radians.
    alignment
        Cosine of the angle between the momentum and the gradient before the kick. In
        the stationary law slightly negative on average (about minus half the signal's
        deflection); clearly positive while the chain is still on its way there.
    is_divergent
        Whether the step was rejected: something was not finite, or the energy
        changed by more than ``energy_threshold``.
    gradient
        The minibatch's gradient and a draw of the noise in it if the kernel was
        built with ``num_parts`` above 1, else None.
    """

    logdensity: Array
    kinetic_change: Array
    energy_change: Array
    deflection: Array
    alignment: Array
    is_divergent: Array
    gradient: SplitGradient | None = None


def kicked(state, gradient_fn, preconditioner, step_size):
    """Return the state with its momentum turned at the midpoint of the step, and the Info.

    `moved` completes the step.
    """
    dtype = state.logdensity.dtype
    logdensity, kick, gradient = dynamics.midpoint_kick(
        gradient_fn, state.position, state.residual, state.momentum, preconditioner, step_size
    )
    logdensity = logdensity.astype(dtype)
    kinetic_change = kick.kinetic_change
    # From midpoint to midpoint the momentum gets half of each kick.
    energy_change = 0.5 * (state.kinetic_change + kinetic_change) + state.logdensity - logdensity
    energy_change = jnp.where(state.logdensity == -jnp.inf, 0, energy_change)
    # A bounded move from a finite position: what is finite in these is finite in all.
    finite = jnp.isfinite(logdensity) & jnp.isfinite(kinetic_change) & jnp.isfinite(energy_change)
    energy_change = jnp.where(finite, energy_change, jnp.inf)
    new = state._replace(
        momentum=kick.momentum, logdensity=logdensity, kinetic_change=kinetic_change
    )
    return new, SmileInfo(
        logdensity,
        kinetic_change,
        energy_change,
        kick.deflection,
        kick.alignment,
        ~finite,
        gradient,
    )


def moved(state: SmileState, new_momentum, info: SmileInfo, preconditioner, step_size):
    """Return position and residual after a step from ``state``, unless it was rejected."""
    return dynamics.drift(
        state.position,
        state.residual,
        state.momentum,
        new_momentum,
        preconditioner,
        jnp.where(info.is_divergent, 0, step_size),
    )


def integrator_step(state, logdensity_fn, minibatch, integrator, metric: Metric, step_size):
    """Return the proposed state and Info of a step of a BlackJAX integrator."""
    dtype = state.logdensity.dtype
    logdensity, grad = state.logdensity, state.logdensity_grad
    if minibatch is not None:
        # Both ends of the step on one minibatch: an exact energy change.
        (logdensity, _), grad = value_and_grad(logdensity_fn, minibatch)(state.position)
        batch: tuple = (minibatch,)
    elif grad is None:
        raise ValueError(
            "This state holds no gradient. Make it with the init of an algorithm that has the "
            "same `integrator`."
        )
    else:
        batch = ()
    step = integrator(
        logdensity_fn=lambda position: logdensity_fn(position, *batch),
        inverse_mass_matrix=metric.inverse_mass_matrix,
    )
    start = IntegratorState(state.position, state.momentum, logdensity, grad)
    end, kinetic_change = step(start, step_size)
    energy_change = kinetic_change + logdensity - end.logdensity
    finite = jnp.isfinite(energy_change) & _tree.all_finite((end.position, end.momentum))
    whitened = metric.preconditioner.whiten(end.logdensity_grad)
    last_kick = dynamics.kick(end.momentum, whitened, step_size)
    new = state._replace(
        position=end.position,
        momentum=end.momentum,
        logdensity=end.logdensity.astype(dtype),
        kinetic_change=kinetic_change.astype(dtype),
        logdensity_grad=end.logdensity_grad if minibatch is None else state.logdensity_grad,
    )
    energy_change = jnp.where(finite, energy_change, jnp.inf).astype(dtype)
    return new, SmileInfo(
        new.logdensity,
        new.kinetic_change,
        energy_change,
        last_kick.deflection,
        last_kick.alignment,
        ~finite,
    )


def reject(state: SmileState, new: SmileState, info: SmileInfo, energy_threshold):
    """Keep the old state if the proposal is not acceptable.

    A bad minibatch says nothing about the move: the next step tries it again. Two
    failures in a row speak for a wall, and turn the momentum round. Where both ways fail
    twice the chain is in a corner, and `refreshed` draws the momentum afresh.
    """
    non_finite = info.is_divergent
    # `inf > inf` is False: without a threshold only non-finite steps are rejected.
    rejected = non_finite | (jnp.abs(info.energy_change) > energy_threshold)
    sign = jnp.where(non_finite & (state.num_failures == 1), -1, 1)
    turned = jax.tree.map(lambda u: sign.astype(u.dtype) * u, state.momentum)
    num_failures = jnp.where(non_finite, (state.num_failures + 1) % 4, 0)
    kept = state._replace(momentum=turned, num_failures=num_failures)
    new = new._replace(num_failures=jnp.zeros_like(state.num_failures))
    new = _tree.select(rejected, kept, new)
    return new, info._replace(logdensity=new.logdensity, is_divergent=rejected)


def refreshed(rng_key, state: SmileState, start, info: SmileInfo, preconditioner, step_size, L):
    """Return the momentum after its refresh, where one is due; ``start`` is that before the kick.

    After a rejection for its energy, and the fourth non-finite one in a row, the momentum is
    drawn afresh; after another non-finite one it stays as `reject` left it.
    """
    due, interval = dynamics.refresh_schedule(
        state.clock, pytree_size(state.position), preconditioner, step_size, L
    )
    redrawn = info.is_divergent & (state.num_failures == 0)
    return rarely(
        (due & ~info.is_divergent) | redrawn,
        _refresh,
        state.momentum,
        rng_key,
        start,
        preconditioner,
        step_size,
        # One conditional and one draw for both: a refresh with L = 0 keeps nothing.
        jnp.where(redrawn, 0, L),
        interval,
    )


def _refresh(momentum, rng_key, *args):
    return dynamics.refresh(rng_key, momentum, *args)
