"""Checks of arguments that many functions have."""

import operator
from typing import Any

__all__ = ["positive_integer"]


def positive_integer(name: str, value: Any) -> int:
    """Return the argument as an integer; raise unless it is one, of at least 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")
    return operator.index(value)
