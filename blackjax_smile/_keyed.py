"""Functions that draw: each posterior draw has a key, and each row a number to fold into it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayLikeTree, PRNGKey

from blackjax_smile._batching import unwrap_keys
from blackjax_smile._streaming import flat_draws
from blackjax_smile.minibatch import data_size

__all__ = ["with_keys"]


@dataclasses.dataclass(frozen=True)
class _Keyed:
    """A function that draws, of a position with its key and a row with its number."""

    sample_fn: Callable
    wrap: Callable[[Array], PRNGKey]

    def __call__(self, position: Any, row: Any) -> Array:
        (position, key_data), (row, index) = position, row
        return self.sample_fn(jax.random.fold_in(self.wrap(key_data), index), position, row)


def with_keys(
    rng_key: PRNGKey, sample_fn: Callable, positions: ArrayLikeTree, data: ArrayLikeTree
) -> tuple[_Keyed, tuple, tuple, tuple[int, int]]:
    """Return the function of draws, each with a key of its own, and rows, each with its number.

    And the draws' two leading axes, as `flat_draws` does.
    """
    draws, leading = flat_draws(positions)
    # As numbers: each block of rows would count as one more use of the keys.
    key_data, wrap = unwrap_keys(jax.random.split(rng_key, leading[0] * leading[1]))
    indexed = (data, jnp.arange(data_size(data)))
    return _Keyed(sample_fn, wrap), (draws, key_data), indexed, leading
