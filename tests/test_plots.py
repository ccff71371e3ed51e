"""The plots show what they are given: curves and lines where theory puts them."""

from types import SimpleNamespace

import jax
import matplotlib
import numpy as np
import pytest
from scipy import stats

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from blackjax_smile.noise_diagnostics import GradientNoise, NoiseSummary
from blackjax_smile.plots import plot_energy_error, plot_noise_spectrum


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_energy_error():
    """Of a Gamma law: the drawn density and thresholds are scipy's, within 3 %."""
    law = stats.gamma(4.0, scale=0.5)
    signs = np.random.default_rng(0).choice([-1, 1], 40_000)
    changes = signs * law.rvs(40_000, random_state=1)
    changes[::100] = np.inf
    ax = plot_energy_error(SimpleNamespace(energy_change=changes.reshape(2, -1)))
    curve, *lines = ax.get_lines()
    x, density = curve.get_data()
    np.testing.assert_allclose(density, law.pdf(x), atol=0.03 * law.pdf(x).max())
    drawn = [line.get_xdata()[0] for line in lines]
    np.testing.assert_allclose(drawn, law.ppf([1 / 30, 14 / 15, 0.98]), rtol=0.03)
    assert "nats" in ax.get_xlabel()
    assert [text.get_text() for text in ax.get_legend().get_texts()][1].startswith("Gamma")


def test_energy_error_without_anything_to_show():
    with pytest.raises(ValueError, match="0 are finite"):
        plot_energy_error(SimpleNamespace(energy_change=np.full(5, np.inf)))


def test_noise_spectrum_on_given_axes():
    def summary(eigenvalues, anisotropy):
        return NoiseSummary(jax.numpy.asarray(eigenvalues), anisotropy, 0.9, 0.1)

    noise = GradientNoise(summary([1.0, 4.0, 25.0], 1.1), summary([2.0, 2.0, 2.0], 0.0), 1000)
    _, ax = plt.subplots()
    assert plot_noise_spectrum(noise, ax) is ax
    before, after = ax.get_lines()
    np.testing.assert_allclose(before.get_ydata(), [2.5, 0.4, 0.1], rtol=1e-6)
    np.testing.assert_allclose(after.get_ydata(), 1.0)
    assert ax.get_yscale() == "log"
