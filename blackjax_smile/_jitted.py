"""Functions that are compiled once, however often the functions in them are made again."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax

__all__ = ["MAX_PROGRAMS", "jitted"]

#: The programs used last are kept, and with them what their functions close over, a data set.
MAX_PROGRAMS = 32


def jitted(function: Callable, *static: Any) -> Callable:
    """Return ``function(*static, ...)`` jitted, the same one for equal static arguments."""
    if _may_change(static):
        return jax.jit(functools.partial(function, *static))
    return _jitted_once(function, static)


def _may_change(static: Any) -> bool:
    """Return whether a static argument may equal itself and no longer compute the same.

    A method is equal to itself whatever became of its object. What has no hash is not known.
    """
    try:
        hash(static)
    except TypeError:
        return True
    if isinstance(static, tuple):
        return any(map(_may_change, static))
    if isinstance(static, functools.partial):
        return _may_change((static.func, *static.args, *static.keywords.values()))
    if dataclasses.is_dataclass(static) and not isinstance(static, type):
        return any(_may_change(getattr(static, field.name)) for field in dataclasses.fields(static))
    return inspect.ismethod(static)


@functools.lru_cache(maxsize=MAX_PROGRAMS)
def _jitted_once(function: Callable, static: tuple) -> Callable:
    return jax.jit(functools.partial(function, *static))
