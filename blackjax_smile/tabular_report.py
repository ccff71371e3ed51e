"""What the fit of a table gives: the printed comparison, the draws and a figure on disk."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.types import Array, ArrayTree

from blackjax_smile import bnn, evaluation, prediction
from blackjax_smile.arviz_export import to_arviz
from blackjax_smile.function_space import prediction_diagnostics
from blackjax_smile.tabular import Table
from blackjax_smile.tabular_fit import TabularFit, TabularOptions

__all__ = ["Means", "Scores", "predictive_means", "report", "save", "score"]

#: Level of the intervals in table and figure.
LEVEL = 0.9


class Scores(NamedTuple):
    """Scores on the test rows, in the target's own units.

    lppd
        Mean log predictive density.
    error
        RMSE, or accuracy.
    calibration
        Coverage of the 90 % intervals, or expected calibration error.
    """

    lppd: float
    error: float
    calibration: float


class Means(NamedTuple):
    """Predictive means of the test rows, standardised: probabilities, or the target.

    members, draws
        Of the deep ensemble, and of all draws.
    """

    members: Array
    draws: Array


def predictive_means(table: Table, network: bnn.Network, fit: TabularFit) -> Means:
    """Return the means, of which scores, predictions and figure are made."""
    ensembles = (as_draws(fit.members), fit.positions)
    return Means(*(prediction.predictive_mean(network.predict, x, table.test) for x in ensembles))


def score(table: Table, network: bnn.Network, positions: ArrayTree, mean: Array) -> Scores:
    """Return the scores of draws with leading axes (chain, draw) and their predictive mean."""
    rows = table.test
    # A density in the target's units: that of the standardised target over the deviation.
    lppd = float(evaluation.lppd(network.loglikelihood, positions, rows))
    lppd -= float(np.log(table.target_deviation))
    if network.cdf is None:
        error = float(evaluation.accuracy(mean, rows[1]))
        calibration = float(evaluation.expected_calibration_error(mean, rows[1]))
    else:
        error = float(evaluation.rmse(mean, rows[1])) * table.target_deviation
        transform = prediction.predictive_mean(network.cdf, positions, rows)
        calibration = float(evaluation.coverage(transform, LEVEL))
    return Scores(lppd, error, calibration)


def as_draws(members: ArrayTree) -> ArrayTree:
    """Return trained members as chains of one draw."""
    return jax.tree.map(lambda x: x[:, None], members)


def report(
    table: Table, network: bnn.Network, fit: TabularFit, options: TabularOptions, means: Means
) -> str:
    """Return the table of results."""
    is_regression = table.task == "regression"
    names = ("RMSE", "90 % coverage") if is_regression else ("accuracy", "calibration error")
    lines = [f"{'':16}{names[0]:>14}{'log pred. density':>20}{names[1]:>20}"]
    scores = {
        "deep ensemble": score(table, network, as_draws(fit.members), means.members),
        "SMILE": score(table, network, fit.positions, means.draws),
    }
    for name, s in scores.items():
        lines.append(f"{name:16}{s.error:14.4g}{s.lppd:20.4f}{s.calibration:20.4f}")
    rejected = int(jnp.sum(fit.infos.is_divergent))
    num_chains = len(fit.adaptation.failed)
    steps = num_chains * options.num_samples * options.thinning
    anisotropy = fit.adaptation.info.windows.anisotropy[:, -1]
    lines += ["", *_convergence(table, network, fit)]
    lines += [
        f"rejected steps                     {rejected} of {steps}",
        f"chains left out                    {len(fit.failures)}",
        f"anisotropy of the whitened noise   {' '.join(f'{float(a):.2f}' for a in anisotropy)}"
        "  (0 is white)",
        f"gradients                          {fit.num_gradients}",
        "time                               "
        + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in fit.seconds.items()),
    ]
    return "\n".join(lines)


def _convergence(table: Table, network: bnn.Network, fit: TabularFit) -> list[str]:
    found = prediction_diagnostics(network.loglikelihood, fit.positions, table.test)
    median = {name: float(jnp.nanmedian(value)) for name, value in found._asdict().items()}
    return [
        f"R-hat of the predictions, median   {median['rhat']:.2f} over chains, "
        f"{median['rhat_within']:.2f} within a chain",
        f"ESS of the predictions, median     {median['ess']:.0f} over chains, "
        f"{median['ess_within']:.0f} within a chain",
        "(chains in different modes: R-hat over chains above 1, within near 1; the number of",
        "chains then limits the precision)",
    ]


def save(
    table: Table,
    network: bnn.Network,
    fit: TabularFit,
    means: Means,
    folder: pathlib.Path,
    seed: int,
) -> list[pathlib.Path]:
    """Write draws as NetCDF, predictions of the test rows and a figure; return their paths."""
    rows = table.test
    draws = prediction.posterior_predictive(
        jax.random.key(seed), network.sample, fit.positions, rows
    )
    observed = np.asarray(rows[1])
    if network.cdf is not None:
        draws, observed = in_units(table, draws), np.asarray(table.test_target, np.float64)
    netcdf, figure = folder / "posterior.nc", folder / "figure.png"
    predictions = folder / "predictions.csv"
    _predictions(table, means, draws).to_csv(predictions, index=False)
    _plot(table, means, draws, observed, figure)
    pointwise = prediction.log_likelihood(network.loglikelihood, fit.positions, rows)
    idata = to_arviz(
        fit.positions,
        fit.infos,
        chain_axis=True,
        var_name="network",
        log_likelihood={"target": pointwise - np.log(table.target_deviation)},
        posterior_predictive={"target": draws},
        observed_data={"target": observed},
        # What a new row must be standardised with.
        attrs={
            "features": list(table.features),
            "feature_mean": table.feature_mean.tolist(),
            "feature_deviation": table.feature_deviation.tolist(),
            "classes": [str(c) for c in table.classes],
            "target_mean": table.target_mean,
            "target_deviation": table.target_deviation,
            "test_rows": table.test_rows.tolist(),
        },
    )
    netcdf.unlink(missing_ok=True)  # an earlier run's may still be open
    idata.to_netcdf(str(netcdf))
    return [netcdf, predictions, figure]


def in_units(table: Table, values: Any) -> np.ndarray:
    """Return standardised values of the target in its own units.

    In double precision: a mean of many deviations (a year, a time stamp) leaves a float32 no
    digits for the rest.
    """
    return table.target_mean + table.target_deviation * np.asarray(values, np.float64)


def _predictions(table: Table, means: Means, draws: np.ndarray) -> Any:
    """Return a data frame of the test rows: observed, predicted, and how surely."""
    import pandas

    columns = {"row": table.test_rows, "observed": table.test_target}
    if table.task == "classification":
        classes = np.asarray(table.classes, dtype=object)
        mean = np.asarray(means.draws)
        columns |= {"predicted": classes[mean.argmax(axis=1)]}
        columns |= {f"probability of {c}": mean[:, i] for i, c in enumerate(classes)}
    else:
        low, middle, high = _interval(draws)
        mean = in_units(table, means.draws)
        columns |= {"predicted": middle, "mean": mean, "5 %": low, "95 %": high}
    # At once: a column at a time leaves one of many classes fragmented, and pandas warns.
    return pandas.DataFrame(columns)


def _interval(draws: np.ndarray) -> np.ndarray:
    """Return for each row the ends of the interval of `LEVEL` around the median, the middle one."""
    flat = draws.reshape(-1, draws.shape[-1])
    return np.quantile(flat, [0.5 - LEVEL / 2, 0.5, 0.5 + LEVEL / 2], axis=0)


def _plot(
    table: Table, means: Means, draws: np.ndarray, observed: np.ndarray, path: pathlib.Path
) -> None:
    """Draw predicted against observed with intervals, or the reliability diagram."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
    if table.task == "regression":
        _plot_intervals(axes, draws, observed)
    else:
        labels = table.test[1]
        _plot_reliability(axes, means.members, labels, "s--", "deep ensemble")
        _plot_reliability(axes, means.draws, labels, "o-", "SMILE")
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        axes.set(
            xlabel="probability given to the predicted class",
            ylabel="share predicted right",
            title="Calibration on the test rows",
        )
        axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _plot_intervals(axes: Any, draws: np.ndarray, observed: np.ndarray) -> None:
    low, middle, high = _interval(draws)
    axes.vlines(observed, low, high, color="C0", alpha=0.35, linewidth=1)
    axes.plot(observed, middle, "o", color="C0", markersize=3, label="median, 90 % interval")
    ends = [observed.min(), observed.max()]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.set(xlabel="observed", ylabel="predicted", title="Test rows")
    axes.legend()


def _plot_reliability(axes: Any, probabilities: Array, labels: Array, style: str, name: str):
    curve = evaluation.calibration_curve(probabilities, labels, num_bins=10)
    seen = np.asarray(curve.count) > 0
    axes.plot(
        np.asarray(curve.confidence)[seen], np.asarray(curve.accuracy)[seen], style, label=name
    )
