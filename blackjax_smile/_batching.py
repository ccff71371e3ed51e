"""A conditional that stays one under `jax.vmap`, and keys for conditionals."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from blackjax.types import Array, PRNGKey

from blackjax_smile import _tree

__all__ = ["rarely", "unwrap_key"]


def rarely(predicate: Array, function: Callable[..., Any], operand: Any, *args: Any) -> Any:
    """Return ``function(operand, *args)`` where the predicate holds, else ``operand``.

    Under `jax.vmap`, `jax.lax.cond` runs both branches for every chain. Here
    ``function`` runs only when some chain needs it, for all of them, and each
    chain gets what its own predicate says.

    Parameters
    ----------
    predicate
        A boolean scalar.
    function
        Maps the operand to a tree of the same structure, shapes and dtypes. It
        must not close over traced arrays: pass them as ``args``.
    operand, args
        Trees of arrays.
    """

    @jax.custom_batching.custom_vmap
    def conditional(predicate, operand, args):
        return jax.lax.cond(
            predicate,
            lambda operand, args: function(operand, *args),
            lambda operand, _: operand,
            operand,
            args,
        )

    @conditional.def_vmap
    def rule(axis_size, in_batched, predicate, operand, args):
        def broadcast(is_batched, x):
            return x if is_batched else jnp.broadcast_to(x, (axis_size, *jnp.shape(x)))

        predicate, operand = jax.tree.map(broadcast, in_batched[:2], [predicate, operand])
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, in_batched[2])

        def masked(operand, predicate, args):
            def one(predicate, operand, args):
                return _tree.select(predicate, function(operand, *args), operand)

            return jax.vmap(one, in_axes=(0, 0, axes))(predicate, operand, args)

        out = rarely(jnp.any(predicate), masked, operand, predicate, args)
        return out, jax.tree.map(lambda _: True, out)

    return conditional(predicate, operand, args)


def unwrap_key(rng_key: PRNGKey) -> tuple[Array, Callable[[Array], PRNGKey]]:
    """Return a key's numbers, and the function that makes a key of them.

    For a conditional: JAX's checker of the reuse of keys (``jax_debug_key_reuse``) counts what
    each branch draws, though one draw alone is used.
    """
    wrap = functools.partial(jax.random.wrap_key_data, impl=jax.random.key_impl(rng_key))
    return jax.random.key_data(rng_key), wrap
