r"""Isokinetic Langevin dynamics on pytrees: the kick, the refresh, the step.

The momentum :math:`u` has unit norm over the whole tree; the position moves by
:math:`F u` per unit of time, where the linear map :math:`F` (a preconditioner)
whitens the gradient noise. Nothing here knows how :math:`F`, the step size or
:math:`L` were chosen.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree, PRNGKey
from blackjax.util import pytree_size

from blackjax_smile import _tree
from blackjax_smile.preconditioners.base import Preconditioner

__all__ = [
    "Kick",
    "drift",
    "kick",
    "midpoint_kick",
    "random_momentum",
    "refresh",
    "refresh_schedule",
    "turn",
]

#: The clock of a chain counts modulo this number, so no refresh waits longer.
CLOCK_CYCLE = 64

#: A refresh may wait until the complementary noise turns the momentum by about this
#: angle (radians): as small as the deflection of one step, a perturbation.
MAX_COMPLEMENT_ANGLE = 0.25

#: And never turns it by more (radians): the formula is one of small angles, and on the way from
#: a distant start, where a step turns by many times more than the noise, it would undo the turn.
MAX_COMPLEMENT_TURN = 0.5

#: A refresh may wait for this share of L: a turn by 0.25, too.
MAX_REFRESH_SHARE = 0.03

#: The same where draws are costly. The isotropic part of a refresh leaves the uniform
#: law of the momentum as it is, over any time, but a long wait lets the anisotropy of
#: the noise show (variances of the 20-dimensional regression: 1.01 became 1.02).
MAX_COSTLY_REFRESH_SHARE = 0.5

#: From this dimension on, draws are costly: refreshes are rarer, and draw random signs
#: instead of normals, as only the covariance of a perturbation of many coordinates
#: matters.
COSTLY_FROM_DIMENSION = 1024


class Kick(NamedTuple):
    """Result of `kick`.

    momentum
        The turned momentum, of unit norm.
    kinetic_change
        Change of the kinetic energy, in nats.
    deflection
        ``step_size * |gradient| / (d - 1)``, the angle by which a gradient at a
        right angle to the momentum turns it, in radians.
    alignment
        Cosine of the angle between the momentum and the gradient.
    """

    momentum: ArrayTree
    kinetic_change: Array
    deflection: Array
    alignment: Array


def kick(momentum: ArrayTree, whitened_grad: ArrayTree, step_size: Array) -> Kick:
    r"""Turn the momentum towards the whitened gradient (ESH dynamics).

    With :math:`e = \tilde g / |\tilde g|`, :math:`s = e \cdot u`,
    :math:`\delta = \epsilon |\tilde g| / (d - 1)` and :math:`\zeta = e^{-\delta}`,

    .. math::

        u' \propto e (1 - \zeta) (1 + \zeta + s (1 - \zeta)) + 2 \zeta u, \qquad
        \Delta K = (d - 1) \left[\delta
            + \log\left(1 - \tfrac12 (1 - s) (1 - \zeta^2)\right)\right],

    the exact flow for a constant gradient over the time :math:`\epsilon`
    [1]_ [2]_.

    Parameters
    ----------
    momentum
        Tree of (nearly) unit norm.
    whitened_grad
        Tree of the same structure, :math:`F^T \nabla l`.
    step_size
        The time over which the gradient acts.

    Returns
    -------
    The turned momentum and what the turn cost.

    References
    ----------
    .. [1] Ver Steeg and Galstyan, "Hamiltonian dynamics with non-Newtonian
       momentum for rapid sampling", arXiv:2111.02434.
    .. [2] Robnik et al., "Microcanonical Hamiltonian Monte Carlo",
       arXiv:2212.08549.
    """
    d = pytree_size(momentum)
    grad_norm2 = _tree.vdot(whitened_grad, whitened_grad)
    dot = _tree.vdot(whitened_grad, momentum)
    norm2 = _tree.vdot(momentum, momentum)
    tiny = jnp.finfo(grad_norm2.dtype).tiny
    # A zero gradient turns nothing: deflection 0 makes the first term vanish.
    inverse_grad_norm = jax.lax.rsqrt(jnp.maximum(grad_norm2, tiny))
    s = jnp.clip(dot * inverse_grad_norm * jax.lax.rsqrt(norm2), -1.0, 1.0)
    deflection = step_size * jnp.sqrt(grad_norm2) / (d - 1)
    towards, along = turn(deflection, s)
    # The new norm follows from inner products already at hand, which saves a
    # pass; using the measured |u|^2 keeps round-off from building up.
    inverse_norm = jax.lax.rsqrt(
        towards**2 + 2 * towards * along * dot * inverse_grad_norm + along**2 * norm2
    )
    a, b = towards * inverse_grad_norm * inverse_norm, along * inverse_norm
    new_momentum = jax.tree.map(
        lambda g, u: a.astype(u.dtype) * g + b.astype(u.dtype) * u, whitened_grad, momentum
    )
    # log1p and expm1: multiplied by d - 1, round-off would swamp a small change.
    kinetic_change = (d - 1) * (deflection + jnp.log1p(0.5 * (1 - s) * jnp.expm1(-2 * deflection)))
    return Kick(new_momentum, kinetic_change, deflection, s)


def turn(deflection: Array, alignment: Array) -> tuple[Array, Array]:
    """Return the shares of gradient direction and momentum in a turned momentum, see `kick`."""
    zeta = jnp.exp(-deflection)
    towards = -jnp.expm1(-deflection) * (1 + zeta + alignment * -jnp.expm1(-deflection))
    return towards, 2 * zeta


def midpoint_kick(
    value_and_grad_fn: Callable,
    position: ArrayTree,
    residual: ArrayTree,
    momentum: ArrayTree,
    preconditioner: Preconditioner,
    step_size: Array,
) -> tuple[Array, Kick, ArrayTree]:
    r"""Take the one gradient of a step, at its midpoint, and turn the momentum by it.

    .. math::

        x_{1/2} = x + \tfrac{\epsilon}{2} F u, \qquad
        u' = \mathrm{kick}(u, F^T \nabla l(x_{1/2}), \epsilon) .

    `drift` completes the step.

    Parameters
    ----------
    value_and_grad_fn
        Maps a position to ``((logdensity, auxiliary), gradient)``.
    position, residual, momentum
        Where the step starts; ``residual`` is what the rounding of the position
        left behind.
    preconditioner
        The linear map :math:`F`.
    step_size
        :math:`\epsilon`.

    Returns
    -------
    The log-density at the midpoint, the `Kick`, and the auxiliary output of
    ``value_and_grad_fn``.
    """
    velocity = preconditioner.to_position(momentum)
    midpoint, _ = _tree.move(position, residual, 0.5 * step_size, velocity)
    (logdensity, auxiliary), grad = value_and_grad_fn(midpoint)
    return logdensity, kick(momentum, preconditioner.whiten(grad), step_size), auxiliary


def drift(
    position: ArrayTree,
    residual: ArrayTree,
    momentum: ArrayTree,
    new_momentum: ArrayTree,
    preconditioner: Preconditioner,
    step_size: Array,
) -> tuple[ArrayTree, ArrayTree]:
    r"""Move the position along the momenta before and after the midpoint.

    .. math:: x' = x + \tfrac{\epsilon}{2} F (u + u')

    By at most :math:`\epsilon |F|`, however large the gradient is. Both halves are taken from the
    start: no velocity has to be kept, and a step of no length is one not taken.

    Returns
    -------
    The new position and its residual.
    """
    both = preconditioner.to_position(jax.tree.map(jnp.add, momentum, new_momentum))
    return _tree.move(position, residual, 0.5 * step_size, both)


def refresh_schedule(
    clock: Array, dimension: int, preconditioner: Preconditioner, step_size: Array, L: Array
) -> tuple[Array, Array]:
    """Say whether the momentum is due for a refresh, and over how many steps.

    A draw the size of the model can cost more than its gradient, so one refresh
    serves several steps, within `MAX_COMPLEMENT_ANGLE` and a share of L.

    Parameters
    ----------
    clock
        Integer in ``[0, CLOCK_CYCLE)``, the number of steps taken. It is equal
        in all chains that run side by side, and intervals are powers of two:
        even chains with different parameters are then due together.
    dimension, preconditioner, step_size, L
        What the step uses.

    Returns
    -------
    ``due`` (boolean) and ``interval`` (integer number of steps).
    """
    angle2 = (step_size / (dimension - 1)) ** 2 * preconditioner.complement_trace
    by_angle = MAX_COMPLEMENT_ANGLE**2 / jnp.maximum(angle2, jnp.finfo(angle2.dtype).tiny)
    is_costly = dimension >= COSTLY_FROM_DIMENSION
    share = MAX_COSTLY_REFRESH_SHARE if is_costly else MAX_REFRESH_SHARE
    longest = jnp.minimum(by_angle, share * L / step_size)
    exponent = jnp.floor(jnp.log2(jnp.clip(longest, 1, CLOCK_CYCLE)))
    interval = jnp.left_shift(1, exponent.astype(jnp.int32))
    return (clock + 1) % interval == 0, interval


def refresh(
    rng_key: PRNGKey,
    momentum: ArrayTree,
    start: ArrayTree,
    preconditioner: Preconditioner,
    step_size: Array,
    L: Array,
    interval: Array,
) -> ArrayTree:
    r"""Refresh the momentum over ``interval`` steps, and add the complementary noise.

    Of the momenta :math:`u, u'` before and after a kick,

    .. math::

        u'' \propto e^{-t/L} \frac{u + u'}{2} + \frac{u' - u}{2} \sqrt{1 + c^2}
            + \sqrt{\frac{1 - e^{-2t/L}}{d}} z + \frac{\sqrt{t \epsilon}}{d - 1} F^T R^{1/2} z',
            \qquad t = n \epsilon,

    where :math:`z, z'` have unit variance, :math:`n` is the interval and :math:`c^2` the mean
    square of the last term. This is the complementary noise :math:`N(0, R)` of :math:`n`
    gradients: to first order a gradient :math:`g` turns the momentum by
    :math:`\epsilon F^T g / (d - 1)`, so the noise can be given to the momentum,
    where it needs no gradient and no draw in every step.

    The refresh acts in the middle of the kick, as the gradient's own noise does: what it damps is
    :math:`(u + u') / 2`, and the kick's second half follows. After the step, a direction of
    frequency :math:`\omega` would get :math:`1 - (\epsilon \omega)^2 / 4` of its variance;
    after the kick, every direction :math:`1 + t / 2L`, up to second order.

    With :math:`L = 0` nothing of the old momentum is left and :math:`z` alone is the new one.

    Parameters
    ----------
    momentum, start
        :math:`u'` and :math:`u`; twice the same where there is no kick to divide.
    """
    d = pytree_size(momentum)
    time = step_size * interval.astype(step_size.dtype)
    keep = jnp.exp(-time / L)
    isotropic = jnp.sqrt(-jnp.expm1(-2 * time / L) / d)
    complementary = jnp.sqrt(time * step_size) / (d - 1)
    trace = jnp.maximum(preconditioner.complement_trace, jnp.finfo(keep.dtype).tiny)
    complementary = jnp.minimum(complementary, MAX_COMPLEMENT_TURN * jax.lax.rsqrt(trace))
    complementary = jnp.where(L > 0, complementary, 0)
    half_kick = jnp.where(L > 0, jnp.sqrt(1 + complementary**2 * trace), 0)
    after, before = 0.5 * (keep + half_kick), 0.5 * (keep - half_kick)
    draw = _tree.random_signs if d >= COSTLY_FROM_DIMENSION else _tree.random_normals
    noise = preconditioner.refresh_noise(rng_key, momentum, isotropic, complementary, draw)
    mixed = jax.tree.map(
        lambda v, u, z: after.astype(v.dtype) * v + before.astype(u.dtype) * u + z,
        momentum,
        start,
        noise,
    )
    return _normalize(mixed)


def random_momentum(rng_key: PRNGKey, momentum: ArrayTree) -> ArrayTree:
    """Draw a momentum uniformly on the unit sphere, in the shapes of ``momentum``."""
    return _normalize(_tree.random_normals(rng_key, momentum))


def _normalize(momentum: ArrayTree) -> ArrayTree:
    inverse_norm = jax.lax.rsqrt(_tree.vdot(momentum, momentum))
    return jax.tree.map(lambda u: inverse_norm.astype(u.dtype) * u, momentum)
