"""The command line on a user's own table: ``python -m blackjax_smile --data table.csv``."""

import collections
import pathlib
from typing import Any

from blackjax_smile import tabular, tabular_fit, tabular_report
from blackjax_smile._extras import COMMAND_PACKAGES, check_installed
from blackjax_smile.command_options import check_options
from blackjax_smile.errors import UserInputError
from blackjax_smile.tabular_file import read_table

__all__ = ["run"]

#: Modules that a table needs beside the core's, and the packages they come in.
PACKAGES = {"pandas": "pandas", **COMMAND_PACKAGES}


def run(
    data: pathlib.Path,
    target: str,
    task: str | None,
    output: pathlib.Path,
    options: tabular_fit.TabularOptions,
) -> None:
    """Fit the ensemble, print the table of results, write draws and a figure."""
    check_installed(PACKAGES, "A table")
    check_options(options)
    frame = read_table(data)
    file_notes = check_header(data, frame, target)
    table = tabular.prepare_table(frame, target, task, options.seed)
    output.mkdir(parents=True, exist_ok=True)  # what is wrong with it is said before the fit
    for note in (*file_notes, *table.notes):
        say(note)
    network = tabular_fit.build_network(table, options)
    sizes = [len(part[1]) for part in (table.train, table.validation, table.test)]
    say(
        f"{data.name}: {table.task} of {target!r} on {len(table.features)} features; "
        f"{sizes[0]} training, {sizes[1]} validation and {sizes[2]} test rows"
    )
    fit = tabular_fit.fit_table(table, network, options, say)
    say("")
    means = tabular_report.predictive_means(table, network, fit)
    say(tabular_report.report(table, network, fit, options, means))
    for path in tabular_report.save(table, network, fit, means, output, options.seed):
        say(f"wrote {path}")


def check_header(path: pathlib.Path, frame: Any, target: str) -> list[str]:
    """Return what pandas has made of a header, a line each; raise if it has two targets."""
    import pandas

    # As it was written: of columns of one name pandas renames the later ones.
    header = pandas.read_csv(
        path, header=None, nrows=1, dtype=str, keep_default_na=False, skipinitialspace=True
    )
    counts = collections.Counter(str(name).strip() for name in header.iloc[0])
    twice = [name for name, count in counts.items() if name and count > 1]
    if target in twice:
        raise UserInputError(
            f"{counts[target]} columns are named {target!r}, the target. Rename or drop the others."
        )
    notes = [
        f"{counts[name]} columns are named {name!r}: the later ones got a number ({name}.1, ...)"
        for name in twice
    ]
    if not frame.index.equals(pandas.RangeIndex(len(frame))):
        more = frame.index.nlevels
        longer, first = (
            ("one value", "first was") if more == 1 else (f"{more} values", "first were")
        )
        notes.append(f"rows have {longer} more than the header: the {first} taken for row names")
    return notes


def say(line: str) -> None:
    """Print a line at once, also into a file."""
    print(line, flush=True)
