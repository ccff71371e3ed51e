"""Calibration: the reliability diagram of classifiers, the coverage of intervals."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from blackjax_smile.evaluation import CalibrationCurve, coverage
from blackjax_smile.plots.figure import LINES, labelled, new_axes

__all__ = ["plot_coverage", "plot_reliability"]

#: Height of a line of bin counts, in units of the ordinate.
LINE_HEIGHT = 0.06

#: Share of calibrated predictions inside the bars and the band.
LEVEL = 0.95


def plot_reliability(
    curves: CalibrationCurve | Mapping[str, CalibrationCurve], ax: Any = None
) -> Any:
    """Draw the reliability diagram of a classifier, or of several side by side.

    Each point is a bin of rows: how sure of their class the predictions were, and how
    often they were right. The bars on the diagonal say how far chance alone, with so
    many rows in the bin, takes 95 % of the points of calibrated predictions; below
    the axis stand the numbers of rows. Points below their bars are too sure.

    Parameters
    ----------
    curves
        What `blackjax_smile.evaluation.calibration_curve` returns, or a dict of
        several by their label.
    ax
        Matplotlib axes; None: new ones.

    Returns
    -------
    The axes.

    Raises
    ------
    ImportError
        Without matplotlib.
    ValueError
        For what is no `CalibrationCurve`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from blackjax_smile.evaluation import calibration_curve
    >>> from blackjax_smile.plots import plot_reliability
    >>> probabilities = jnp.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    >>> curve = calibration_curve(probabilities, jnp.array([0, 1, 1]), num_bins=5)
    >>> ax = plot_reliability({"network": curve})
    >>> ax.get_xlabel()
    'probability of the predicted class'
    """
    from scipy import stats  # which JAX itself needs

    many = labelled(curves)
    for curve in many.values():
        if not isinstance(curve, CalibrationCurve):
            raise ValueError(
                "plot_reliability draws what calibration_curve(probabilities, labels) returns, or "
                f"a dict of several; got {type(curve).__name__}."
            )
    ax = new_axes(figsize=(5.5, 5)) if ax is None else ax
    ax.plot([0, 1], [0, 1], color="0.6", lw=0.8, zorder=0)
    for index, (label, curve) in enumerate(many.items()):
        confidence, accuracy, count = (np.asarray(field, np.float64) for field in curve)
        seen = count > 0
        style = LINES[index % len(LINES)]
        x, n = np.clip(confidence[seen], 0, 1), count[seen]
        low, high = np.asarray(stats.binom.interval(LEVEL, n, x)) / n
        ax.vlines(x, low, high, color=style["color"], lw=1, alpha=0.4, zorder=1)
        ax.plot(x, accuracy[seen], ms=5, lw=1.2, label=label, zorder=2, **style)
        height = -LINE_HEIGHT * (index + 0.8)
        centres = (np.arange(len(count)) + 0.5) / len(count)
        for centre, rows in zip(centres[seen], n, strict=True):
            text = {"ha": "center", "va": "center", "fontsize": "x-small"}
            ax.text(centre, height, f"{rows:.0f}", color=style["color"], **text)
        ax.text(
            0.01, height, label or "rows", color=style["color"], va="center", fontsize="x-small"
        )
    ax.axhline(0, color="black", lw=0.8)
    ax.set_xlim(0, 1.02)
    ax.set_ylim(-LINE_HEIGHT * (len(many) + 0.4), 1.03)
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.set_xlabel("probability of the predicted class")
    ax.set_ylabel("share of rows predicted right")
    if "" not in many:
        ax.legend(frameon=False, fontsize="small")
    return ax


def plot_coverage(
    probability_transforms: Any | Mapping[str, Any], ax: Any = None, num_levels: int = 101
) -> Any:
    """Draw which share of the rows the central predictive intervals hold, at every level.

    Calibrated predictions lie on the diagonal, up to chance: the grey band holds 95 %
    of them at each level. Below it the intervals are too narrow, above too wide.

    Parameters
    ----------
    probability_transforms
        The predictive distribution function of each row at its target, shape
        ``(rows,)``, as `blackjax_smile.evaluation.coverage` takes it; or a dict of
        several by their label.
    ax
        Matplotlib axes; None: new ones.
    num_levels
        Number of levels between 0 and 1.

    Returns
    -------
    The axes.

    Raises
    ------
    ImportError
        Without matplotlib.

    Examples
    --------
    >>> import jax
    >>> from blackjax_smile.plots import plot_coverage
    >>> ax = plot_coverage(jax.random.uniform(jax.random.key(0), (200,)))
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('level of the central interval', 'share of rows inside')
    """
    from scipy import stats

    ax = new_axes(figsize=(5.5, 5)) if ax is None else ax
    many = labelled(probability_transforms)
    levels = np.linspace(0, 1, num_levels)
    num_rows = min(np.size(transform) for transform in many.values())
    low, high = np.asarray(stats.binom.interval(LEVEL, num_rows, levels)) / num_rows
    label = f"calibrated, {num_rows} rows (95 %)"
    ax.fill_between(levels, low, high, color="0.9", lw=0, label=label, zorder=0)
    ax.plot([0, 1], [0, 1], color="0.6", lw=0.8, zorder=0)
    for index, (label, transform) in enumerate(many.items()):
        style = {**LINES[index % len(LINES)], "marker": None}
        ax.plot(levels, coverage(transform, levels), lw=1.4, label=label or None, **style)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_xlabel("level of the central interval")
    ax.set_ylabel("share of rows inside")
    ax.legend(frameon=False, fontsize="small")
    return ax
