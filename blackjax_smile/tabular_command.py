"""The command line on a user's own table: ``python -m blackjax_smile --data table.csv``."""

import pathlib

from blackjax_smile import tabular, tabular_fit, tabular_report
from blackjax_smile._extras import COMMAND_PACKAGES, check_installed
from blackjax_smile.command_options import check_options
from blackjax_smile.tabular_file import check_header, read_table
from blackjax_smile.tabular_text import clean_text

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
    frame, text_notes = clean_text(frame)
    table = tabular.prepare_table(frame, target, task, options.seed)
    output.mkdir(parents=True, exist_ok=True)  # what is wrong with it is said before the fit
    for note in (*file_notes, *text_notes, *table.notes):
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


def say(line: str) -> None:
    """Print a line at once, also into a file."""
    print(line, flush=True)
