r"""How good predictions are: scores of what `blackjax_smile.prediction` returns."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.types import Array, ArrayLikeTree, ArrayTree

from blackjax_smile import _tree
from blackjax_smile._checks import check_probabilities, positive_integer
from blackjax_smile.prediction import log_predictive_density

__all__ = [
    "CalibrationCurve",
    "accuracy",
    "calibration_curve",
    "coverage",
    "expected_calibration_error",
    "lppd",
    "rmse",
]


def lppd(
    loglikelihood_fn: Callable[[ArrayTree, Any], Array],
    positions: ArrayLikeTree,
    data: ArrayLikeTree,
    **blocks: int,
) -> Array:
    r"""Return the log pointwise predictive density, a mean over rows.

    .. math:: \frac{1}{R} \sum_{r=1}^{R} \log \frac{1}{S} \sum_{s=1}^{S} p(r \mid x_s)

    Parameters
    ----------
    loglikelihood_fn
        ``(position, row) -> log-likelihood`` of the row.
    positions
        Draws, leaves of leading axes ``(chain, draw)``. The members of a deep
        ensemble are chains of one draw: add an axis of length one.
    data
        A pytree of arrays with one leading axis, the rows.
    blocks
        ``batch_size`` and ``draw_batch_size`` of
        `blackjax_smile.prediction.log_predictive_density`.

    Returns
    -------
    A scalar, in nats per row.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from blackjax_smile.evaluation import lppd
    >>> float(lppd(lambda mean, y: -((y - mean) ** 2), jnp.zeros((2, 3)), jnp.array([0.0, 2.0])))
    -2.0
    """
    return jnp.mean(log_predictive_density(loglikelihood_fn, positions, data, **blocks))


def accuracy(probabilities: Array, labels: Array) -> Array:
    """Return the share of rows whose most probable class is theirs.

    Parameters
    ----------
    probabilities
        Of the classes, shape ``(rows, classes)``: the mean over the draws.
    labels
        Number of each row's class, from 0, shape ``(rows,)``.

    Returns
    -------
    A scalar between 0 and 1. A row with a probability that is NaN is not right.

    Raises
    ------
    ValueError
        If the labels are not one number for each row, or known and no class's number.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from blackjax_smile.evaluation import accuracy
    >>> float(accuracy(jnp.array([[0.9, 0.1], [0.6, 0.4]]), jnp.array([0, 1])))
    0.5
    """
    return jnp.mean(_is_right(probabilities, labels))


def _is_right(probabilities: Array, labels: Array) -> Array:
    """Return for each row whether its most probable class is its own."""
    if jnp.shape(probabilities)[:-1] != jnp.shape(labels):
        raise ValueError(
            f"Each row needs one label, the number of its class: got labels of shape "
            f"{jnp.shape(labels)} for probabilities of shape {jnp.shape(probabilities)}."
        )
    probabilities = jnp.asarray(probabilities)
    if not _tree.is_traced(labels):
        # By NumPy: JAX would trace what is computed from a constant of a jitted function.
        values, last = np.asarray(labels), probabilities.shape[-1] - 1
        wrong = values[~((values >= 0) & (values <= last))]
        if wrong.size:
            raise ValueError(f"labels must be 0 to {last}, got {wrong[0]}.")
    # Of numbers that are none the first would be the largest.
    known = ~jnp.any(jnp.isnan(probabilities), axis=-1)
    return known & (jnp.argmax(probabilities, axis=-1) == jnp.asarray(labels))


def rmse(predictions: Array, targets: Array) -> Array:
    """Return the root of the mean squared error.

    Parameters
    ----------
    predictions
        The mean over the draws, shape ``(rows, ...)``.
    targets
        Of the same shape. Differences of NumPy arrays are taken in float64.

    Returns
    -------
    A scalar, in the units of the target.

    Raises
    ------
    ValueError
        If the shapes differ: ``(rows, 1)`` and ``(rows,)`` would make a matrix.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from blackjax_smile.evaluation import rmse
    >>> round(float(rmse(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0]))), 3)
    1.414
    """
    if jnp.shape(predictions) != jnp.shape(targets):
        raise ValueError(
            f"predictions and targets differ in shape: {jnp.shape(predictions)} and "
            f"{jnp.shape(targets)}."
        )
    # Squares of integers overflow, sums of half precision stand still; large numbers, such as
    # times, differ by less than float32 resolves.
    if isinstance(predictions, jax.Array) or isinstance(targets, jax.Array):
        both = (jnp.asarray(x) for x in (predictions, targets))
        predictions, targets = (x.astype(_tree.accumulation_dtype(x)) for x in both)
        errors = predictions - targets
    else:
        errors = jnp.asarray(np.asarray(predictions, float) - np.asarray(targets, float))
    return jnp.sqrt(jnp.mean(errors**2))


class CalibrationCurve(NamedTuple):
    """Rows grouped by the probability of the class that is predicted.

    confidence
        Mean probability of the predicted class in each bin; NaN for an empty one.
    accuracy
        Share of rows in each bin that are predicted right; NaN for an empty one.
    count
        Number of rows in each bin.
    """

    confidence: Array
    accuracy: Array
    count: Array


def calibration_curve(probabilities: Array, labels: Array, num_bins: int = 15) -> CalibrationCurve:
    """Group rows by their confidence, in bins of equal width.

    Parameters
    ----------
    probabilities
        Of the classes, shape ``(rows, classes)``: the mean over the draws.
    labels
        Number of each row's class, from 0, shape ``(rows,)``.
    num_bins
        Number of bins between 0 and 1; a bin includes its upper edge.

    Returns
    -------
    A `CalibrationCurve`, points of the reliability diagram.

    Raises
    ------
    ValueError
        If the labels are not one number for each row, or known and no class's number; for
        known numbers that are no probabilities, as logits are none.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from blackjax_smile.evaluation import calibration_curve
    >>> probabilities = jnp.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    >>> curve = calibration_curve(probabilities, jnp.array([0, 1, 1]), num_bins=2)
    >>> curve.count.tolist(), round(float(curve.accuracy[1]), 2)
    ([0.0, 3.0], 0.67)
    """
    count, confidence, correct = _binned(probabilities, labels, num_bins)
    filled = jnp.maximum(count, 1)
    mean_confidence, mean_correct = (
        jnp.where(count > 0, total / filled, jnp.nan) for total in (confidence, correct)
    )
    return CalibrationCurve(mean_confidence, mean_correct, count)


def _binned(probabilities: Array, labels: Array, num_bins: int) -> tuple[Array, Array, Array]:
    """Return for each bin its rows, the sum of their confidences, and how many are right."""
    num_bins = positive_integer("num_bins", num_bins)
    correct = _is_right(probabilities, labels)
    check_probabilities("probabilities", probabilities)
    confidence = jnp.max(jnp.asarray(probabilities), axis=-1)
    confidence = confidence.astype(_tree.accumulation_dtype(confidence))
    bins = jnp.clip(jnp.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)

    def total(values: Array) -> Array:
        return jnp.zeros(num_bins, confidence.dtype).at[bins].add(values.astype(confidence.dtype))

    return total(jnp.ones_like(confidence)), total(confidence), total(correct)


def expected_calibration_error(probabilities: Array, labels: Array, num_bins: int = 15) -> Array:
    r"""Return the mean distance of confidence and accuracy.

    .. math:: \sum_b \frac{n_b}{R} | \mathrm{accuracy}_b - \mathrm{confidence}_b |

    over bins of equal width of the predicted class's probability [1]_. Biased
    upwards by the chance of small bins: compare only on the same rows.

    Parameters
    ----------
    probabilities, labels, num_bins
        See `calibration_curve`.

    Returns
    -------
    A scalar between 0 and 1.

    References
    ----------
    .. [1] Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from blackjax_smile.evaluation import expected_calibration_error
    >>> probabilities = jnp.array([[0.75, 0.25]] * 4)
    >>> float(expected_calibration_error(probabilities, jnp.array([0, 0, 0, 1])))
    0.0
    """
    count, confidence, correct = _binned(probabilities, labels, num_bins)
    return jnp.sum(jnp.abs(correct - confidence)) / jnp.sum(count)


def coverage(probability_transform: Array, levels: Any) -> Array:
    r"""Return the share of targets inside the central credible interval of each level.

    With :math:`F_r` the posterior predictive distribution function of row r, its
    target lies in the central interval of level :math:`\ell` if
    :math:`|F_r(y_r) - 1/2| \le \ell / 2`: no quantile is needed.

    Parameters
    ----------
    probability_transform
        :math:`F_r(y_r)`, shape ``(rows,)``: the mean over the draws of the
        predictive distribution function at the target, by
        `blackjax_smile.prediction.predictive_mean`.
    levels
        Between 0 and 1, shape ``(levels,)`` or a scalar.

    Returns
    -------
    Shares in the shape of ``levels``; each equals its level if the predictions
    are calibrated, and is below it if they are too sure. NaN if the transform of a row is.

    Raises
    ------
    ValueError
        If a level or a known number of the transform is not between 0 and 1, or there is more
        than one number for each row.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from blackjax_smile.evaluation import coverage
    >>> round(float(coverage(jnp.linspace(0.005, 0.995, 100), 0.9)), 3)
    0.9
    """
    levels = jnp.asarray(levels)
    if not _tree.is_traced(levels) and not jnp.all((levels >= 0) & (levels <= 1)):
        raise ValueError(f"levels must be between 0 and 1, got {levels}.")
    check_probabilities("probability_transform", probability_transform)
    distance = 2 * jnp.abs(jnp.asarray(probability_transform) - 0.5)
    if distance.ndim != 1:
        raise ValueError(
            f"probability_transform must have the shape (rows,), got {distance.shape}. Of several "
            "outputs take one after another."
        )
    distance = jnp.expand_dims(distance, range(1, levels.ndim + 1))
    inside = (distance <= levels[None]).astype(distance.dtype)
    # Of what is no number nobody knows whether it is inside.
    return jnp.mean(jnp.where(jnp.isnan(distance), jnp.nan, inside), axis=0)
