"""Plots of what the library returns: the gradient noise, the law of the energy errors.

Needs matplotlib (an optional extra). Each function draws on given axes, or on new
ones, and returns them; lines differ in style as well as in colour.
"""

from typing import Any

import jax
import numpy as np

from blackjax_smile.gamma import gamma_quantile, match_gamma
from blackjax_smile.noise_diagnostics import GradientNoise

__all__ = ["plot_energy_error", "plot_noise_spectrum"]

#: Probabilities of the paper's thresholds: the step grows below the first, shrinks
#: above the second, is rejected above the third.
PROBABILITIES = (0.1 / 3, 1 - 0.2 / 3, 0.98)


def plot_noise_spectrum(noise: GradientNoise, ax: Any = None) -> Any:
    """Draw the spectrum of the gradient noise before and after its whitening.

    Each spectrum is divided by its mean: white noise of any strength is a line at 1, up
    to the spread (grey) that a finite number of draws gives to white noise.

    Parameters
    ----------
    noise
        What `blackjax_smile.gradient_noise` returns.
    ax
        Matplotlib axes; None: new ones.

    Returns
    -------
    The axes.

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    ax = _axes(ax)
    num_draws = int(noise.num_draws)
    rank = np.zeros(0, int)
    for summary, label, style in (
        (noise.raw, "before", {"color": "0.55", "marker": "s", "ls": "--"}),
        (noise.whitened, "after whitening", {"color": "black", "marker": "o", "ls": "-"}),
    ):
        eigenvalues = np.asarray(summary.eigenvalues, np.float64)[::-1]
        rank = np.arange(1, len(eigenvalues) + 1)
        label = f"{label} (anisotropy {float(summary.anisotropy):.2g})"
        # Rounding may leave an eigenvalue of an all-zero direction below zero.
        positive = np.where(eigenvalues > 0, eigenvalues / eigenvalues.mean(), np.nan)
        ax.plot(rank, positive, label=label, ms=4, lw=1.2, **style)
    ratio = len(rank) / num_draws
    if ratio < 1:
        edges = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
        ax.axhspan(*edges, color="0.85", zorder=0, lw=0, label="white noise, as many draws")
    ax.set_yscale("log")
    ax.set_xlabel("eigenvalue, by rank")
    ax.set_ylabel("noise variance / mean")
    kurtosis = float(noise.raw.excess_kurtosis)
    share = float(noise.whitened.noise_share)
    ax.set_title(f"noise share {share:.0%}, excess kurtosis {kurtosis:.2g}", fontsize="medium")
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_energy_error(infos: Any, ax: Any = None, bins: int = 60) -> Any:
    r"""Draw the law of the absolute energy changes, its Gamma law and the thresholds.

    Parameters
    ----------
    infos
        History of the infos of `blackjax_smile.smile` or of
        `blackjax_smile.online_smile`; steps that were not finite are left out.
    ax
        Matplotlib axes; None: new ones.
    bins
        Number of bars.

    Returns
    -------
    The axes. The thresholds are the quantiles of the paper's tuner under the Gamma law
    with the mean and deviation of all errors shown; a run of `online_smile` judged each
    step by the moments of its own past.

    Raises
    ------
    ImportError
        Without matplotlib.
    ValueError
        If no energy change is finite, or all are equal.
    """
    ax = _axes(ax)
    errors = np.abs(np.asarray(infos.energy_change, np.float64)).ravel()
    errors = errors[np.isfinite(errors)]
    if errors.size == 0 or errors.std() == 0:
        raise ValueError(
            f"plot_energy_error needs finite energy changes that differ; {errors.size} are finite."
        )
    shape, scale = match_gamma(errors.mean(), errors.std())
    with jax.enable_x64(True):
        thresholds = [float(gamma_quantile(shape, scale, p)) for p in PROBABILITIES]
    limit = max(1.6 * thresholds[-1], float(np.quantile(errors, 0.99)))
    ax.hist(errors, bins, range=(0, limit), density=True, color="0.8", label="steps")
    x = np.linspace(0, limit, 400)[1:]
    # Its maximum may be infinite at 0, for a shape below 1.
    height = ax.get_ylim()[1]
    density = _gamma_density(x, float(shape), float(scale))
    ax.plot(x, density, color="black", lw=1.5, label=f"Gamma, shape {float(shape):.2g}")
    ax.set_ylim(0, height)
    names = ("grows below", "shrinks above", "rejected above")
    for threshold, name, style in zip(thresholds, names, ("-.", "--", ":"), strict=True):
        ax.axvline(threshold, color="0.3", ls=style, lw=1.5, label=name)
    beyond = np.mean(errors > limit)
    ax.set_xlim(0, limit)
    ax.set_xlabel("absolute energy change of a step (nats)")
    ax.set_ylabel("density")
    ax.set_title(f"{errors.size} steps, {beyond:.2%} beyond the axis", fontsize="medium")
    ax.legend(frameon=False, fontsize="small")
    return ax


def _gamma_density(x: np.ndarray, shape: float, scale: float) -> np.ndarray:
    log_density = jax.scipy.stats.gamma.logpdf(x, shape, scale=scale)
    return np.exp(np.asarray(log_density))


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Plots need matplotlib: pip install matplotlib, or blackjax-smile[plots]."
        ) from error
    return plt.subplots(layout="constrained")[1]
