"""Calls that are compiled once, however often the functions in them are made again."""

import functools
from collections.abc import Callable
from typing import Any

import jax

__all__ = ["call_jitted"]


def call_jitted(function: Callable, static: tuple, *args: Any) -> Any:
    """Return ``function(*static, *args)``, compiled once for equal static arguments."""
    try:
        hash(static)
    except TypeError:  # a method of an object that is not hashable
        return jax.jit(functools.partial(function, *static))(*args)
    return _cached(function, static, *args)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _cached(function: Callable, static: tuple, *args: Any) -> Any:
    return function(*static, *args)
