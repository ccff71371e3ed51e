r"""Gradients of a minibatch log-density, and the noise in them, at one cost.

The gradients on the two halves of a minibatch, :math:`g_1` and :math:`g_2`, give
the minibatch's own gradient :math:`g = (g_1 + g_2) / 2` and
:math:`n = (g_1 - g_2) / 2`, one draw of the noise of :math:`g` in which the
signal has cancelled. Four quarters give three uncorrelated draws in the same way,
by the contrasts of a Hadamard matrix.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.types import Array, ArrayTree
from blackjax.util import pytree_size

from blackjax_smile import _tree

__all__ = [
    "Isotropy",
    "SplitGradient",
    "anisotropy",
    "check_arguments",
    "checked_scalar",
    "init_isotropy",
    "split_minibatch",
    "takes_minibatch",
    "update_isotropy",
    "value_and_grad",
]


class SplitGradient(NamedTuple):
    """The gradient of a minibatch, and draws of the noise in it.

    mean
        The gradient, as on the whole minibatch.
    noise
        Uncorrelated draws of its noise, with a leading axis: one from halves, three
        from quarters.
    """

    mean: ArrayTree
    noise: ArrayTree


#: Rows: the mean of the parts, then contrasts of the same covariance.
CONTRASTS = {
    2: np.array([[1, 1], [1, -1]]) / 2,
    4: np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 4,
}


def _signature(function: Callable) -> inspect.Signature | None:
    """Return the signature; None for a builtin without one."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def takes_minibatch(logdensity_fn: Callable) -> bool:
    """Return whether a log-density needs a minibatch, or may (any number of arguments)."""
    signature = _signature(logdensity_fn)
    if signature is None:
        return False
    parameters = signature.parameters.values()
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return True
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.kind in positional and p.default is p.empty]
    return len(required) > 1


def _optional_minibatch(logdensity_fn: Callable) -> str | None:
    """Return the name of a second argument whose default is None."""
    signature = _signature(logdensity_fn)
    second = list(signature.parameters.values())[1:2] if signature is not None else []
    return next((p.name for p in second if p.default is None), None)


def check_arguments(logdensity_fn: Callable, has_minibatch: bool) -> None:
    """Raise unless a log-density takes a position and, if there is one, a minibatch."""
    signature = _signature(logdensity_fn)
    if signature is None:
        return
    arguments, remedy = ["position"], "For one on minibatches, pass these as well"
    if has_minibatch:
        arguments, remedy = ["position", "minibatch"], "A full-batch one takes no minibatches"
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ValueError(
            f"logdensity_fn is called as logdensity_fn({', '.join(arguments)}) here, but its "
            f"arguments are {signature}. {remedy}."
        ) from error


def checked_scalar(logdensity_fn: Callable) -> Callable:
    """Return a log-density that raises ValueError for wrong arguments or a value not a scalar."""

    def scalar_logdensity(position, *minibatch):
        check_arguments(logdensity_fn, bool(minibatch))
        try:
            logdensity = jnp.asarray(logdensity_fn(position, *minibatch))
        except (TypeError, AttributeError) as error:
            name = _optional_minibatch(logdensity_fn)
            if minibatch or name is None:
                raise
            raise ValueError(
                f"logdensity_fn(position) failed ({type(error).__name__}), though the default "
                f"{name}=None says that it can do without a minibatch. If it cannot, drop the "
                f"default: logdensity_fn(position, {name})."
            ) from error
        if logdensity.shape != ():
            raise ValueError(
                "logdensity_fn must return a scalar, but it returned an array of shape "
                f"{logdensity.shape}. Sum the log-densities of the observations, or average "
                "them and multiply by the size of the data set "
                "(blackjax.sgmcmc.gradients.logdensity_estimator does)."
            )
        return logdensity

    return scalar_logdensity


def value_and_grad(logdensity_fn: Callable, minibatch: Any = None, num_parts: int = 1) -> Callable:
    """Return ``position -> ((logdensity, split), gradient)``.

    Parameters
    ----------
    logdensity_fn
        ``(position, minibatch) -> logdensity``, or ``position -> logdensity``
        when ``minibatch`` is None.
    minibatch
        A pytree of arrays with one leading axis.
    num_parts
        1: the minibatch is evaluated as a whole, and ``split`` is None. 2 or 4: its
        halves or quarters are evaluated apart, and ``split`` is a `SplitGradient`.

    Raises
    ------
    ValueError
        If the log-density is not a scalar, or the minibatch cannot be halved.
    """
    gradient_fn = jax.value_and_grad(checked_scalar(logdensity_fn))

    def whole(position):
        batch = () if minibatch is None else (minibatch,)
        logdensity, grad = gradient_fn(position, *batch)
        return (logdensity, None), grad

    def parts(position):
        split = split_minibatch(minibatch, num_parts)
        logdensities, grads = jax.vmap(gradient_fn, (None, 0))(position, split)

        # Sums rather than a matrix product, which would round a float32 to bfloat16
        # on some devices and copy the gradients on others.
        def contrast(row):
            return jax.tree.map(lambda g: sum(c * x for c, x in zip(row, g, strict=True)), grads)

        mean, *noise = map(contrast, CONTRASTS[num_parts].tolist())
        stacked = jax.tree.map(lambda *draws: jnp.stack(draws), *noise)
        return (jnp.mean(logdensities), SplitGradient(mean, stacked)), mean

    return whole if num_parts == 1 else parts


def split_minibatch(minibatch: ArrayTree, num_parts: int = 2) -> ArrayTree:
    """Return the halves or quarters of a minibatch, stacked along a new leading axis.

    Rows are dealt to the parts in turn, so that a sorted minibatch still gives
    parts that are alike.

    Parameters
    ----------
    minibatch
        A pytree of arrays with one leading axis.
    num_parts
        2 or 4, a divisor of the size of the minibatch.

    Raises
    ------
    ValueError
        If the leaves have no common, even leading axis.
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(minibatch)]
    if not shapes or () in shapes or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(
            "The leaves of a minibatch need one common leading axis (the observations); "
            f"got leaves of shapes {shapes}."
        )
    size = shapes[0][0]
    if size < num_parts or size % num_parts:
        kind = "even" if num_parts == 2 else f"a multiple of {num_parts}"
        raise ValueError(
            f"The adaptation measures the gradient noise on {num_parts} parts of each minibatch, "
            f"so the batch size must be {kind}; got {size}."
        )
    parts = range(num_parts)
    return jax.tree.map(lambda leaf: jnp.stack([leaf[i::num_parts] for i in parts]), minibatch)


class Isotropy(NamedTuple):
    r"""Running moments of the whitened noise that say how white it is.

    count
        Number of minibatches.
    square
        Summed :math:`|n_i|^2 / d`, averaged over the draws of a minibatch.
    product
        Summed :math:`(n_i \cdot n_{i+1} / d)^2` over consecutive minibatches, averaged
        over the pairs of their draws. Draws of one minibatch are uncorrelated but not
        independent, and make no pair.
    norm_product, norm_product_square
        Sum of :math:`|n_i|^2 |n_{i+1}|^2 / d^2` over the same pairs, and of its square (which
        leaves the range of float32 in many dimensions, were it not for the :math:`d`).
    previous
        The draws of the last minibatch.
    """

    count: Array
    square: Array
    product: Array
    norm_product: Array
    norm_product_square: Array
    previous: ArrayTree


def init_isotropy(like: ArrayTree, num_draws: int = 1) -> Isotropy:
    """Return empty moments for noise in the shapes of ``like``."""
    zero = jnp.zeros((), _tree.scalar_dtype(like))
    previous = jax.tree.map(lambda x: jnp.zeros((num_draws, *x.shape), x.dtype), like)
    return Isotropy(zero, zero, zero, zero, zero, previous)


def update_isotropy(moments: Isotropy, whitened_noise: ArrayTree) -> Isotropy:
    """Add the draws of one minibatch's whitened noise, along a leading axis."""
    d = _dimension(moments)
    norm2 = jax.vmap(lambda n: _tree.vdot(n, n) / d)
    norms2 = norm2(whitened_noise)
    product = jax.vmap(jax.vmap(lambda n, m: _tree.vdot(n, m) / d, (None, 0)), (0, None))
    norm_product = jnp.mean(norms2) * jnp.mean(norm2(moments.previous))
    return Isotropy(
        count=moments.count + 1,
        square=moments.square + jnp.mean(norms2),
        product=moments.product + jnp.mean(product(whitened_noise, moments.previous) ** 2),
        norm_product=moments.norm_product + norm_product,
        norm_product_square=moments.norm_product_square + norm_product**2,
        previous=whitened_noise,
    )


def _dimension(moments: Isotropy) -> int:
    return pytree_size(jax.tree.map(lambda x: x[0], moments.previous))


def anisotropy(moments: Isotropy) -> tuple[Array, Array, Array]:
    r"""Return the mean variance of the whitened noise and its anisotropy.

    With :math:`C` the covariance of the whitened noise, the mean variance is
    :math:`t_1 = \mathrm{tr}(C)/d`, and the anisotropy is

    .. math::

        a = \sqrt{\max\left(d\, \frac{\mathrm{tr}(C^2)}{\mathrm{tr}(C)^2} - 1, 0\right)},

    the relative standard deviation of the eigenvalues of :math:`C`: 0 for white
    noise, of any strength. Both traces are means over the same pairs of
    draws, so that a short burst of strong noise does not hide the anisotropy of the rest.

    A short window shows an anisotropy where there is none. For noise of independent
    directions at random, :math:`k` draws in each of :math:`n` pairs of minibatches, and the
    pairs' products of norms :math:`q`, the estimate of :math:`a^2` has the standard error

    .. math::

        \sigma = \frac{1}{k} \sqrt{\frac{2 (d - 1)}{d + 2} \frac{\sum q^2}{(\sum q)^2}}
            \approx \frac{1}{k} \sqrt{\frac{2}{n}} .

    Returns
    -------
    :math:`t_1`, :math:`a`, and what of it is significant,
    :math:`\sqrt{\max(a^2 - 2 \sigma, 0)}`; NaN without at least two minibatches.
    """
    num_draws = jax.tree.leaves(moments.previous)[0].shape[0]
    d = _dimension(moments)
    mean_variance = moments.square / moments.count
    excess = d * moments.product / moments.norm_product - 1
    # Ratios first: the square of a sum may leave the range of float32.
    share = jnp.sqrt(moments.norm_product_square) / moments.norm_product
    error = share * math.sqrt(2 * (d - 1) / (d + 2)) / num_draws
    root, significant = (jnp.sqrt(jnp.maximum(x, 0)) for x in (excess, excess - 2 * error))
    return mean_variance, root, significant
