"""The command line on a user's own table: ``python -m blackjax_smile --data table.csv``."""

import pathlib

from blackjax_smile import tabular, tabular_fit, tabular_report
from blackjax_smile._extras import COMMAND_PACKAGES, check_installed
from blackjax_smile.adaptation.setup import PRECONDITIONERS
from blackjax_smile.errors import UserInputError

__all__ = ["check_options", "run"]

#: Modules that a table needs beside the core's, and the packages they come in.
PACKAGES = {"pandas": "pandas", **COMMAND_PACKAGES}


def check_options(options: tabular_fit.TabularOptions) -> None:
    """Raise for settings with which nothing can be fitted."""
    smallest = {
        "num_chains": 1, "num_warmup": 100, "num_samples": 8,
        "thinning": 1, "batch_size": 2, "hidden_units": 1,
    }  # fmt: skip
    for name, least in smallest.items():
        if getattr(options, name) < least:
            flag = "--" + name.replace("_", "-")
            raise UserInputError(f"{flag} must be at least {least}, got {getattr(options, name)}.")
    if options.preconditioner not in PRECONDITIONERS:
        raise UserInputError(
            f"--preconditioner must be one of {', '.join(PRECONDITIONERS)}, got "
            f"{options.preconditioner!r}."
        )
    if options.batch_size % 2:
        raise UserInputError(f"--batch-size must be even; got {options.batch_size}.")


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
    table = tabular.prepare_table(tabular.read_table(data), target, task, options.seed)
    for note in table.notes:
        say(note)
    network = tabular_fit.build_network(table, options)
    sizes = [len(part[1]) for part in (table.train, table.validation, table.test)]
    say(
        f"{data.name}: {table.task} of {target!r} on {len(table.features)} features; "
        f"{sizes[0]} training, {sizes[1]} validation and {sizes[2]} test rows"
    )
    fit = tabular_fit.fit_table(table, network, options, say)
    say("")
    say(tabular_report.report(table, network, fit, options))
    for path in tabular_report.save(table, network, fit, output, options.seed):
        say(f"wrote {path}")


def say(line: str) -> None:
    """Print a line at once, also into a file."""
    print(line, flush=True)
