r"""Models of other libraries as log-densities of a minibatch.

Most need no adapter, for a position is any pytree of floating-point arrays and a
model any function: parameters of flax linen are ``variables["params"]`` with
``module.apply``; flax nnx splits a module by ``nnx.split(model, nnx.Param, ...)``
into a graph, its parameters and other state, copies of which ``nnx.merge`` puts
together; equinox by ``eqx.partition(model, eqx.is_inexact_array)`` and
``eqx.combine``, where the other part keeps activation functions and numbers of
layers. Tested examples of each are in ``tests/test_interop.py``. NumPyro's programs
are turned by `numpyro_logdensity`.

Mutable state, such as the running statistics of batch normalisation, is supported
frozen only: apply the trained network in inference mode, with the statistics of
training as constants (``use_running_average=True``, `equinox.nn.inference_mode`).
Statistics of the minibatch would make the rows depend on each other, so that the
log-density of a minibatch is no unbiased estimate of anything; statistics that
change from step to step would be a target that moves. Dropout is the same: off.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree, PRNGKey

from blackjax_smile._checks import positive_integer
from blackjax_smile.minibatch import data_size as number_of_rows

__all__ = ["NumpyroModel", "numpyro_logdensity"]


class NumpyroModel(NamedTuple):
    """A NumPyro program as functions of an unconstrained position.

    logdensity_fn
        ``(position, minibatch) -> logdensity``, scaled to the full data set.
    init_fn
        ``rng_key -> position``, a dict of the latent sites, unconstrained.
    constrain_fn
        ``position -> position`` on the sites' supports, with the deterministic
        sites; `jax.vmap` it over draws.
    """

    logdensity_fn: Callable[[ArrayTree, ArrayTree], Array]
    init_fn: Callable[[PRNGKey], ArrayTree]
    constrain_fn: Callable[[ArrayTree], ArrayTree]


def numpyro_logdensity(
    model: Callable[[Any], None], data_size: int, example: ArrayTree
) -> NumpyroModel:
    r"""Turn a NumPyro program into a log-density of minibatches.

    The program takes a minibatch as its only argument, and observes its rows. The
    minibatch estimate is

    .. math:: \log p(x) + \frac{N}{B} \sum_{b} \log p(r_b \mid x),

    with the log-determinants of the transforms of the latent sites. Scaled are the
    observed sites, each ``numpyro.factor`` among them, that are computed from the
    rows, whatever their values in the example; and those whose value changes where
    the example has its rows twice. Not scaled are a factor or an observation of the
    parameters alone, which belong to the prior; a mean over the rows, told by a value
    that is the same with the rows twice and is not zero; and latent sites. So keep
    prior and rows in sites of their own.

    Each latent site must be shared by all rows: local latent variables, one per row,
    cannot be sampled by minibatches. Do not scale a second time: no ``subsample_size``
    in a plate, no ``scale`` handler on what is observed.

    Parameters
    ----------
    model
        ``minibatch -> None``, a NumPyro program with continuous latent sites.
    data_size
        Number of rows of the full data set, N.
    example
        A minibatch, of any size; its rows should differ.

    Returns
    -------
    A `NumpyroModel`.

    Raises
    ------
    ValueError
        If the program observes no row, has discrete latent sites, a variable for each
        row or one whose support depends on the rows, a plate with ``subsample_size``, a
        site of which the example does not tell whether it is a mean over the rows, or
        ``data_size`` is less than 1.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import numpyro, numpyro.distributions as dist
    >>> from blackjax_smile.interop import numpyro_logdensity
    >>> def model(y):
    ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    ...     mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
    ...     numpyro.sample("y", dist.Normal(mean, scale), obs=y)
    >>> program = numpyro_logdensity(model, data_size=1000, example=jnp.zeros(20))
    >>> position = program.init_fn(jax.random.key(0))
    >>> sorted(position), bool(program.constrain_fn(position)["scale"] > 0)
    (['mean', 'scale'], True)
    """
    from numpyro import handlers
    from numpyro.infer.util import constrain_fn, potential_energy, unconstrain_fn

    data_size = positive_integer("data_size", data_size)

    def trace_of(program: Callable, rng_key: PRNGKey, minibatch: ArrayTree) -> dict[str, Any]:
        trace = handlers.trace(handlers.seed(program, rng_key)).get_trace(minibatch)
        _check_plates(trace)
        return {name: site for name, site in trace.items() if site["type"] == "sample"}

    def prior_draw(rng_key: PRNGKey) -> dict[str, Array]:
        drawn = trace_of(model, rng_key, example)
        return {name: site["value"] for name, site in drawn.items() if name in latent}

    def log_probs(rng_key: PRNGKey, values: dict[str, Array], rows: ArrayTree) -> dict[str, Array]:
        sites = trace_of(handlers.substitute(model, values), rng_key, rows)
        observed = {name: site for name, site in sites.items() if site["is_observed"]}
        return {name: site["fn"].log_prob(site["value"]) for name, site in observed.items()}

    def init_fn(rng_key: PRNGKey) -> ArrayTree:
        return unconstrain_fn(model, (example,), {}, prior_draw(rng_key))

    def logdensity_fn(position: ArrayTree, minibatch: ArrayTree) -> Array:
        factor = data_size / number_of_rows(minibatch)
        scaled = _scale_sites(model, of_rows, factor, handlers)
        return -potential_energy(scaled, (minibatch,), {}, position)

    def constrain(position: ArrayTree) -> ArrayTree:
        return constrain_fn(model, (example,), {}, position, return_deterministic=True)

    num_rows = number_of_rows(example)  # raises if there is no common leading axis
    twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), example)
    keys = jax.random.split(jax.random.key(0), 5)
    sites, doubled = (trace_of(model, keys[0], rows) for rows in (example, twice))
    latent = {name: site for name, site in sites.items() if not site["is_observed"]}
    _check_latent(latent, doubled)
    # At several draws of the prior, for at one of them a log-probability may not be finite.
    functions = [functools.partial(log_probs, key, prior_draw(key)) for key in keys]
    of_rows = _sites_of_rows(functions, example, twice)
    position = init_fn(jax.random.key(0))
    halves = (slice(0, -(-num_rows // 2)), slice(num_rows // 2, None))
    parts = [jax.tree.map(operator.itemgetter(rows), example) for rows in halves]
    _check_supports([constrain_fn(model, (part,), {}, position) for part in (example, *parts)])
    return NumpyroModel(logdensity_fn, init_fn, constrain)


def _sites_of_rows(
    functions: Sequence[Callable[[ArrayTree], dict[str, Array]]],
    example: ArrayTree,
    twice: ArrayTree,
) -> set[str]:
    """Return the sites that are sums over the rows.

    ``functions`` give the sites' log-probabilities for a minibatch, each at other values of the
    latent sites; ``twice`` is the example with each row twice.
    """
    depend = _computed_from(functions[0], example)
    first = jax.tree.map(operator.itemgetter(slice(0, 1)), example)
    changed: set[str] = set()
    means: set[str] = set()
    unclear: set[str] = set()
    for function in functions:
        once, double = function(example), function(twice)
        for name, value in once.items():
            if not _is_same(value, double[name]):
                changed.add(name)
            # Zero is no evidence: the rows of the example may all be of the kind that adds none.
            elif name in depend and jnp.any(jnp.isfinite(value) & (value != 0)):
                (unclear if _is_same(value, function(first)[name]) else means).add(name)
    if unclear:
        raise ValueError(
            f"The sites {sorted(unclear)} are computed from the rows, but have one value for the "
            "example, for its rows twice over and for its first row: it cannot be told whether "
            "they are sums over the rows, to be scaled to data_size. Keep prior and rows in sites "
            "of their own, and take an example whose rows differ."
        )
    of_rows = (changed | depend) - means
    if not of_rows:
        raise ValueError(
            "The program observes no row of its minibatch: give a site obs=, from the minibatch."
        )
    return of_rows


def _computed_from(
    function: Callable[[ArrayTree], dict[str, Array]], example: ArrayTree
) -> set[str]:
    """Return the names of a function's values that are computed from more than its input's shape.

    Told by `jax.vmap`, which follows what is computed from the input that it maps over.
    """
    found: dict[str, bool] = {}

    @jax.custom_batching.custom_vmap
    def tell(values: dict[str, Array]) -> dict[str, Array]:
        return values

    @tell.def_vmap
    def note(axis_size: int, is_mapped: list, values: dict[str, Array]) -> tuple:
        found.update(is_mapped[0])
        return values, is_mapped[0]

    one = jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), example)
    jax.eval_shape(jax.vmap(lambda rows: tell(function(rows))), one)
    return {name for name, is_mapped in found.items() if is_mapped}


def _is_same(a: Array, b: Array) -> bool:
    """Return whether log-probabilities are the same up to rounding, of which a mean has some."""
    return jnp.shape(a) == jnp.shape(b) and bool(jnp.allclose(a, b, 1e-5, 0.0, equal_nan=True))


def _scale_sites(model: Callable, names: set[str], factor: float, handlers: Any) -> Callable:
    """Return the program with the log-probabilities of some sites multiplied by a factor."""

    class ScaleSites(handlers.scale):
        def process_message(self, message: dict) -> None:
            if message["type"] == "sample" and message["name"] in names:
                super().process_message(message)

    return ScaleSites(model, scale=factor)


def _check_plates(trace: dict[str, Any]) -> None:
    """Raise for a plate that takes some of its rows: the minibatch has been drawn already."""
    plates = {name: site["args"] for name, site in trace.items() if site["type"] == "plate"}
    taken = [name for name, (size, some) in plates.items() if some not in (None, size)]
    if taken:
        raise ValueError(
            f"The plates {taken} have a subsample_size, but the program's rows are those of a "
            "minibatch, which are scaled to data_size here. Make them plates of the minibatch's "
            "size alone: numpyro.plate(name, len(minibatch))."
        )


def _check_latent(latent: dict[str, Any], doubled: dict[str, Any]) -> None:
    """Raise for what cannot be sampled; ``doubled`` are the sites with twice the rows."""
    discrete = [name for name, site in latent.items() if site["fn"].is_discrete]
    if discrete:
        raise ValueError(
            f"Discrete sites cannot be sampled by gradients: {discrete}. Sum them out."
        )
    local = [
        name
        for name, site in latent.items()
        if jnp.shape(site["value"]) != jnp.shape(doubled[name]["value"])
    ]
    if local:
        raise ValueError(
            f"The sites {local} have a variable for each row, which cannot be sampled by "
            "minibatches. Integrate them out."
        )


def _check_supports(values: list[dict[str, Array]]) -> None:
    """Raise if a position stands for other values where the program sees other rows."""
    first, *others = values
    changed = {
        name
        for other in others
        for name in first
        if not bool(jnp.array_equal(first[name], other[name], equal_nan=True))
    }
    if changed:
        raise ValueError(
            f"The supports of the sites {sorted(changed)} depend on the rows, so that a position "
            "would mean another thing to each minibatch. Use bounds that are known beforehand."
        )
