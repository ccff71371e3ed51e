"""A conditional that stays one under `jax.vmap`, and keys for conditionals."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from blackjax.types import Array

from blackjax_smile import _tree

__all__ = ["rarely", "unwrap_keys"]


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
        Trees of arrays; of the args, keys too.
    """
    args, wrap = unwrap_keys(args)

    def branches(predicate, operand, args):
        return jax.lax.cond(
            predicate,
            lambda operand, args: function(operand, *wrap(args)),
            lambda operand, _: operand,
            operand,
            args,
        )

    conditional = jax.custom_batching.custom_vmap(branches)

    @conditional.def_vmap
    def rule(axis_size, in_batched, predicate, operand, args):
        def broadcast(is_batched, x):
            return x if is_batched else jnp.broadcast_to(x, (axis_size, *jnp.shape(x)))

        if not any(jax.tree.leaves(in_batched)):
            # Derivatives alone are batched (`jax.jacfwd`): under these the rule would call itself.
            out = branches(predicate, operand, args)
            return out, jax.tree.map(lambda _: False, out)
        predicate, operand = jax.tree.map(broadcast, in_batched[:2], [predicate, operand])
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, in_batched[2])

        def masked(operand, predicate, args):
            def one(predicate, operand, args):
                return _tree.select(predicate, function(operand, *wrap(args)), operand)

            return jax.vmap(one, in_axes=(0, 0, axes))(predicate, operand, args)

        out = rarely(jnp.any(predicate), masked, operand, predicate, args)
        return out, jax.tree.map(lambda _: True, out)

    return conditional(predicate, operand, args)


@dataclasses.dataclass(frozen=True)
class _Wrap:
    """Makes keys of their numbers again; equal for trees of the same kinds of leaves.

    impls
        Of each leaf that was a key its implementation, None of the others.
    """

    impls: tuple[Any, ...]

    def __call__(self, tree: Any) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        wrapped = [
            leaf if impl is None else jax.random.wrap_key_data(leaf, impl=impl)
            for leaf, impl in zip(leaves, self.impls, strict=True)
        ]
        return jax.tree.unflatten(structure, wrapped)


def unwrap_keys(tree: Any) -> tuple[Any, _Wrap]:
    """Return the tree with the numbers of its keys in their place, and what makes keys of them.

    For conditionals and loops: JAX's checker of the reuse of keys (``jax_debug_key_reuse``)
    counts what each branch draws, though one draw alone is used.
    """
    leaves, structure = jax.tree.flatten(tree)
    is_key = [
        isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        for leaf in leaves
    ]
    impls = [jax.random.key_impl(x) if key else None for x, key in zip(leaves, is_key, strict=True)]
    numbers = [jax.random.key_data(x) if key else x for x, key in zip(leaves, is_key, strict=True)]
    return jax.tree.unflatten(structure, numbers), _Wrap(tuple(impls))
