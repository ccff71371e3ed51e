"""Reading a user's comma-separated table, and saying what is wrong with one that is not."""

import collections
import pathlib
import warnings
from typing import Any

from blackjax_smile.errors import UserInputError

__all__ = ["check_header", "read_table"]

#: What other programs separate columns by.
OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}

#: What workbooks begin with: the new ones, zip archives of XML, and the old ones.
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")


def read_table(path: pathlib.Path) -> Any:
    """Return a CSV file, compressed or not, as a data frame.

    Raises
    ------
    UserInputError
        If there is no such file, or it is no table.
    """
    if path.is_dir():
        raise UserInputError(f"{str(path)!r} is a folder. Give the file in it that is the table.")
    if not path.is_file():
        raise UserInputError(f"There is no file {str(path)!r}.")
    # A zip archive that is named as one is opened by pandas.
    if path.suffix.lower() != ".zip" and _begins_with(path, WORKBOOKS):
        raise UserInputError(
            f"{str(path)!r} is no text but an Excel workbook, or an archive. Export the sheet as "
            "CSV (UTF-8), and give that file."
        )
    try:
        frame = _read(path)
    # Each compression has errors of its own, and packages that may be missing.
    except Exception as error:
        encoding = " Save it as UTF-8." if isinstance(error, UnicodeDecodeError) else ""
        raise UserInputError(
            f"{str(path)!r} cannot be read as comma-separated values with a header: {error}."
            f"{encoding}"
        ) from error
    frame = frame.rename(columns=lambda name: str(name).strip())
    if len(frame.columns) == 1:
        header = frame.columns[0]
        for separator, name in OTHER_SEPARATORS.items():
            if separator in header:
                raise UserInputError(
                    f"{str(path)!r} has one column, {header!r}: it seems to be separated by "
                    f"{name}. Save it separated by commas, with decimal points."
                )
    return frame


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


def _begins_with(path: pathlib.Path, starts: tuple[bytes, ...]) -> bool:
    with path.open("rb") as file:
        return file.read(4).startswith(starts)


def _read(path: pathlib.Path) -> Any:
    import pandas

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Read in pieces (low_memory), a column of numbers and words would hold a code twice, as
        # a number and as a word.
        frame = pandas.read_csv(path, skipinitialspace=True, low_memory=False)
        if frame.iloc[:, -1].isna().all():
            # Rows that end with a comma have one value more than the header: it is no index.
            frame = pandas.read_csv(path, skipinitialspace=True, low_memory=False, index_col=False)
    # A comma at the end of the header and of every row.
    empty = frame.columns.str.startswith("Unnamed: ") & frame.isna().all().to_numpy()
    return frame.loc[:, ~empty]
