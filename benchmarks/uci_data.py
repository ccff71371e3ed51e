"""The UCI tables of the network benchmark: reading, splitting, standardising."""

import dataclasses
import os
import pathlib

import jax.numpy as jnp
import numpy as np

ENVIRONMENT = "BLACKJAX_SMILE_DATA"
SOURCES = {
    "airfoil": "UCI Airfoil Self-Noise, 1503 rows of 5 inputs and the target",
    "bikesharing": "UCI Bike Sharing (hourly), 17 379 rows of 11 inputs and the target",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """Standardised rows ``(x, y)``: training, validation, test."""

    train: tuple
    validation: tuple
    test: tuple


def read_rows(name: str, folder: str | None = None) -> np.ndarray:
    """Read the numbers of ``<name>.data``, the target last."""
    folder = folder or os.environ.get(ENVIRONMENT)
    if not folder:
        raise SystemExit(f"Where is the data? Pass --data FOLDER or set {ENVIRONMENT}.")
    path = pathlib.Path(folder) / f"{name}.data"
    if not path.exists():
        raise SystemExit(
            f"{path} does not exist. It is the table of {SOURCES[name]}, as numbers separated by "
            "spaces, without a header, the target last (archive.ics.uci.edu has it)."
        )
    return np.loadtxt(path)


def load(name: str, seed: int, folder: str | None = None) -> Table:
    """Read a table, permute its rows by the seed and split them 70/10/20.

    Inputs and target are standardised by the training rows.
    """
    rows = read_rows(name, folder)
    rows = rows[np.random.default_rng(seed).permutation(len(rows))]
    first, second = int(0.7 * len(rows)), int(0.8 * len(rows))
    train = rows[:first]
    rows = (rows - train.mean(axis=0)) / train.std(axis=0)
    rows = rows.astype(np.float32)
    parts = (rows[:first], rows[first:second], rows[second:])
    return Table(*((jnp.asarray(part[:, :-1]), jnp.asarray(part[:, -1])) for part in parts))
