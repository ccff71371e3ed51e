"""New axes where none are given, and how lines are told apart without colour."""

from collections.abc import Mapping
from typing import Any

from blackjax_smile._extras import require

__all__ = ["LINES", "labelled", "new_axes"]

#: Styles of lines that are compared; they differ in grey as well.
LINES = (
    {"color": "black", "ls": "-", "marker": "o"},
    {"color": "0.5", "ls": "--", "marker": "s"},
    {"color": "C0", "ls": "-.", "marker": "^"},
    {"color": "C1", "ls": ":", "marker": "D"},
)


def new_axes(num_rows: int = 1, **options: Any) -> Any:
    """Return new axes, an array of them for several rows."""
    plt = require("matplotlib.pyplot", "A plot", extra="plots")
    return plt.subplots(num_rows, layout="constrained", **options)[1]


def labelled(values: Any) -> dict[str, Any]:
    """Return what is drawn by its label; a single thing has none."""
    return dict(values) if isinstance(values, Mapping) else {"": values}
