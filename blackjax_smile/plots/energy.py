"""The law of the energy errors, with its Gamma law and the thresholds."""

from typing import Any

import jax
import numpy as np

from blackjax_smile.gamma import gamma_quantile, match_gamma
from blackjax_smile.plots.figure import new_axes

__all__ = ["plot_energy_error"]

#: Probabilities of the paper's thresholds: the step grows below the first, shrinks
#: above the second, is rejected above the third.
PROBABILITIES = (0.1 / 3, 1 - 0.2 / 3, 0.98)


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
        If no energy change is finite, or all are equal; for what has no ``energy_change``.

    Examples
    --------
    >>> import blackjax, jax, jax.numpy as jnp, blackjax_smile
    >>> from blackjax_smile.plots import plot_energy_error
    >>> algorithm = blackjax_smile.smile(lambda x: -0.5 * x @ x, L=3.0, step_size=0.5)
    >>> _, (_, infos) = blackjax.util.run_inference_algorithm(
    ...     jax.random.key(0), algorithm, num_steps=500, initial_position=jnp.zeros(3))
    >>> plot_energy_error(infos).get_xlabel()
    'absolute energy change of a step (nats)'
    """
    if not hasattr(infos, "energy_change"):
        raise ValueError(
            "plot_energy_error needs infos, which hold the energy_change of every step; got a "
            f"{type(infos).__name__}. Of a SampleResult, whose statistics are means between draws, "
            "the warmup's steps do: result.adaptation.steps."
        )
    ax = new_axes() if ax is None else ax
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
