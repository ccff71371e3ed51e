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

    A method is equal to itself whatever became of its object, and an object that is called is
    equal to itself, too. What has no hash is not known.
    """
    try:
        hash(static)
    except TypeError:
        return True
    if isinstance(static, tuple):
        return any(map(_may_change, static))
    if isinstance(static, functools.partial):
        return _may_change((static.func, *static.args, *static.keywords.values()))
    if isinstance(static, type) or inspect.isroutine(static):
        return inspect.ismethod(static)
    parameters: Any = getattr(static, "__dataclass_params__", None)
    if parameters is not None and parameters.frozen:
        return any(_may_change(getattr(static, field.name)) for field in dataclasses.fields(static))
    if hasattr(static, "__wrapped__"):  # jax.jit, jax.custom_jvp
        return _may_change(static.__wrapped__)
    return callable(static)


@functools.lru_cache(maxsize=MAX_PROGRAMS)
def _jitted_once(function: Callable, static: tuple) -> Callable:
    return jax.jit(functools.partial(function, *static))
