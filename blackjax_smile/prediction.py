r"""Predictions from posterior draws, in batches over draws and rows.

A model is a function of one position and one row, as in BlackJAX's
``logdensity_estimator``; draws are positions whose leaves lead with the axes
``(chain, draw)``. Summaries over the draws (`predictive_mean`,
`log_predictive_density`) are accumulated while the draws stream by: memory is
that of the draws, of the data and of one block, ``draw_batch_size`` draws on
``batch_size`` rows, however many of either there are. `predictive_quantiles`
holds all draws of one block of rows. `log_likelihood` and
`posterior_predictive` return a number per draw and row, in host memory, as
ArviZ wants them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.types import Array, ArrayLikeTree, ArrayTree, PRNGKey

from blackjax_smile import _tree
from blackjax_smile._keyed import with_keys
from blackjax_smile._streaming import (
    Blocks,
    by_rows,
    by_rows_on_host,
    flat_draws,
    init_logsum,
    init_mean,
    over_draws,
    update_logsum,
    update_mean,
)

__all__ = [
    "log_likelihood",
    "log_predictive_density",
    "posterior_predictive",
    "predictive_mean",
    "predictive_quantiles",
]


def predictive_mean(
    fn: Callable[[ArrayTree, Any], ArrayTree],
    positions: ArrayLikeTree,
    data: ArrayLikeTree,
    *,
    batch_size: int = 256,
    draw_batch_size: int = 16,
) -> ArrayTree:
    r"""Return the posterior mean of a function of the position and a row, for each row.

    .. math:: \bar f(r) = \frac{1}{S} \sum_{s=1}^{S} f(x_s, r)

    With class probabilities as ``fn`` it is the predictive distribution; with the
    predictive distribution function at the target, the probability integral
    transform that `blackjax_smile.evaluation.coverage` takes; with a prediction
    and its square, predictive mean and variance.

    Parameters
    ----------
    fn
        ``(position, row) -> tree of arrays``.
    positions
        Draws, leaves of leading axes ``(chain, draw)``.
    data
        A pytree of arrays with one leading axis, the rows.
    batch_size, draw_batch_size
        Numbers of rows and of draws that are evaluated at once.

    Returns
    -------
    What ``fn`` returns, with the rows as leading axis, averaged over chains and draws.

    Raises
    ------
    ValueError
        If the leading axes of positions or of data differ between their leaves.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from blackjax_smile.prediction import predictive_mean
    >>> draws = jnp.array([[1.0, 2.0], [3.0, 6.0]])  # two chains, two draws
    >>> predictive_mean(lambda slope, x: slope * x, draws, jnp.array([1.0, 10.0])).tolist()
    [3.0, 30.0]
    """
    draws, _ = flat_draws(positions)
    blocks = Blocks.of(batch_size, draw_batch_size)
    _, mean = over_draws(fn, update_mean, init_mean, draws, data, blocks)
    return mean


def log_predictive_density(
    loglikelihood_fn: Callable[[ArrayTree, Any], Array],
    positions: ArrayLikeTree,
    data: ArrayLikeTree,
    *,
    batch_size: int = 256,
    draw_batch_size: int = 16,
) -> Array:
    r"""Return the log predictive density of each row.

    .. math:: \log \frac{1}{S} \sum_{s=1}^{S} p(r \mid x_s)

    over the draws of all chains. Its mean over the rows of a test set is the LPPD.

    Parameters
    ----------
    loglikelihood_fn
        ``(position, row) -> log-likelihood`` of the row.
    positions, data, batch_size, draw_batch_size
        See `predictive_mean`.

    Returns
    -------
    One number per row.

    Raises
    ------
    ValueError
        If the leading axes of positions or of data differ between their leaves.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from blackjax_smile.prediction import log_predictive_density
    >>> draws = jnp.log(jnp.array([[0.2, 0.4]]))  # one chain, two draws
    >>> density = jnp.exp(log_predictive_density(lambda x, row: x * row, draws, jnp.ones(1)))
    >>> round(float(density[0]), 3)
    0.3
    """
    draws, (num_chains, num_draws) = flat_draws(positions)
    blocks = Blocks.of(batch_size, draw_batch_size)
    total = over_draws(loglikelihood_fn, update_logsum, init_logsum, draws, data, blocks)
    return total - np.log(num_chains * num_draws).astype(total.dtype)


def predictive_quantiles(
    rng_key: PRNGKey,
    sample_fn: Callable[[PRNGKey, ArrayTree, Any], ArrayTree],
    positions: ArrayLikeTree,
    data: ArrayLikeTree,
    probabilities: Any,
    *,
    batch_size: int = 256,
    draw_batch_size: int = 16,
) -> ArrayTree:
    """Return quantiles of the posterior predictive distribution of each row.

    Parameters
    ----------
    rng_key
        Key of the predictive draws.
    sample_fn
        ``(rng_key, position, row) -> predictive draw`` of the row, an array or a tree of some.
    positions, data, batch_size, draw_batch_size
        See `predictive_mean`.
    probabilities
        Probabilities of the quantiles, between 0 and 1, shape ``(q,)``.

    Returns
    -------
    What ``sample_fn`` returns, its leaves of shape ``(q, rows, ...)``.

    Raises
    ------
    ValueError
        If the leading axes of positions or of data differ between their leaves, or a
        probability is not between 0 and 1.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from blackjax_smile.prediction import predictive_quantiles
    >>> draws = jnp.zeros((4, 500))
    >>> normal = lambda key, mean, x: mean + x * jax.random.normal(key)
    >>> q = predictive_quantiles(jax.random.key(0), normal, draws, jnp.ones(3), [0.05, 0.95])
    >>> q.shape, bool(jnp.all(jnp.abs(q[1] - 1.64) < 0.3))
    ((2, 3), True)
    """
    if np.ndim(probabilities) != 1 or len(probabilities) == 0:
        raise ValueError(f"probabilities must be a list of some, got {probabilities!r}.")
    probabilities = tuple(float(p) for p in probabilities)
    if not all(0 <= p <= 1 for p in probabilities):
        raise ValueError(f"probabilities must be between 0 and 1, got {probabilities}.")
    keyed, draws, indexed, _ = with_keys(rng_key, sample_fn, positions, data)
    blocks = Blocks.of(batch_size, draw_batch_size)
    quantiles = by_rows(keyed, _Quantiles(probabilities), draws, indexed, blocks)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), quantiles)


def log_likelihood(
    loglikelihood_fn: Callable[[ArrayTree, Any], Array],
    positions: ArrayLikeTree,
    data: ArrayLikeTree,
    *,
    batch_size: int = 256,
    draw_batch_size: int = 16,
) -> np.ndarray:
    """Return the log-likelihood of each row under each draw, as `arviz.loo` needs it.

    Parameters
    ----------
    loglikelihood_fn
        ``(position, row) -> log-likelihood`` of the row.
    positions, data, batch_size, draw_batch_size
        See `predictive_mean`.

    Returns
    -------
    NumPy array of shape ``(chain, draw, row)``, in host memory; the device holds
    ``batch_size`` rows of it at a time.

    Raises
    ------
    ValueError
        If the leading axes of positions or of data differ between their leaves.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from blackjax_smile.prediction import log_likelihood
    >>> draws = jnp.zeros((4, 100))
    >>> log_likelihood(lambda mean, y: -0.5 * (y - mean) ** 2, draws, jnp.ones(7)).shape
    (4, 100, 7)
    """
    draws, leading = flat_draws(positions)
    values = by_rows_on_host(loglikelihood_fn, draws, data, Blocks.of(batch_size, draw_batch_size))
    return _by_chains(values, leading)


def posterior_predictive(
    rng_key: PRNGKey,
    sample_fn: Callable[[PRNGKey, ArrayTree, Any], ArrayTree],
    positions: ArrayLikeTree,
    data: ArrayLikeTree,
    *,
    batch_size: int = 256,
    draw_batch_size: int = 16,
) -> Any:
    """Return one posterior predictive draw of each row under each draw.

    Parameters
    ----------
    rng_key
        Key of the predictive draws.
    sample_fn
        ``(rng_key, position, row) -> predictive draw`` of the row, an array or a tree of some.
    positions, data, batch_size, draw_batch_size
        See `predictive_mean`.

    Returns
    -------
    What ``sample_fn`` returns, NumPy arrays of shape ``(chain, draw, row, ...)`` in host
    memory; the device holds ``batch_size`` rows of them at a time.

    Raises
    ------
    ValueError
        If the leading axes of positions or of data differ between their leaves.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from blackjax_smile.prediction import posterior_predictive
    >>> normal = lambda key, mean, x: mean + x * jax.random.normal(key)
    >>> draws = jnp.zeros((4, 100))
    >>> posterior_predictive(jax.random.key(0), normal, draws, jnp.ones(7)).shape
    (4, 100, 7)
    """
    keyed, draws, indexed, leading = with_keys(rng_key, sample_fn, positions, data)
    blocks = Blocks.of(batch_size, draw_batch_size)
    return _by_chains(by_rows_on_host(keyed, draws, indexed, blocks), leading)


def _by_chains(values: Any, leading: tuple[int, int]) -> Any:
    """Return the draws of all chains with their two axes."""
    return jax.tree.map(lambda x: x.reshape(*leading, *x.shape[1:]), values)


@dataclasses.dataclass(frozen=True)
class _Quantiles:
    """Quantiles over the draws, rows first."""

    probabilities: tuple[float, ...]

    def __call__(self, values: ArrayTree) -> ArrayTree:
        return jax.tree.map(self._of_leaf, values)

    def _of_leaf(self, values: Array) -> Array:
        values = values.astype(_tree.accumulation_dtype(values))  # of counts and classes, too
        quantiles = jnp.quantile(values, jnp.asarray(self.probabilities, values.dtype), axis=0)
        return jnp.moveaxis(quantiles, 0, 1)
