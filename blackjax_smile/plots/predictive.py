"""Predictive distributions as bands, with the rows that were observed."""

from typing import Any

import numpy as np

from blackjax_smile.plots.figure import new_axes

__all__ = ["plot_predictive_bands"]


def plot_predictive_bands(
    quantiles: Any,
    probabilities: Any,
    *,
    mean: Any = None,
    x: Any = None,
    observed: Any = None,
    ax: Any = None,
) -> Any:
    """Draw predictive mean, central intervals and the rows of data.

    Parameters
    ----------
    quantiles
        Of the predictive distribution of each row, shape ``(q, rows)``: what
        `blackjax_smile.prediction.predictive_quantiles` returns.
    probabilities
        Of these quantiles, shape ``(q,)``: pairs p and 1 - p, which bound the central
        interval of level 1 - 2 p, and 1/2 for the median if wanted.
    mean
        Predictive mean of each row, shape ``(rows,)``.
    x
        Position of each row on the abscissa, shape ``(rows,)``. None, for rows with
        several inputs: the rows side by side, ordered by their predictive mean (or the
        middle of the widest interval).
    observed
        Target of each row, shape ``(rows,)``. Rows outside the widest interval are
        crosses, and the legend says which share lies inside each interval.
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
        If the shapes do not fit together, or a probability has no partner.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from blackjax_smile.plots import plot_predictive_bands
    >>> from blackjax_smile.prediction import predictive_quantiles
    >>> slopes = 1 + 0.1 * jax.random.normal(jax.random.key(0), (4, 100))
    >>> x = jnp.linspace(0, 1, 20)
    >>> quantiles = predictive_quantiles(
    ...     jax.random.key(1), lambda key, slope, x: slope * x + 0.1 * jax.random.normal(key),
    ...     slopes, x, [0.05, 0.25, 0.75, 0.95])
    >>> ax = plot_predictive_bands(quantiles, [0.05, 0.25, 0.75, 0.95], x=x, observed=x)
    >>> [text.get_text() for text in ax.get_legend().get_texts()][:2]
    ['90 % interval, 100 % of rows inside', '50 % interval, 100 % of rows inside']
    """
    quantiles = np.asarray(quantiles, np.float64)
    probabilities = np.asarray(probabilities, np.float64)
    if quantiles.ndim != 2 or quantiles.shape[:1] != probabilities.shape:
        raise ValueError(
            "quantiles must have the shape (q, rows) and probabilities (q,), each a list, got "
            f"{quantiles.shape} and {probabilities.shape}."
        )
    given = {"mean": mean, "x": x, "observed": observed}
    rows = {name: np.asarray(v, np.float64) for name, v in given.items() if v is not None}
    for name, values in rows.items():
        if values.shape != quantiles.shape[1:]:
            raise ValueError(
                f"{name} must have the shape (rows,) = {quantiles.shape[1:]}, got {values.shape}."
            )
    intervals, median = _intervals(quantiles, probabilities)
    if not intervals and median is None:
        raise ValueError("There is nothing to draw: no probabilities were given.")

    ax = new_axes() if ax is None else ax
    centre = median if median is not None else sum(intervals[0][1:]) / 2
    order = np.argsort(rows.get("x", rows.get("mean", centre)), kind="stable")
    abscissa = rows["x"][order] if "x" in rows else np.arange(1, len(order) + 1)
    step = None if "x" in rows else "mid"
    y = rows.get("observed")
    for index, (level, low, high) in enumerate(intervals):
        label = f"{level:.3g} % interval"
        if y is not None:
            label += f", {np.mean((low <= y) & (y <= high)):.0%} of rows inside".replace("%", " %")
        grey = f"{0.88 - 0.3 * index / len(intervals):.2f}"
        ax.fill_between(
            abscissa, low[order], high[order], step=step, color=grey, lw=0, label=label, zorder=1
        )
    lines = {"predictive median": (median, "--", "0.25"), "predictive mean": (mean, "-", "black")}
    for label, (values, style, color) in lines.items():
        if values is not None:
            values = np.asarray(values)[order]
            ax.plot(abscissa, values, ls=style, color=color, lw=1.2, label=label, zorder=2)
    if y is not None:
        inside = (intervals[0][1] <= y) & (y <= intervals[0][2]) if intervals else y == y
        for chosen, marker, label in ((inside, "o", "observed"), (~inside, "x", "outside")):
            chosen = chosen[order]
            if chosen.any():
                points = abscissa[chosen], y[order][chosen]
                ax.plot(*points, marker, color="C0", ms=3.5, label=label, zorder=3)
    ax.set_xlabel("x" if "x" in rows else "row, by its prediction")
    ax.set_ylabel("target")
    ax.legend(frameon=False, fontsize="small")
    return ax


def _intervals(quantiles: np.ndarray, probabilities: np.ndarray) -> tuple[list[tuple], Any]:
    """Return (level in %, low, high), widest first, and the median or None."""
    intervals, median = [], None
    for i in np.argsort(probabilities):
        p = probabilities[i]
        partners = np.flatnonzero(np.isclose(probabilities, 1 - p))
        if not 0 <= p <= 1 or len(partners) != 1:
            raise ValueError(
                "probabilities must come in pairs p and 1 - p, each once, with 0.5 by itself; "
                f"got {probabilities.tolist()}."
            )
        if partners[0] == i:
            median = quantiles[i]
        elif p < 0.5:
            intervals.append((100 * (1 - 2 * p), quantiles[i], quantiles[partners[0]]))
    return intervals, median
