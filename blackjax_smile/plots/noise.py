"""The spectrum of the gradient noise before and after its whitening."""

from typing import Any

import numpy as np

from blackjax_smile.noise_diagnostics import GradientNoise
from blackjax_smile.plots.figure import new_axes

__all__ = ["plot_noise_spectrum"]


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

    Examples
    --------
    >>> import jax, jax.numpy as jnp, blackjax_smile
    >>> from blackjax_smile.plots import plot_noise_spectrum
    >>> data = jax.random.normal(jax.random.key(0), (1000, 2)) * jnp.array([1.0, 30.0])
    >>> noise = blackjax_smile.gradient_noise(
    ...     jax.random.key(1), lambda x, batch: -500 * jnp.mean((batch - x) ** 2 @ jnp.ones(2)),
    ...     jnp.zeros(2), blackjax_smile.minibatch_sampler(data, 50),
    ...     inverse_mass_matrix=jnp.array([1.0, 1 / 900]))
    >>> plot_noise_spectrum(noise).get_ylabel()
    'noise variance / mean'
    """
    ax = new_axes() if ax is None else ax
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
        mean = eigenvalues.mean() if (eigenvalues > 0).any() else np.nan
        positive = np.where(eigenvalues > 0, eigenvalues / mean, np.nan)
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
