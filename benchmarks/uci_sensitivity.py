"""What should not matter to `smile` on the UCI tables: its target, the length of its warmup."""

from typing import NamedTuple

import numpy as np
from tables import verdict
from uci_model import lppd

SENSITIVITY_BAR = 0.03


class Variant(NamedTuple):
    """Options of `smile`, and the run that it is compared with."""

    options: dict
    against: str = ""


#: What should not matter, and two runs of another length. The bar is on runs that are equally
#: long, by the draws that are later than both warmups.
SENSITIVITY = {
    "deflection 0.1": Variant({"target_deflection": 0.1}),
    "deflection 0.4": Variant({"target_deflection": 0.4}),
    "warmup / 10, same total": Variant({"num_warmup": 2_000, "num_gradients": 60_000}),
    "as long, same warmup": Variant({"num_gradients": 240_000}),
    "warmup x 10": Variant({"num_warmup": 200_000}, "as long, same warmup"),
    "warmup / 10, shorter run": Variant({"num_warmup": 2_000}),
}


def sensitivity(table: str, runs) -> list[dict]:
    """Compare variants of `smile` by whole runs and, where these are equally long, by the
    draws that are later than both warmups.

    ``runs`` is a `uci_networks.Runs`.
    """
    repeats = range(runs.args.repeats)

    def logs_of(label: str, options: dict) -> list:
        """Logs by repeat and seed."""
        return [
            [
                runs.get(table, seed, "smile", None, label, repeat, **options)["test_logs"]
                for seed in runs.args.seeds
            ]
            for repeat in repeats
        ]

    rows = []
    for name in runs.args.variants:
        variant = SENSITIVITY[name]
        reference = SENSITIVITY[variant.against].options if variant.against else {}
        pair = logs_of(name, variant.options), logs_of(variant.against, reference)
        ours, theirs = (np.array([[lppd(x) for x in row] for row in found]) for found in pair)
        row = {
            "table": table,
            "variant": name,
            "against": variant.against or "as set",
            "LPPD": float(np.mean(ours)),
            "by seed": " ".join(f"{score:.3f}" for score in ours.mean(axis=0)),
            "change": shown(ours - theirs),
            "of the same draws": "",
            "bar": "",
        }
        lengths = [runs.lengths(options) for options in (variant.options, reference)]
        if lengths[0][1] == lengths[1][1]:
            start = max(num_warmup for num_warmup, _ in lengths)
            late = [
                np.array([[lppd(later_than(start, x, *length)) for x in row] for row in found])
                for found, length in zip(pair, lengths, strict=True)
            ]
            row["of the same draws"] = shown(late[0] - late[1])
            row["bar"] = verdict(abs(np.mean(late[0] - late[1])) < SENSITIVITY_BAR)
        rows.append(row)
    return rows


def shown(changes) -> str:
    """Mean over repeats and seeds, with its error from the repeats where there are some."""
    by_repeat = np.mean(changes, axis=1)
    text = f"{np.mean(changes):+.3f}"
    if len(by_repeat) > 1:
        text += f" +- {np.std(by_repeat, ddof=1) / np.sqrt(len(by_repeat)):.3f}"
    return text


def later_than(start: int, logs, num_warmup: int, num_gradients: int):
    """Return the draws of a run that come after ``start`` gradients."""
    share = (np.arange(logs.shape[1]) + 1) / logs.shape[1]
    return logs[:, num_warmup + share * (num_gradients - num_warmup) > start]
