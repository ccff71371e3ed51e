r"""Running mean and variance with exponential forgetting, of a pytree."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree

from blackjax_smile import _tree

__all__ = ["RunningMoments", "init_running_moments", "update_running_moments"]


class RunningMoments(NamedTuple):
    """Exponentially weighted moments, corrected for their start.

    weight
        Sum of the weights given so far, ``1 - (1 - smoothing_factor)**n``; 0 at the start.
    mean, variance
        Trees like the values; zeros at the start.
    """

    weight: Array
    mean: ArrayTree
    variance: ArrayTree


def init_running_moments(like: ArrayTree) -> RunningMoments:
    """Return empty moments for values in the shapes of ``like``."""
    # Two trees of zeros: one buffer cannot be donated twice.
    mean, variance = (jax.tree.map(jnp.zeros_like, like) for _ in range(2))
    return RunningMoments(jnp.zeros((), _tree.scalar_dtype(like)), mean, variance)


def update_running_moments(
    moments: RunningMoments, value: ArrayTree, smoothing_factor: Array | float
) -> RunningMoments:
    r"""Take in one value.

    With :math:`\beta` the smoothing factor, :math:`w_n = 1 - (1 - \beta)^n` and
    :math:`\alpha = \beta / w_n`,

    .. math::

        m_n = m_{n-1} + \alpha (x - m_{n-1}), \qquad
        v_n = (1 - \alpha) \left(v_{n-1} + \alpha (x - m_{n-1})^2\right),

    which equals the bias-corrected running averages of :math:`x` and of
    :math:`x^2`, combined to :math:`\overline{x^2} - \bar x^2`, without the
    cancellation of that difference.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> moments = init_running_moments(jnp.zeros(()))
    >>> for x in (1.0, 3.0):
    ...     moments = update_running_moments(moments, jnp.asarray(x), 1e-6)
    >>> print(f"{moments.mean:.3f} {moments.variance:.3f}")
    2.000 1.000
    """
    weight = (moments.weight + smoothing_factor * (1 - moments.weight)).astype(moments.weight.dtype)
    alpha = smoothing_factor / weight

    def update(x, m, v):
        a = alpha.astype(m.dtype)
        difference = x.astype(m.dtype) - m
        # Bounded: an infinite variance would never be forgotten.
        largest = jnp.finfo(v.dtype).max
        return m + a * difference, jnp.minimum((1 - a) * (v + a * difference**2), largest)

    leaves = jax.tree.map(update, value, moments.mean, moments.variance)
    mean, variance = jax.tree.transpose(
        jax.tree.structure(value), jax.tree.structure((0, 0)), leaves
    )
    return RunningMoments(weight, mean, variance)
