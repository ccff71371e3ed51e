"""What makes two runs the same: a checkpoint of another one is refused."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from blackjax.types import ArrayTree, PRNGKey
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

__all__ = [
    "FIRST_MINIBATCH",
    "differences",
    "digest",
    "fingerprint",
    "program_digest",
    "run_id",
]

#: What may differ, with a warning: an iterable without a seed is no reason not to go on.
FIRST_MINIBATCH = "first minibatch"

#: Elements of a constant that are looked at: enough to tell data sets apart.
MAX_ELEMENTS = 2**20


def fingerprint(
    *,
    rng_key: PRNGKey,
    positions: ArrayTree,
    logdensity_fn: str,
    collect: str,
    minibatches: str,
    example: ArrayTree,
    rows: ArrayTree,
    adapted: ArrayTree,
    first_minibatch: str | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Return a JSON description of a run, everything its draws depend on.

    Functions are given by their `program_digest`.
    """
    from blackjax_smile import __version__  # not at the top: the package imports this module

    return {
        "blackjax_smile version": __version__,
        "jax version": jax.__version__,
        "platform": jax.default_backend(),
        "rng_key": f"{jax.random.key_impl(rng_key)} {jax.random.key_data(rng_key).tolist()}",
        "positions (shapes and dtypes)": _shapes(positions),
        "positions (values)": digest(jax.tree.leaves(positions)),
        "minibatch (shapes and dtypes)": _shapes(example),
        "minibatches": minibatches,
        FIRST_MINIBATCH: first_minibatch,
        "logdensity_fn": logdensity_fn,
        "collect": collect,
        "draws (shapes and dtypes)": _shapes(rows),
        "preconditioner (shapes and dtypes)": _shapes(adapted),
        **settings,
    }


def differences(stored: dict[str, Any], present: dict[str, Any]) -> dict[str, str]:
    """Return what differs, by name, in words."""
    names = list(dict.fromkeys([*stored, *present]))
    return {
        name: f"{name}: was {stored.get(name)}, is {present.get(name)}"
        for name in names
        if stored.get(name) != present.get(name)
    }


def run_id(description: dict[str, Any]) -> str:
    """Return a short name of a run."""
    binding = sorted(item for item in description.items() if item[0] != FIRST_MINIBATCH)
    return hashlib.blake2b(repr(binding).encode(), digest_size=8).hexdigest()


def _shapes(tree: ArrayTree) -> str:
    parts = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path) or "array"
        parts.append(f"{name} {jax.numpy.dtype(leaf.dtype).name}{list(leaf.shape)}")
    return ", ".join(parts)


def program_digest(function: Callable, *arguments: Any) -> str:
    """Return a digest of what a function computes now, its constants included."""
    # By another function each time: JAX remembers what it traced, global variables may change.
    traced = jax.make_jaxpr(lambda *arguments: function(*arguments))(*arguments)
    # In colour on a terminal, unless told; and functions inside with where they lie in memory.
    text = re.sub(r"0x[0-9a-f]+", "", traced.jaxpr.pretty_print(use_color=False))
    return digest(_constants(traced), text.encode())


def _constants(program: Any) -> Iterator[Any]:
    """Yield the arrays in a program and in those that it calls: a jitted one keeps its own."""
    if isinstance(program, ClosedJaxpr):
        yield from program.consts
    # From JAX 0.12 on the two are one class.
    if isinstance(program, ClosedJaxpr | Jaxpr):
        for equation in program.eqns:
            yield from (x.val for x in equation.invars if isinstance(x, Literal))
            yield from _constants(list(equation.params.values()))
    elif isinstance(program, (list, tuple)):
        for part in program:
            yield from _constants(part)


def digest(arrays: Iterable[Any], start: bytes = b"") -> str:
    """Return a digest of the values of arrays; of the large ones of some."""
    found = hashlib.blake2b(start, digest_size=8)
    for array in arrays:
        if jax.numpy.issubdtype(getattr(array, "dtype", np.float32), jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            continue
        flat = np.asarray(array).reshape(-1)
        flat = flat[:: max(len(flat) // MAX_ELEMENTS, 1)]
        found.update(np.ascontiguousarray(flat).tobytes())
    return found.hexdigest()
