r"""The step size, from a target for the deflection.

The deflection :math:`\delta = \epsilon |\tilde g| / (d - 1)` is the angle by
which a step turns the momentum, a number without units; the step size that hits
a target follows from the size of the whitened gradient alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from blackjax.types import Array
from jax.scipy.special import digamma
from jax.typing import ArrayLike

from blackjax_smile.sgmcmc.smile import SmileInfo

__all__ = [
    "DEFLECTION",
    "StepSizeRule",
    "StepSizeState",
    "init_step_size",
    "restart_step_size",
    "update_step_size",
]

#: Memory of the running mean of log |g|^2: about 50 steps.
DECAY = 0.98

#: A step size at most doubles from one step to the next.
MAX_GROWTH = 2.0

#: A rejected step counts as one whose gradient was this many times larger, so
#: that a step size at which nothing is accepted shrinks.
REJECTION_FACTOR = 4.0


#: The step grows at most tenfold over the one that the gradient's size allows.
MIN_TURNING_SHARE = 1e-2


class StepSizeRule(NamedTuple):
    """How the warmup sets the step size, as pure functions of a state with a ``step_size``.

    init
        ``(step_size, grad_norm, dimension, target) -> state``: from a small step size
        and the norm of the whitened gradient at the start.
    update
        ``(state, info, dimension, target) -> state``: take in one step.
    restart
        ``(state, grad_norm2, dimension, target) -> state``: after a change of the map.
    holds_target
        Whether the deflection follows a change of the target.
    """

    init: Callable[[Array, Array, int, float], Any]
    update: Callable[[Any, SmileInfo, int, ArrayLike], Any]
    restart: Callable[[Any, Array, int, ArrayLike], Any]
    holds_target: bool


class StepSizeState(NamedTuple):
    """A running geometric mean of the squared gradient norm and the step size.

    log_grad_norm2
        Weighted sum of log |g|^2. Its geometric mean survives a single spike,
        which would ruin an arithmetic one.
    weight
        Sum of the weights; 0 until the step size has grown to where a gradient
        says something.
    step_size
        The step size for the next step.
    """

    log_grad_norm2: Array
    weight: Array
    step_size: Array


def init_step_size(step_size: Array) -> StepSizeState:
    """Start from a small step size, which doubles until the deflection is on target.

    A gradient near a mode may be next to nothing (with control variates its
    noise is, too) and must not set the first step.
    """
    zero = jnp.zeros_like(step_size)
    return StepSizeState(zero, zero, step_size)


def restart_step_size(
    state: StepSizeState, grad_norm2: Array, dimension: int, target: ArrayLike
) -> StepSizeState:
    """Forget the past after the metric has changed; ``grad_norm2`` is in the new one."""
    known = (state.weight > 0) & (grad_norm2 > 0)
    log_grad_norm2 = jnp.log(jnp.where(known, grad_norm2, 1))
    step_size = _on_target(log_grad_norm2, dimension, target)
    weight = jnp.where(known, 1 - DECAY, 0).astype(state.weight.dtype)
    step_size = jnp.where(known, step_size, state.step_size)
    return StepSizeState(weight * log_grad_norm2, weight, step_size)


def update_step_size(
    state: StepSizeState, info: SmileInfo, dimension: int, target: ArrayLike
) -> StepSizeState:
    r"""Take in one step.

    Counted is the part of the gradient that turns the momentum,
    :math:`|\tilde g|^2 (1 - s^2)` with :math:`s` the cosine between the two,
    over its mean logarithm for a direction at random. In the stationary law that
    is the deflection; on the way down from a distant start the gradient points
    along the momentum, and the step may be longer.

    The rule has two sides: the step size recovers after a bad stretch.
    """
    log_sum, weight, step_size = state
    deflection2 = info.deflection**2 * jnp.maximum(1 - info.alignment**2, MIN_TURNING_SHARE)
    deflection2 *= jnp.exp(-_mean_log_turning_share(dimension))
    # Before the first observation only a step that turned the momentum counts.
    informative = jnp.where(weight > 0, deflection2 > 0, deflection2 > (0.5 * target) ** 2)
    scale = ((dimension - 1) / step_size) ** 2
    observed = jnp.log(jnp.where(informative, deflection2, 1) * scale)
    expected = log_sum / jnp.where(weight > 0, weight, 1)
    rejected = info.is_divergent
    observed = jnp.where(rejected, expected + 2 * jnp.log(REJECTION_FACTOR), observed)
    counts = jnp.where(rejected, weight > 0, informative)
    log_sum = jnp.where(counts, DECAY * log_sum + (1 - DECAY) * observed, log_sum)
    weight = jnp.where(counts, DECAY * weight + (1 - DECAY), weight)

    on_target = _on_target(log_sum / jnp.where(weight > 0, weight, 1), dimension, target)
    growing = jnp.where(rejected, step_size / REJECTION_FACTOR, MAX_GROWTH * step_size)
    bounded = jnp.minimum(on_target, MAX_GROWTH * step_size)
    return StepSizeState(log_sum, weight, jnp.where(weight > 0, bounded, growing))


def _mean_log_turning_share(dimension: int) -> Array:
    r"""Return the mean of :math:`\log(1 - s^2)` for directions at random.

    The share follows a Beta law with parameters (d - 1) / 2 and 1 / 2.
    """
    return digamma(0.5 * (dimension - 1)) - digamma(0.5 * dimension)


def _on_target(log_grad_norm2: Array, dimension: int, target: ArrayLike) -> Array:
    return target * (dimension - 1) * jnp.exp(-0.5 * log_grad_norm2)


def _init(small: Array, grad_norm: Array, dimension: int, target: float) -> StepSizeState:
    del grad_norm, dimension, target
    return init_step_size(small)


#: The default rule.
DEFLECTION = StepSizeRule(_init, update_step_size, restart_step_size, holds_target=True)
