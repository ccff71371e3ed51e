"""Control variates: a minibatch log-density with less gradient noise."""

import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayLikeTree, ArrayTree

from blackjax_smile import _tree
from blackjax_smile._averaging import check_averages
from blackjax_smile._checks import positive_integer
from blackjax_smile._jitted import jitted
from blackjax_smile.minibatch import data_size
from blackjax_smile.minibatch_gradient import check_arguments

__all__ = ["control_variates"]


def control_variates(
    logdensity_fn: Callable,
    center: ArrayLikeTree,
    data: ArrayLikeTree,
    batch_size: int = 1000,
) -> Callable:
    r"""Reduce the gradient noise of a minibatch log-density near a centre.

    With :math:`c` the centre (the posterior mode, say), :math:`b` a minibatch and
    :math:`l` the log-density of the full data,

    .. math::

        l_{cv}(x; b) = l(x; b) - l(c; b)
            - (\nabla l(c; b) - \nabla l(c)) \cdot (x - c)

    is, up to a constant, again an unbiased estimate of the log-density, whose
    gradient noise vanishes at the centre (the gradient is that of [1]_). A step
    takes two gradients, and far fewer steps are needed while the chain stays
    near the centre. For a posterior of one mode.

    Parameters
    ----------
    logdensity_fn
        ``(position, minibatch) -> logdensity``: a log-prior plus the minibatch's
        mean log-likelihood times the size of the data set, as
        ``blackjax.sgmcmc.gradients.logdensity_estimator`` builds it.
    center
        The position :math:`c`.
    data
        The full data set, a pytree of arrays with one leading axis. The
        gradient :math:`\nabla l(c)` is computed once, here.
    batch_size
        Number of rows at a time in that computation; bounds its memory.

    Returns
    -------
    ``(position, minibatch) -> logdensity``.

    Raises
    ------
    ValueError
        If the data set is empty or ragged, the log-density fails on it or sums over
        its rows, or its gradient at the centre is not finite.

    References
    ----------
    .. [1] Baker et al., "Control variates for stochastic gradient MCMC",
       arXiv:1706.05439.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, blackjax_smile
    >>> data = jax.random.normal(jax.random.key(0), (1000,)) + 1.0
    >>> def logdensity_fn(x, batch):
    ...     return -0.5 * x @ x - 500 * jnp.mean((batch - x[0]) ** 2)
    >>> estimate = blackjax_smile.control_variates(logdensity_fn, jnp.ones(2), data)
    >>> float(estimate(jnp.ones(2), data[:10]))
    0.0
    """
    center = _tree.as_float_tree(center)
    full_grad = _mean_gradient(logdensity_fn, center, data, batch_size)

    def logdensity_cv_fn(position: ArrayTree, minibatch: ArrayTree) -> Array:
        at_center, grad = jax.value_and_grad(logdensity_fn)(center, minibatch)
        correction = jax.tree.map(jnp.subtract, grad, full_grad)
        displacement = jax.tree.map(jnp.subtract, position, center)
        linear = _tree.vdot(correction, displacement)
        return logdensity_fn(position, minibatch) - at_center - linear.astype(at_center.dtype)

    return logdensity_cv_fn


def _check_call(logdensity_fn, center, rows) -> None:
    """Raise if the log-density cannot be called: a centre of another model, swapped arguments."""
    check_arguments(logdensity_fn, has_minibatch=True)
    try:
        jax.eval_shape(logdensity_fn, center, rows)
    except Exception as error:
        shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (center, rows)]
        raise ValueError(
            "control_variates(logdensity_fn, center, data) needs a position of the model and its "
            "data, in this order, but logdensity_fn failed on a centre and rows of the shapes "
            f"{shapes[0]} and {shapes[1]}, by {type(error).__name__}: {error}"
        ) from error


def _gradient(logdensity_fn, center, data) -> ArrayTree:
    return jax.grad(logdensity_fn)(center, data)


def _mean_gradient(logdensity_fn, center, data, batch_size: int) -> ArrayTree:
    """Return the full data's gradient, the mean of chunks weighted by their sizes."""
    size = data_size(data)
    batch_size = positive_integer("batch_size", batch_size)
    _check_call(logdensity_fn, center, jax.tree.map(lambda x: x[:batch_size], data))
    if (even := min(size, batch_size) // 2 * 2) > 0:
        check_averages(logdensity_fn, center, jax.tree.map(lambda x: x[:even], data))
    grad_fn = jitted(_gradient, logdensity_fn)
    total = jax.tree.map(lambda x: jnp.zeros(x.shape, _tree.accumulation_dtype(x)), center)
    for start in range(0, size, batch_size):
        rows = slice(start, min(start + batch_size, size))
        chunk = jax.tree.map(operator.itemgetter(rows), data)
        weight = jnp.asarray((rows.stop - rows.start) / size)
        total = _tree.add_scaled(total, weight, grad_fn(center, chunk))
    if not _tree.all_finite(total):
        raise ValueError("The gradient at the centre is not finite; choose another centre.")
    return jax.tree.map(lambda g, x: g.astype(x.dtype), total, center)
