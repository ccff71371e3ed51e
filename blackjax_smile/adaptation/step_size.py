r"""The step size, from a target for the deflection.

The deflection :math:`\delta = \epsilon |\tilde g| / (d - 1)` is the angle by
which a gradient at a right angle turns the momentum in a step, a number without units;
the step size that hits a target follows from the size of the whitened gradient alone.

A chain far from the posterior is drawn there, its momentum along the gradient. What it
turns by is then less than the deflection, and what counts: the step grows until the path
bends, and shrinks as fast where the gradient turns against it. While momentum and gradient
stay aligned, it may turn by a multiple of the target, too: on the way no law is to be kept.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from blackjax.types import Array
from jax.scipy.special import digamma
from jax.typing import ArrayLike

from blackjax_smile import _tree
from blackjax_smile.sgmcmc import dynamics
from blackjax_smile.sgmcmc.running_moments import (
    RunningMoments,
    init_running_moments,
    update_running_moments,
)
from blackjax_smile.sgmcmc.smile import SmileInfo

__all__ = [
    "DEFLECTION",
    "StepSizeRule",
    "StepSizeState",
    "init_step_size",
    "restart_step_size",
    "turning_angle",
    "update_step_size",
]

#: Weight of a new gradient in the running mean of log |g|^2: a memory of about 50 steps,
SMOOTHING_FACTOR = 0.02

#: and in that of the last few steps, which shortens a step that has become far too long
RECENT_SMOOTHING_FACTOR = 0.2

#: by more than this factor: beyond what a few gradients vary by in the stationary law.
RECENT_MARGIN = 2.0

#: A step size at most doubles from one step to the next.
MAX_GROWTH = 2.0

#: A rejected step counts as one whose gradient was this many times larger, so
#: that a step size at which nothing is accepted shrinks.
REJECTION_FACTOR = 4.0

#: The target is stretched where momentum and gradient have been more aligned than
#: this on average. In the stationary law the mean is 0, and over a running mean's memory
#: rarely more than this, in a few dimensions, by chance.
ALIGNMENT_ON_THE_WAY = 0.1

#: By this power of how many times more. In proportion, an alignment of 0.4 would hold the turn
#: at 1 radian a step, which noise does by itself where the way is strewn with it.
STRETCH_POWER = 2

#: An alignment within float32's precision of 1 shows no smaller turn than this share of it.
MIN_TURN = 1e-3


class StepSizeRule(NamedTuple):
    """How the warmup sets the step size, as pure functions of a state with a ``step_size``.

    init
        ``(step_size, grad_norm, dimension, target) -> state``: from a small step size
        and the norm of the whitened gradient at the start.
    update
        ``(state, info, dimension, target) -> state``: take in one step.
    restart
        ``(state, growth, dimension, target, is_last) -> state``: after a change of the map,
        which makes the whitened gradient longer by ``growth``; NaN where there is no gradient.
        ``is_last``: the window that begins sets what is frozen.
    holds_target
        Whether the deflection follows a change of the target.
    """

    init: Callable[[Array, Array, int, float], Any]
    update: Callable[[Any, SmileInfo, int, ArrayLike], Any]
    restart: Callable[[Any, Array, int, ArrayLike, ArrayLike], Any]
    holds_target: bool


class StepSizeState(NamedTuple):
    """Running geometric means of the squared gradient norm and the step size.

    log_grad_norm2
        Running mean of log |g|^2. The geometric mean survives a single spike,
        which would ruin an arithmetic one. Its weight is 0 until the step size has
        grown to where a gradient says something.
    recent
        The same over the last few steps.
    alignment
        Running mean of the cosine between momentum and gradient.
    is_last
        Whether the step size is to be frozen after this window.
    step_size
        The step size for the next step.
    """

    log_grad_norm2: RunningMoments
    recent: RunningMoments
    alignment: RunningMoments
    is_last: Array
    step_size: Array


def init_step_size(step_size: Array) -> StepSizeState:
    """Start from a small step size, which doubles until the deflection is on target.

    A gradient near a mode may be next to nothing (with control variates its
    noise is, too) and must not set the first step.
    """
    moments = init_running_moments(step_size)
    return StepSizeState(moments, moments, moments, jnp.zeros((), bool), step_size)


def restart_step_size(
    state: StepSizeState, growth: Array, dimension: int, target: ArrayLike, is_last: ArrayLike
) -> StepSizeState:
    """Forget the past but for its means after the metric has changed."""
    known = (state.log_grad_norm2.weight > 0) & (growth > 0) & jnp.isfinite(growth)
    start = init_step_size(state.step_size)
    start = start._replace(alignment=state.alignment, is_last=jnp.asarray(is_last))
    log_grad_norm2 = state.log_grad_norm2.mean + 2 * jnp.log(jnp.where(known, growth, 1))
    on_target = _on_target(log_grad_norm2, dimension, _stretch(start) * target)
    restarted = _take_in(start, log_grad_norm2)._replace(step_size=on_target)
    return _tree.select(known, restarted, start)


def update_step_size(
    state: StepSizeState, info: SmileInfo, dimension: int, target: ArrayLike
) -> StepSizeState:
    r"""Take in one step.

    Counted is the part of the gradient that turns the momentum: in place of the deflection
    :math:`\delta` the angle between the momentum and the turned one, which is
    :math:`\delta \sqrt{1 - s^2}` where it is small, :math:`s` the cosine between momentum and
    gradient; over its mean logarithm for a direction at random. In the stationary law that
    is the deflection; on the way down from a distant start the gradient points
    along the momentum, and the step may be longer.

    With :math:`m` the running mean of :math:`s`, the target is multiplied by
    :math:`(m / 0.1)^2` where :math:`m` is above 0.1, except in the last window. Beyond a right
    angle, from :math:`m = 0.25` by default, nothing but the gradient holds the step: it grows
    until it turns against the momentum.

    The rule has two sides: the step size recovers after a bad stretch.
    """
    known = state.log_grad_norm2.weight > 0
    turn2 = turning_angle(info.deflection, info.alignment) ** 2
    turn2 *= jnp.exp(-_mean_log_turning_share(dimension))
    # Before the first observation only a step that turned the momentum counts.
    informative = jnp.where(known, turn2 > 0, turn2 > (0.5 * target) ** 2)
    scale = ((dimension - 1) / state.step_size) ** 2
    observed = jnp.log(jnp.where(informative, turn2, 1) * scale)
    rejected = info.is_divergent
    as_rejected = state.log_grad_norm2.mean + 2 * jnp.log(REJECTION_FACTOR)
    observed = jnp.where(rejected, as_rejected, observed)
    counts = jnp.where(rejected, known, informative)
    taken = _take_in(state, observed)
    alignment = jnp.where(rejected, 0, info.alignment).astype(state.step_size.dtype)
    taken = taken._replace(
        alignment=update_running_moments(state.alignment, alignment, SMOOTHING_FACTOR)
    )
    new = _tree.select(counts, taken, state)

    recent = new.recent.mean - 2 * jnp.log(RECENT_MARGIN)
    log_grad_norm2 = jnp.maximum(new.log_grad_norm2.mean, recent)
    on_target = _on_target(log_grad_norm2, dimension, _stretch(new) * target)
    growing = MAX_GROWTH * state.step_size
    step_size = jnp.where(
        new.log_grad_norm2.weight > 0,
        jnp.minimum(on_target, growing),
        jnp.where(rejected, state.step_size / REJECTION_FACTOR, growing),
    )
    return new._replace(step_size=step_size)


def _stretch(state: StepSizeState) -> Array:
    stretch = jnp.maximum(state.alignment.mean / ALIGNMENT_ON_THE_WAY, 1) ** STRETCH_POWER
    return jnp.where(state.is_last, 1, stretch)


def turning_angle(deflection: Array, alignment: Array) -> Array:
    r"""Return the angle between a momentum and the same after a kick, in radians.

    Of the exact flow in `blackjax_smile.sgmcmc.dynamics.kick`, in the plane of the momentum and
    the gradient. At least `MIN_TURN` times the deflection, or that of a deflection of 1.
    """
    towards, along = dynamics.turn(deflection, alignment)
    sine = jnp.sqrt(jnp.maximum(1 - alignment**2, 0))
    angle = jnp.arctan2(towards * sine, towards * alignment + along)
    return jnp.maximum(angle, MIN_TURN * jnp.minimum(deflection, 1))


def _take_in(state: StepSizeState, log_grad_norm2: Array) -> StepSizeState:
    return state._replace(
        log_grad_norm2=update_running_moments(
            state.log_grad_norm2, log_grad_norm2, SMOOTHING_FACTOR
        ),
        recent=update_running_moments(state.recent, log_grad_norm2, RECENT_SMOOTHING_FACTOR),
    )


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
