"""What the compiled parts of a run share: keys, and minibatches from device or host.

Each part takes its first and last step as traced numbers, so that one program
serves pieces of any length, and draws all randomness from a key and the step's
number, so that the result does not depend on how the run was cut.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from blackjax.types import Array, ArrayTree

__all__ = ["Block", "Keys", "MinibatchGetter", "keys_at"]


class Block(NamedTuple):
    """Minibatches from the host for consecutive gradients, or what draws them on the device.

    minibatches
        Leaves of leading axes (gradient, chain), or (gradient,) when shared; a
        `MinibatchSampler`; None where another function draws them.
    first
        Number of the first gradient.
    """

    minibatches: ArrayTree | None
    first: Any


class Keys(NamedTuple):
    """Keys of every chain, in the form `jax.random.key_data` gives."""

    init: Array
    probe: Array
    step: Array
    window: Array
    sample: Array


class MinibatchGetter(NamedTuple):
    """Minibatches of one gradient for all chains, from the device or from a block.

    minibatch_fn
        None: the minibatches, or their sampler, come in blocks.
    in_blocks
        Whether blocks hold minibatches.
    is_shared
        Whether a block holds one minibatch for all chains.
    constrain
        Lays a minibatch out over the devices.
    """

    minibatch_fn: Callable | None
    in_blocks: bool
    is_shared: bool
    constrain: Callable[[ArrayTree], ArrayTree]

    @property
    def axis(self) -> int | None:
        return None if self.is_shared else 0

    def __call__(self, keys: Array, gradient: Array, block: Block) -> ArrayTree:
        if not self.in_blocks:
            draw: Any = block.minibatches if self.minibatch_fn is None else self.minibatch_fn
            return self.constrain(jax.vmap(draw)(keys))
        at = gradient - block.first
        return jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, at, keepdims=False), block.minibatches
        )


def keys_at(data: Array, index: Array, impl: str) -> Array:
    """Return each chain's key of one step."""
    return jax.vmap(jax.random.fold_in, (0, None))(jax.random.wrap_key_data(data, impl=impl), index)
