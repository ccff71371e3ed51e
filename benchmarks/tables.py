"""Aligned text tables and CSV files of the benchmarks' rows."""

import csv

import numpy as np


def format_cell(value) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def with_error(values, digits: int = 3, sign: str = "") -> str:
    """Return the mean with its standard error, unknown of a single value."""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return f"{np.mean(values):{sign}.{digits}f} +- {error:.{digits}f}"


def print_table(rows: list[dict]) -> None:
    names = list(rows[0])
    cells = [names] + [[format_cell(row.get(name, "")) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())


def write_csv(path: str, rows: list[dict]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def report(rows: list[dict], path: str | None) -> None:
    """Print a benchmark's rows and, if there is a path, write them to it."""
    print_table(rows)
    if path:
        write_csv(path, rows)


def verdict(is_met: bool) -> str:
    return "pass" if is_met else "FAIL"
