"""Checks of arguments that many functions have."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["check_key", "check_probabilities", "is_number", "positive_integer"]

#: By which probabilities in half precision may be above 1.
ROUND_OFF = 0.01


def positive_integer(name: str, value: Any) -> int:
    """Return the argument as an integer; raise unless it is one, of at least 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")
    return operator.index(value)


def is_number(value: Any) -> bool:
    """Return whether it is one number, which may be traced."""
    dtype = value.dtype if isinstance(value, jax.core.Tracer) else np.asarray(value).dtype
    return not np.shape(value) and jnp.issubdtype(dtype, jnp.number)


def check_key(rng_key: Any) -> None:
    """Raise unless it is one key, of either of JAX's kinds."""
    dtype, rank = getattr(rng_key, "dtype", np.dtype(object)), np.ndim(rng_key)
    is_typed = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (is_typed and rank == 0) and not (dtype == np.uint32 and rank == 1):
        raise ValueError(f"rng_key must be one key, such as jax.random.key(0); got {rng_key!r}.")


def check_probabilities(name: str, values: Any) -> None:
    """Raise for known numbers beyond 0 and 1 by more than round-off; NaN makes its result NaN."""
    if isinstance(values, jax.core.Tracer):
        return
    values = np.asarray(values)
    wrong = values[(values < -ROUND_OFF) | (values > 1 + ROUND_OFF)]
    if wrong.size:
        raise ValueError(f"{name} must be between 0 and 1, got {wrong[0]}.")
