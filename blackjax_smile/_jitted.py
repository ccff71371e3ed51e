"""Functions that are compiled once, however often the functions in them are made again."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from blackjax_smile.minibatch import MinibatchSampler

__all__ = ["MAX_PROGRAMS", "jitted", "remembered"]

#: The programs used last are kept, and with them what their functions close over, a data set.
MAX_PROGRAMS = 32

#: Stands for an array among the static arguments.
ARRAY = object()


def jitted(function: Callable, *static: Any, anew: bool = False) -> Callable:
    """Return ``function(*static, ...)`` jitted, the same one for equal static arguments.

    Unless it is to be made ``anew``: what functions read of global variables may have changed.
    The data of a `MinibatchSampler` among them are arguments of the program: constants would be
    copied several times while it is compiled, and be kept with it.
    """
    leaves, treedef = jax.tree.flatten(static, _is_static)
    is_array = [isinstance(leaf, jax.Array) for leaf in leaves]
    arrays = [leaf for leaf, found in zip(leaves, is_array, strict=True) if found]
    others = tuple(ARRAY if found else leaf for leaf, found in zip(leaves, is_array, strict=True))
    program = (_jit if anew else functools.partial(remembered, _jit))(function, treedef, others)
    return functools.partial(program, arrays)


def _is_static(value: Any) -> bool:
    return not isinstance(value, tuple | MinibatchSampler)


def _jit(function: Callable, treedef: Any, others: tuple) -> Callable:
    def program(arrays, *args):
        rest = iter(arrays)
        leaves = [next(rest) if leaf is ARRAY else leaf for leaf in others]
        return function(*jax.tree.unflatten(treedef, leaves), *args)

    return jax.jit(program)


def remembered(build: Callable, *static: Any) -> Any:
    """Return ``build(*static)``, the same object for equal arguments, if they say all of it."""
    return build(*static) if _may_change(static) else _remembered(build, static)


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
    if isinstance(static, Mesh):  # which is callable, as a decorator
        return False
    if isinstance(static, type) or inspect.isroutine(static):
        return inspect.ismethod(static)
    parameters: Any = getattr(static, "__dataclass_params__", None)
    if parameters is not None and parameters.frozen:
        return any(_may_change(getattr(static, field.name)) for field in dataclasses.fields(static))
    if hasattr(static, "__wrapped__"):  # jax.jit, jax.custom_jvp
        return _may_change(static.__wrapped__)
    return callable(static)


@functools.lru_cache(maxsize=MAX_PROGRAMS)
def _remembered(build: Callable, static: tuple) -> Any:
    return build(*static)
