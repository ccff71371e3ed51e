"""The command line: ``python -m blackjax_smile``."""

import argparse
import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from blackjax_smile import demo, tabular_command
from blackjax_smile.errors import UserInputError
from blackjax_smile.tabular import TASKS
from blackjax_smile.tabular_fit import TabularOptions

HELP = {
    "num_chains": "chains, run side by side",
    "num_warmup": "gradients of the warmup, per chain",
    "num_samples": "draws kept, per chain",
    "thinning": "steps from one draw kept to the next",
    "batch_size": "rows of a minibatch (even)",
    "num_components": "principal components of the images (digits only)",
    "hidden_units": "units in each of the two hidden layers (with --data only)",
    "preconditioner": "auto, dense, kronecker, low_rank, diagonal or identity",
    "seed": "seed of everything random",
}

DESCRIPTION = """\
Without --data: Bayesian softmax regression on scikit-learn's digits by minibatches.
With --data FILE --target COLUMN: an ensemble of Bayesian neural networks on your own
comma-separated table, compared with the deep ensemble it starts from.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of both commands."""
    parser = argparse.ArgumentParser(
        prog="python -m blackjax_smile",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=pathlib.Path, metavar="FILE", help="table with a header")
    parser.add_argument("--target", metavar="COLUMN", help="name of the column to predict")
    parser.add_argument("--task", choices=TASKS, help="default: told from the target")
    parser.add_argument(
        "--output",
        default="smile_demo",
        type=pathlib.Path,
        metavar="DIR",
        help="folder of the results (default: smile_demo)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the digits run in the output folder"
    )
    on_digits, on_tables = _defaults(demo.Options), _defaults(TabularOptions)
    for name, text in HELP.items():
        values = [options[name] for options in (on_digits, on_tables) if name in options]
        both = len(values) == 2 and values[0] != values[1]
        default = f"{values[0]}, with --data {values[1]}" if both else str(values[0])
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=type(values[0]),
            help=f"{text} (default: {default})",
        )
    return parser


def _defaults(options: type) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(options)}


def parse(arguments: list[str] | None) -> tuple[Any, argparse.Namespace]:
    """Return the options of the command that is asked for, and all arguments."""
    values = build_parser().parse_args(arguments)
    options = TabularOptions if values.data else demo.Options
    given = {name: getattr(values, name) for name in HELP if getattr(values, name) is not None}
    unknown = sorted(set(given) - set(_defaults(options)))
    if values.data is None:
        unknown += [name for name in ("target", "task") if getattr(values, name) is not None]
    elif values.resume:
        unknown.append("resume")
    if unknown:
        flags = ", ".join("--" + name.replace("_", "-") for name in unknown)
        command = "with --data" if values.data else "without --data"
        raise UserInputError(f"{flags} cannot be used {command}.")
    if values.data is not None and values.target is None:
        raise UserInputError("--data needs --target, the name of the column to predict.")
    return options(**given), values


@contextlib.contextmanager
def no_empty_folder(folder: pathlib.Path) -> Iterator[None]:
    """Remove the folder of results if it was made in vain; raise if a file is in its place."""
    for path in (folder, *folder.parents):
        if path.is_file():
            raise UserInputError(
                f"--output must be a folder, or a new name for one, got {str(folder)!r}: "
                f"{str(path)!r} is a file. Choose another name."
            )
    existed = folder.exists()
    try:
        yield
    finally:
        if not existed:
            with contextlib.suppress(OSError):  # it holds something, or was never made
                folder.rmdir()


def main(arguments: list[str] | None = None) -> int:
    """Run the demo, or fit the user's table; return the exit status."""
    try:
        options, values = parse(arguments)
        with no_empty_folder(values.output):
            if values.data is None:
                demo.run(options, values.output, values.resume)
            else:
                tabular_command.run(values.data, values.target, values.task, values.output, options)
    except (UserInputError, ModuleNotFoundError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130  # what shells return for it
    return 0


if __name__ == "__main__":
    sys.exit(main())
