"""Minibatches: drawing them on the device, and binding them to an algorithm."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.base import SamplingAlgorithm
from blackjax.types import Array, ArrayLikeTree, ArrayTree, PRNGKey
from jax.interpreters.partial_eval import dce_jaxpr

from blackjax_smile._sharding import automatic

__all__ = [
    "MinibatchSampler",
    "NoInfo",
    "ScheduledState",
    "check_batch_size",
    "check_minibatch_fn",
    "check_no_data_set",
    "check_random",
    "data_size",
    "minibatch_sampler",
    "with_minibatches",
]


#: Kinds of NumPy's dtypes that JAX does not take: objects, bytes, text, dates, durations.
NO_NUMBERS = "OSUMm"


def data_size(data: ArrayLikeTree) -> int:
    """Return the number of observations, the leaves' common leading axis.

    Raises
    ------
    ValueError
        If there is no leaf, no observation, no common leading axis, or a leaf holds no numbers.
    """
    leaves = {
        jax.tree_util.keystr(path) or "data": leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(data)
    }
    if not leaves:
        raise ValueError("The data set holds no array.")
    for name, leaf in leaves.items():
        if getattr(getattr(leaf, "dtype", None), "kind", "f") in NO_NUMBERS:
            raise ValueError(
                f"The data must be numbers, but {name} has dtype {leaf.dtype}. Convert it, for "
                "example by numpy.asarray(x, numpy.float32); code categories and text as integers."
            )
    shapes = {name: jnp.shape(leaf) for name, leaf in leaves.items()}
    if () in shapes.values():
        scalars = [name for name, shape in shapes.items() if shape == ()]
        more = f" and {len(scalars) - 3} more" if len(scalars) > 3 else ""
        raise ValueError(
            "Every leaf of the data needs a leading axis (the observations), but "
            f"{', '.join(scalars[:3])}{more} are scalars. Lists of numbers are trees to JAX: "
            "convert them by numpy.asarray."
        )
    sizes = {name: shape[0] for name, shape in shapes.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"The leaves of the data differ in their number of rows: {sizes}.")
    size = next(iter(sizes.values()))
    if size == 0:
        raise ValueError("The data set is empty: its leading axis has length 0.")
    return size


def check_batch_size(batch_size: Any, size: int) -> int:
    """Return the batch size; raise unless it is an integer from 1 to the number of rows."""
    if not hasattr(batch_size, "__index__") or not 1 <= batch_size <= size:
        raise ValueError(
            f"batch_size must be an integer between 1 and the {size} observations of the data set, "
            f"got {batch_size!r}."
        )
    return operator.index(batch_size)


def check_minibatch_fn(minibatch_fn: Any) -> None:
    """Raise unless it is a function."""
    if not callable(minibatch_fn):
        raise ValueError(
            "minibatch_fn must be a function rng_key -> minibatch, such as minibatch_sampler(data, "
            f"batch_size); got {type(minibatch_fn).__name__}."
        )


def check_random(minibatch_fn: Callable[[PRNGKey], ArrayTree], rng_key: PRNGKey) -> None:
    """Raise if a minibatch does not depend on the key.

    Random numbers of the host (NumPy's, Python's) are drawn once, when a program is compiled:
    every step would have the same minibatch.
    """
    if isinstance(minibatch_fn, MinibatchSampler):
        return
    key = jax.eval_shape(lambda key: key, rng_key)
    program = jax.make_jaxpr(minibatch_fn)(key).jaxpr
    _, used = dce_jaxpr(program, [True] * len(program.outvars))
    # What a callback with side effects returns is its own affair.
    if not any(used) and not program.effects:
        raise ValueError(
            "minibatch_fn does not use its rng_key, so all minibatches would be the same: random "
            "numbers of the host (numpy.random, random) are drawn once, when the function is "
            "compiled. Use minibatch_sampler(data, batch_size), draw with jax.random, or pass an "
            "iterable of minibatches."
        )


def check_no_data_set(minibatches: Any, remedy: str) -> None:
    """Raise if what should yield minibatches is itself a data set; say what to do."""
    is_data = isinstance(minibatches, tuple | dict) or hasattr(minibatches, "shape")
    if isinstance(minibatches, list) and len(minibatches) > 1:
        # Minibatches have equal shapes; the inputs and outputs of a model have not.
        shapes = [jax.tree.map(jnp.shape, minibatch) for minibatch in minibatches[:2]]
        is_data = shapes[0] != shapes[1]
    if is_data:
        raise ValueError(
            f"minibatches looks like a data set (a {type(minibatches).__name__} of arrays): "
            f"{remedy}. An iterable of minibatches may be a list, a data loader, a generator."
        )


def minibatch_sampler(
    data: ArrayLikeTree, batch_size: int, replace: bool = True
) -> "MinibatchSampler":
    """Return a function that draws minibatches of a data set held on the device.

    Parameters
    ----------
    data
        A pytree of arrays with one leading axis of length N, the observations.
        Dtypes are kept.
    batch_size
        Number of observations in a minibatch. The adaptation needs it even.
    replace
        Whether an observation can be drawn twice into one minibatch. Drawing
        without replacement permutes N indices in every call, which is slow for
        large N and gains little unless the batch is a good part of the data.

    Returns
    -------
    ``minibatch_fn(rng_key) -> minibatch``: a pytree like ``data`` with leading
    axis ``batch_size``. Works under `jax.jit`, `jax.vmap` and `jax.lax.scan`, and is a pytree
    of the data itself, so a jitted function can take it as an argument.

    Raises
    ------
    ValueError
        If the data set is empty, its leaves differ in length or have no leading
        axis, or the batch size is not between 1 and N.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, blackjax_smile
    >>> data = {"x": jnp.arange(10.0), "y": jnp.arange(10)}
    >>> minibatch_fn = blackjax_smile.minibatch_sampler(data, batch_size=4)
    >>> minibatch_fn(jax.random.key(0))["x"].shape
    (4,)
    """
    size = data_size(data)
    batch_size = check_batch_size(batch_size, size)
    return MinibatchSampler(jax.tree.map(jnp.asarray, automatic(data)), batch_size, bool(replace))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class MinibatchSampler:
    """Minibatches of rows of arrays; what `minibatch_sampler` returns.

    A pytree, so that compiled programs take the data as an argument. As a constant of theirs
    it would be copied several times.
    """

    data: ArrayTree
    batch_size: int = dataclasses.field(metadata={"static": True})
    replace: bool = dataclasses.field(metadata={"static": True})

    def __call__(self, rng_key: PRNGKey) -> ArrayTree:
        """Return a minibatch."""
        size = len(jax.tree.leaves(self.data)[0])
        if self.replace:
            indices = jax.random.randint(rng_key, (self.batch_size,), 0, size)
        else:
            indices = jax.random.choice(rng_key, size, (self.batch_size,), replace=False)
        return jax.tree.map(lambda leaf: leaf[indices], self.data)


class NoInfo(NamedTuple):
    """The Info of a step of an algorithm that returns none."""


class ScheduledState(NamedTuple):
    """State of a bound algorithm that has a schedule among its step arguments.

    state
        The algorithm's own state.
    count
        Number of steps taken, which the schedules are called with.
    """

    state: Any
    count: Array


def with_minibatches(
    algorithm: SamplingAlgorithm,
    minibatch_fn: Callable[[PRNGKey], ArrayTree],
    *step_args: Any,
) -> SamplingAlgorithm:
    """Bind minibatches (and further step arguments) to a stochastic-gradient algorithm.

    The result has ``step(rng_key, state)`` and runs under
    ``blackjax.util.run_inference_algorithm`` and ``thin_algorithm``. Works for
    `blackjax_smile.smile` and for BlackJAX's ``sgld``, ``sghmc`` and ``sgnht``.

    Parameters
    ----------
    algorithm
        Has ``step(rng_key, state, minibatch, *step_args)``, returning the new
        state, or the new state and an Info.
    minibatch_fn
        ``rng_key -> minibatch``; called with a fresh key in every step.
    step_args
        Passed on to ``step``. One that is callable is a schedule (optax's, say):
        it is called with the number of steps taken, and the state becomes a
        `ScheduledState`, made by the returned ``init``.

    Returns
    -------
    A ``SamplingAlgorithm`` whose step always returns ``(state, info)``; `NoInfo`
    stands for an Info that the algorithm does not return.

    Raises
    ------
    ValueError
        If ``algorithm`` is none that was built, or ``minibatch_fn`` no function.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, blackjax, blackjax_smile
    >>> data = jax.random.normal(jax.random.key(0), (100,))
    >>> grad_fn = lambda position, batch: jnp.sum(batch - position, keepdims=True)
    >>> bound = blackjax_smile.with_minibatches(
    ...     blackjax.sgld(grad_fn), blackjax_smile.minibatch_sampler(data, 10), 1e-3)
    >>> final, (positions, _) = blackjax.util.run_inference_algorithm(
    ...     jax.random.key(1), bound, num_steps=50, initial_position=jnp.zeros(1))
    >>> positions.shape
    (50, 1)
    """
    check_minibatch_fn(minibatch_fn)
    if not (hasattr(algorithm, "init") and hasattr(algorithm, "step")):
        raise ValueError(
            "algorithm must be what smile(logdensity_fn, **parameters) returns, or another with "
            f"init and step, got {type(algorithm).__name__}."
        )
    is_scheduled = any(map(callable, step_args))

    def init_fn(*args: Any, **kwargs: Any):
        state = algorithm.init(*args, **kwargs)
        return ScheduledState(state, jnp.zeros((), jnp.int32)) if is_scheduled else state

    def step_fn(rng_key: PRNGKey, state: Any):
        if is_scheduled and not isinstance(state, ScheduledState):
            raise TypeError(
                "A schedule needs a step count in the state: make the state with the init of "
                f"the algorithm that with_minibatches returns (got {type(state).__name__})."
            )
        inner, count = state if is_scheduled else (state, 0)
        args = [arg(count) if callable(arg) else arg for arg in step_args]
        batch_key, step_key = jax.random.split(rng_key)
        result = algorithm.step(step_key, inner, minibatch_fn(batch_key), *args)
        # A step without an Info returns just what it was given, a state; positions
        # may be tuples, so their length says nothing.
        returns_info = jax.tree.structure(result) != jax.tree.structure(inner)  # type: ignore[operator]
        if not returns_info:
            new, info = result, NoInfo()
        else:
            new, info = result
        return (ScheduledState(new, count + 1) if is_scheduled else new), info

    return SamplingAlgorithm(init_fn, step_fn)
