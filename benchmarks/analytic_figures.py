"""Figures of the analytic suite: one per target, error by noise, one marker per sampler."""

import pathlib

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

MARKERS = "osD^v<>P"


def draw_figures(rows: list[dict], directory: pathlib.Path) -> list[pathlib.Path]:
    """Draw b2, mean over the seeds with its range, of each target's rows; return the paths."""
    paths = []
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for target in dict.fromkeys(row["target"] for row in rows):
        mine = [row for row in rows if row["target"] == target]
        noises = list(dict.fromkeys((row["structure"], row["law"]) for row in mine))
        figure, ax = plt.subplots(figsize=(2 + 1.3 * len(noises), 4), layout="constrained")
        for k, method in enumerate(methods):
            chosen = [row for row in mine if row["method"] == method]
            x = [noises.index((row["structure"], row["law"])) for row in chosen]
            x = np.asarray(x) + 0.7 * ((k + 0.5) / len(methods) - 0.5)
            b2, lowest, highest = (
                np.asarray([row[name] for row in chosen]) for name in ("b2", "lowest", "highest")
            )
            gray = str(round(0.7 * k / len(methods), 2))
            ax.errorbar(
                x,
                b2,
                np.stack([b2 - lowest, highest - b2]),
                fmt=MARKERS[k % len(MARKERS)],
                color=gray,
                mfc="white" if k % 2 else gray,
                lw=0.8,
                label=method,
            )
        labels = [s if law == "normal" else f"{s}\n{law}" for s, law in noises]
        ax.set_xticks(range(len(noises)), labels)
        ax.set_yscale("log")
        ax.set_ylabel("b2 of the second moments")
        ax.set_title(f"{target}: mean and range over the seeds, best step size", fontsize="medium")
        figure.legend(loc="outside lower center", frameon=False, fontsize="small", ncols=7)
        path = directory / f"analytic_{target}.png"
        figure.savefig(path, dpi=110)
        plt.close(figure)
        paths.append(path)
    return paths
