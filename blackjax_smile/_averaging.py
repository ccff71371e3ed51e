"""Whether a log-density averages over the rows of its minibatch, as the gradient noise needs."""

import jax
import jax.numpy as jnp
from blackjax.types import Array

from blackjax_smile import _tree
from blackjax_smile._jitted import jitted
from blackjax_smile.minibatch_gradient import check_arguments, split_minibatch

__all__ = ["NOT_AVERAGING", "check_averages"]

NOT_AVERAGING = (
    "logdensity_fn must average over the rows of its minibatch and scale by the size of the data "
    "set: {}. blackjax.sgmcmc.gradients.logdensity_estimator builds such a function."
)


def check_averages(logdensity_fn, position, minibatch) -> Array:
    """Return whether the log-density averages over its minibatch; raise if it does not.

    On half a minibatch a sum would see half of the data. Traced values cannot be looked at:
    what they say is returned alone.
    """
    check_arguments(logdensity_fn, has_minibatch=True)
    whole, mean = jitted(_whole_and_mean, logdensity_fn)(position, minibatch)
    # Below ten nats it may be round-off, of a difference of large numbers.
    averages = jnp.abs(whole - mean) <= jnp.maximum(0.25 * jnp.abs(whole), 10.0)
    # Neither a start where it is not finite nor one number per row is its concern.
    averages = jnp.all(averages | ~jnp.isfinite(whole - mean)) | bool(whole.shape)
    if not _tree.is_traced(averages) and not averages:
        found = f"it is {whole} on a minibatch but {mean} on average on its halves"
        raise ValueError(NOT_AVERAGING.format(found))
    return averages


def _whole_and_mean(logdensity_fn, position, minibatch):
    halves = jax.vmap(logdensity_fn, (None, 0))(position, split_minibatch(minibatch))
    return logdensity_fn(position, minibatch), jnp.mean(halves)
