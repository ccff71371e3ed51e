r"""Models of other libraries as log-densities of a minibatch.

Most need no adapter, for a position is any pytree of floating-point arrays and a
model any function: parameters of flax linen are ``variables["params"]`` with
``module.apply``; flax nnx splits a module by ``nnx.split(model, nnx.Param, ...)``
into a graph and its parameters, put together by ``nnx.merge``; equinox by
``eqx.partition(model, eqx.is_inexact_array)`` and ``eqx.combine``, where the other
part keeps activation functions and numbers of layers. Tested examples of each are
in ``tests/test_interop.py``. NumPyro's programs are turned by `numpyro_logdensity`.

Mutable state, such as the running statistics of batch normalisation, is supported
frozen only: apply the trained network in inference mode, with the statistics of
training as constants (``use_running_average=True``, `equinox.nn.inference_mode`).
Statistics of the minibatch would make the rows depend on each other, so that the
log-density of a minibatch is no unbiased estimate of anything; statistics that
change from step to step would be a target that moves. Dropout is the same: off.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree, PRNGKey

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

    with the log-determinants of the transforms of the latent sites. Observed sites
    are scaled, latent ones not, so each latent site must be shared by all rows:
    local latent variables, one per row, cannot be sampled by minibatches. Do not
    scale a second time: no ``subsample_size`` in a plate, no ``scale`` handler on
    what is observed.

    Parameters
    ----------
    model
        ``minibatch -> None``, a NumPyro program with continuous latent sites.
    data_size
        Number of rows of the full data set, N.
    example
        A minibatch, of which only shapes and dtypes matter.

    Returns
    -------
    A `NumpyroModel`.

    Raises
    ------
    ValueError
        If the program observes nothing, has discrete latent sites or a site of
        local latent variables in a plate over the rows, or ``data_size`` is less
        than 1.

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
    from numpyro.distributions import biject_to
    from numpyro.infer.util import constrain_fn, log_density

    if data_size < 1:
        raise ValueError(f"data_size must be at least 1, got {data_size}.")

    def trace_of(rng_key: PRNGKey) -> dict[str, Any]:
        seeded = handlers.seed(model, rng_key)
        return handlers.trace(seeded).get_trace(example)

    trace = trace_of(jax.random.key(0))
    sites = {name: site for name, site in trace.items() if site["type"] == "sample"}
    observed = {name for name, site in sites.items() if site["is_observed"]}
    latent = {name: site for name, site in sites.items() if name not in observed}
    _check_sites(latent, observed, number_of_rows(example))
    transforms = {name: biject_to(site["fn"].support) for name, site in latent.items()}

    def init_fn(rng_key: PRNGKey) -> ArrayTree:
        drawn = trace_of(rng_key)
        return {name: transforms[name].inv(drawn[name]["value"]) for name in latent}

    def logdensity_fn(position: ArrayTree, minibatch: ArrayTree) -> Array:
        factor = data_size / number_of_rows(minibatch)
        values, logdensity = {}, jnp.zeros(())
        for name, transform in transforms.items():
            values[name] = transform(position[name])
            jacobian = transform.log_abs_det_jacobian(position[name], values[name])
            logdensity += jnp.sum(jacobian)
        scaled = _scale_observed(model, factor, handlers)
        joint, _ = log_density(scaled, (minibatch,), {}, values)
        return logdensity + joint

    def constrain(position: ArrayTree) -> ArrayTree:
        return constrain_fn(model, (example,), {}, position, return_deterministic=True)

    return NumpyroModel(logdensity_fn, init_fn, constrain)


def _scale_observed(model: Callable, factor: float, handlers: Any) -> Callable:
    """Return the program with the log-likelihood multiplied by a factor."""

    class ScaleObserved(handlers.scale):
        def process_message(self, message: dict) -> None:
            if message["type"] == "sample" and message["is_observed"]:
                super().process_message(message)

    return ScaleObserved(model, scale=factor)


def _check_sites(latent: dict[str, Any], observed: set[str], num_rows: int) -> None:
    if not observed:
        raise ValueError("The program observes nothing: give a site obs=, from its minibatch.")
    discrete = [name for name, site in latent.items() if site["fn"].is_discrete]
    if discrete:
        raise ValueError(
            f"Discrete sites cannot be sampled by gradients: {discrete}. Sum them out."
        )
    local = [
        name
        for name, site in latent.items()
        if any(frame.size == num_rows for frame in site["cond_indep_stack"])
    ]
    if local:
        raise ValueError(
            f"The sites {local} lie in a plate over the rows: one variable per row cannot be "
            "sampled by minibatches. Integrate them out."
        )
