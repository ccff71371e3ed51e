"""Columns of text in a user's table: blanks around values, and numbers with others in between."""

import collections
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from blackjax_smile.errors import UserInputError

__all__ = ["clean_text"]

#: With more values than this, a column most of whose values are numbers holds quantities; with
#: fewer they may be names of categories (0, 1, 2, 3+).
MANY_VALUES = 20


def clean_text(frame: Any) -> tuple[Any, list[str]]:
    """Return a table without blanks around its texts, and notes on its columns of text.

    Raises
    ------
    UserInputError
        For a column of numbers that other values, a mark for a missing one for example, have
        made text.
    """
    import pandas

    frame, notes = frame.copy(deep=False), []
    for i, (name, column) in enumerate(frame.items()):
        if not pandas.api.types.is_numeric_dtype(column):
            stripped, merged = _strip(column)
            # By place: two columns may have one name, which is refused later.
            frame.isetitem(i, stripped)
            if merged:
                listed = ", ".join(map(repr, merged[:5])) + (", ..." if len(merged) > 5 else "")
                notes.append(f"{name!r}: blanks around values do not count; merged: {listed}")
            notes += _check_numbers(str(name), stripped)
    return frame, notes


def _strip(column: Any) -> tuple[Any, list[str]]:
    """Return the column without blanks around its texts, and the texts this has made one of."""
    texts = _texts(column)
    padded = {text: text.strip() for text in texts if text != text.strip()}
    if not padded:
        return column, []
    missing = _read_as_missing(list(padded.values()))
    clean = {
        text: np.nan if is_missing else value
        for (text, value), is_missing in zip(padded.items(), missing, strict=True)
    }
    counts = collections.Counter(text.strip() for text in texts)
    merged = [text for text, count in counts.items() if count > 1]
    return column.map(lambda value: clean.get(value, value)), merged


def _read_as_missing(texts: Sequence[str]) -> Sequence[bool]:
    """Return of which texts the reader makes missing values: it has not seen them unpadded."""
    import pandas

    written = pandas.Series(texts).to_csv(index=False, header=False)
    return pandas.read_csv(io.StringIO(written), header=None, dtype=str)[0].isna().tolist()


def _check_numbers(name: str, column: Any) -> list[str]:
    """Return a note if most values are numbers; raise if the others can be no categories."""
    import pandas

    texts = _texts(column)
    numbers = pandas.to_numeric(pandas.Series(texts, dtype=object), errors="coerce").notna()
    others = [text for text, is_number in zip(texts, numbers, strict=True) if not is_number]
    if not others or 2 * len(others) >= len(texts):
        return []
    marks = [text for text in others if not any(map(str.isalnum, text))]
    first = (marks or others)[0]
    found = (
        f"{len(texts) - len(others)} of its {len(texts)} values are numbers, but {first!r} "
        f"({int((column == first).sum())} rows) "
        + ("is none" if len(others) == 1 else f"and {len(others) - 1} more are none")
    )
    if marks or len(texts) > MANY_VALUES:
        raise UserInputError(
            f"Column {name!r} is text: {found}. If it stands for a missing value, drop those rows "
            "or fill the value in; if it is a number with a unit or a separator, write the number "
            "alone. If all of them are names of categories, write them as words (c1, c2, ...)."
        )
    return [
        f"{name!r}: {found}; taken as categories, so drop or fill in those rows if it is a quantity"
    ]


def _texts(column: Any) -> list[str]:
    return [value for value in column.unique() if isinstance(value, str)]
