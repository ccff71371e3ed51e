r"""Small Bayesian neural networks for the rows of a table.

A multilayer perceptron with a standard normal prior on every parameter. For
regression :math:`y \sim N(f(x), e^{2s})`, with :math:`s` a parameter like the
others; inputs and target standardised. For classification softmax of the outputs.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree, PRNGKey
from jax.scipy.stats import norm

__all__ = ["Network", "apply_mlp", "classification_network", "init_mlp", "regression_network"]


class Network(NamedTuple):
    """A network as the functions that training, sampling and prediction take.

    init
        ``rng_key -> position``: a start of the training.
    logprior, loglikelihood
        Of a position, and of a position and a row ``(x, y)``.
    predict
        ``(position, row) -> prediction``: the mean, or the classes' probabilities.
    sample
        ``(rng_key, position, row) -> y``: a predictive draw.
    cdf
        ``(position, row) -> P(Y <= y)``; None for classification.
    """

    init: Callable[[PRNGKey], ArrayTree]
    logprior: Callable[[ArrayTree], Array]
    loglikelihood: Callable[[ArrayTree, Any], Array]
    predict: Callable[[ArrayTree, Any], Array]
    sample: Callable[[PRNGKey, ArrayTree, Any], Array]
    cdf: Callable[[ArrayTree, Any], Array] | None


def init_mlp(rng_key: PRNGKey, sizes: Sequence[int]) -> list[dict[str, Array]]:
    """Return the layers of a perceptron, weights drawn as for ReLU units (He et al.)."""
    keys = jax.random.split(rng_key, len(sizes) - 1)
    return [
        {
            "kernel": jax.random.normal(key, (inputs, outputs)) * (2 / inputs) ** 0.5,
            "bias": jnp.zeros(outputs),
        }
        for key, inputs, outputs in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def apply_mlp(layers: list[dict[str, Array]], x: Array) -> Array:
    """Return the outputs for one row, ReLU between the layers."""
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ layers[-1]["kernel"] + layers[-1]["bias"]


def standard_normal_logprior(position: ArrayTree) -> Array:
    """Return the log-density of independent standard normals, up to a constant."""
    return -0.5 * sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(position)), jnp.zeros(()))


def regression_network(num_features: int, hidden: Sequence[int] = (16, 16)) -> Network:
    """Return a perceptron with one output and a noise scale.

    Parameters
    ----------
    num_features
        Length of a row's ``x``.
    hidden
        Numbers of units.
    """

    def init(rng_key):
        return {"layers": init_mlp(rng_key, (num_features, *hidden, 1)), "log_scale": jnp.zeros(())}

    def predict(position, row):
        return apply_mlp(position["layers"], row[0])[0]

    def loglikelihood(position, row):
        return norm.logpdf(row[1], predict(position, row), jnp.exp(position["log_scale"]))

    def sample(rng_key, position, row):
        noise = jax.random.normal(rng_key)
        return predict(position, row) + jnp.exp(position["log_scale"]) * noise

    def cdf(position, row):
        return norm.cdf(row[1], predict(position, row), jnp.exp(position["log_scale"]))

    return Network(init, standard_normal_logprior, loglikelihood, predict, sample, cdf)


def classification_network(
    num_features: int, num_classes: int, hidden: Sequence[int] = (16, 16)
) -> Network:
    """Return a perceptron with one output for each class.

    Parameters
    ----------
    num_features
        Length of a row's ``x``.
    num_classes
        Classes are numbered from 0. Of another label the log-likelihood is NaN, so that the
        minibatches that hold it are rejected.
    hidden
        Numbers of units.
    """

    def init(rng_key):
        return init_mlp(rng_key, (num_features, *hidden, num_classes))

    def logits(position, row):
        return apply_mlp(position, row[0])

    def loglikelihood(position, row):
        of_classes = jax.nn.log_softmax(logits(position, row))
        # JAX would take the nearest class for a label that is none.
        is_class = (row[1] >= 0) & (row[1] < num_classes)
        return jnp.where(is_class, of_classes[row[1]], jnp.nan)

    def predict(position, row):
        return jax.nn.softmax(logits(position, row))

    def sample(rng_key, position, row):
        return jax.random.categorical(rng_key, logits(position, row))

    return Network(init, standard_normal_logprior, loglikelihood, predict, sample, None)
