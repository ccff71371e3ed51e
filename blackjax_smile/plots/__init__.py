"""Plots of what the library returns; what ArviZ draws is left to ArviZ.

Needs matplotlib (an optional extra). Each function draws on given axes, or on new
ones, and returns them; lines differ in style as well as in colour.
"""

from blackjax_smile.plots.adaptation import plot_adaptation
from blackjax_smile.plots.calibration import plot_coverage, plot_reliability
from blackjax_smile.plots.energy import plot_energy_error
from blackjax_smile.plots.noise import plot_noise_spectrum
from blackjax_smile.plots.predictive import plot_predictive_bands

__all__ = [
    "plot_adaptation",
    "plot_coverage",
    "plot_energy_error",
    "plot_noise_spectrum",
    "plot_predictive_bands",
    "plot_reliability",
]
