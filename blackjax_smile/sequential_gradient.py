"""Gradients of vmapped chains taken one after the other."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from blackjax.types import Array, ArrayTree

from blackjax_smile.minibatch_gradient import checked_scalar

__all__ = ["sequential_gradient"]


def sequential_gradient(logdensity_fn: Callable[..., Array]) -> Callable[..., Array]:
    """Take the gradients of chains that run side by side one after the other.

    Under `jax.vmap` the parameters of all chains enter the model at once. For matrix
    products that is fast; a convolution becomes a grouped one, which on a GPU takes several
    times as long as the chains' own convolutions in turn. It also needs the memory of
    all chains' activations. Here `jax.vmap` over the value or the gradient of the
    log-density becomes a loop on the device. So do the halves of a minibatch, on which
    the warmup measures the gradient noise.

    Parameters
    ----------
    logdensity_fn
        ``(position, minibatch) -> logdensity``, or ``position -> logdensity``. May close over
        arrays, but not over values traced by `jax.vmap`.

    Returns
    -------
    The same function with that rule; pass it to `train_ensemble`, `smile_adaptation`,
    `sample` or any BlackJAX sampler. It has a derivative with respect to the position alone, in
    reverse mode, once. Where a `jax.sharding.Mesh` divides the chains, leave it off:
    chains on different devices should not wait for one another.

    Raises
    ------
    ValueError
        By the function returned, if the log-density is not a scalar.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, blackjax_smile
    >>> def logdensity_fn(x, batch):
    ...     return -0.5 * x @ x - 500 * jnp.mean(jnp.sum((batch - x) ** 2, axis=1))
    >>> in_turn = blackjax_smile.sequential_gradient(logdensity_fn)
    >>> batches = jax.random.normal(jax.random.key(0), (4, 50, 2))
    >>> jax.vmap(jax.grad(in_turn), (None, 0))(jnp.ones(2), batches).shape
    (4, 2)
    """
    scalar_fn = checked_scalar(logdensity_fn)
    value_fn = jax.custom_batching.sequential_vmap(scalar_fn)
    value_and_grad_fn = jax.custom_batching.sequential_vmap(jax.value_and_grad(scalar_fn))

    # Neither rule alone does: sequential_vmap has no reverse mode, and the gradient must be
    # taken inside the loop, or the loop would keep all chains' activations.
    @jax.custom_vjp
    def in_turn(position: ArrayTree, minibatch: tuple[Any, ...]) -> Array:
        return value_fn(position, *minibatch)

    def forward(position: ArrayTree, minibatch: tuple[Any, ...]) -> tuple[Array, ArrayTree]:
        return value_and_grad_fn(position, *minibatch)

    def backward(grad: ArrayTree, cotangent: Array) -> tuple[ArrayTree, None]:
        return jax.tree.map(lambda g: cotangent.astype(g.dtype) * g, grad), None

    in_turn.defvjp(forward, backward)

    @functools.wraps(logdensity_fn)
    def sequential_logdensity_fn(position: ArrayTree, *minibatch: Any) -> Array:
        return in_turn(position, minibatch)

    return sequential_logdensity_fn
