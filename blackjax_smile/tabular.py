"""A user's table made ready for a network: checked, encoded, split, standardised."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from blackjax.types import Array

from blackjax_smile.errors import UserInputError

__all__ = ["TASKS", "Table", "guess_task", "prepare_table"]

TASKS = ("regression", "classification")

#: Fewest rows that can be split three ways and still be judged.
MIN_ROWS = 50

#: A column of text with more values than this share of the rows is a name, not a category.
MAX_CATEGORY_SHARE = 0.5

#: Integers with at most so many values are taken for classes.
MAX_CLASSES = 10

#: A column of text with more values is told: it may be a date or a name, and is many features.
MANY_CATEGORIES = 20

#: Further from the mean no value is taken: the squared error of what a network makes of it must
#: be a float32.
MAX_DEVIATIONS = 1e12

#: Shares of the rows for training and validation; the rest is the test set.
SHARES = (0.7, 0.1)


class Table(NamedTuple):
    """A table as a network takes it.

    train, validation, test
        ``(x, y)`` with the rows as leading axis. For regression y is standardised
        with mean and deviation of the training rows; for classification it is the
        number of the class.
    features
        Names of the columns of x.
    task
        One of `TASKS`.
    classes
        Values of the target, in the order of their numbers; empty for regression.
    feature_mean, feature_deviation
        Of the training rows, one for each feature: what x was standardised with.
    target_mean, target_deviation
        Of the training rows, in the target's units.
    test_rows, test_target, notes
        Numbers of the test rows in the table, from 0; their target as it stands there; and
        what was done that the user may want to know, a line each.
    """

    train: tuple[Array, Array]
    validation: tuple[Array, Array]
    test: tuple[Array, Array]
    features: tuple[str, ...]
    task: str
    classes: tuple[Any, ...]
    feature_mean: np.ndarray
    feature_deviation: np.ndarray
    target_mean: float
    target_deviation: float
    test_rows: np.ndarray
    test_target: np.ndarray
    notes: tuple[str, ...]


def guess_task(target: Any) -> str:
    """Return what a target suggests: no numbers, or few whole ones, are classes."""
    import pandas

    if not pandas.api.types.is_numeric_dtype(target) or pandas.api.types.is_bool_dtype(target):
        return "classification"
    is_whole = bool(np.all(np.mod(target, 1) == 0))
    return "classification" if is_whole and target.nunique() <= MAX_CLASSES else "regression"


def prepare_table(frame: Any, target: str, task: str | None = None, seed: int = 0) -> Table:
    """Return a data frame as a `Table`.

    Numbers are standardised with the mean and the deviation of the training rows,
    which see nothing of the others; columns of text become one column per
    category. Rows are split 70/10/20 by the seed, for classification within each
    class.

    Parameters
    ----------
    frame
        A `pandas.DataFrame`; names of columns that are no text, integers for one, are
        made text.
    target
        Name of the column to predict.
    task
        One of `TASKS`; None: told from the target, see `guess_task`.
    seed
        Of the split.

    Raises
    ------
    UserInputError
        For a table that cannot be used, with what to do about it.
    """
    frame, target = frame.rename(columns=str), str(target)
    _check(frame, target)
    features = frame.drop(columns=target)
    notes = []
    if task is None:
        task = guess_task(frame[target])
        notes.append(
            f"task: {task}, guessed from the {frame[target].nunique()} values of {target!r} "
            "(--task says otherwise)"
        )
    y, classes = _encode_target(frame[target], task)
    splits = _split(y, task, seed)
    encoded, encoding_notes = _encode_features(features, splits[0])
    names, X = tuple(encoded), np.stack(list(encoded.values()), axis=1)
    X, mean, deviation = _standardise(X, splits[0], names)
    target_mean, target_deviation = 0.0, 1.0
    if task == "regression":
        if np.ptp(y[splits[0]]) == 0:
            raise UserInputError(f"The target {target!r} is constant in the training rows.")
        columns, means, deviations = _standardise(y[:, None], splits[0], (target,))
        y, target_mean, target_deviation = columns[:, 0], float(means[0]), float(deviations[0])
    train, validation, test = ((jnp.asarray(X[rows]), jnp.asarray(y[rows])) for rows in splits)
    return Table(
        train,
        validation,
        test,
        features=names,
        task=task,
        classes=classes,
        feature_mean=mean,
        feature_deviation=deviation,
        target_mean=target_mean,
        target_deviation=target_deviation,
        test_rows=splits[2],
        test_target=frame[target].to_numpy()[splits[2]],
        notes=(*notes, *encoding_notes),
    )


def _standardise(
    columns: np.ndarray, train: np.ndarray, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return columns in deviations from the mean of the training rows, and these moments."""
    with np.errstate(all="ignore"):
        mean, deviation = columns[train].mean(0), columns[train].std(0)
        standardised = (columns - mean) / deviation
    unusable = ~(np.isfinite(mean) & np.isfinite(deviation) & (deviation > 0))
    if unusable.any():
        listed = _listed([names[i] for i in np.flatnonzero(unusable).tolist()])
        raise UserInputError(
            f"The values of {listed} are too large or too small for their squares to be computed. "
            "Rescale them, or take logarithms."
        )
    far = np.argwhere(np.abs(standardised) > MAX_DEVIATIONS)
    if len(far):
        row, column = far[0]
        raise UserInputError(
            f"Row {row} (from 0, without the header) has {columns[row, column]:g} in column "
            f"{names[column]!r}, more than {MAX_DEVIATIONS:g} deviations from the mean of the "
            "training rows. Correct the value, or drop the row."
        )
    return standardised.astype(np.float32), mean, deviation


def _check(frame: Any, target: str) -> None:
    columns = list(frame.columns)
    twice = [repr(name) for name in frame.columns[frame.columns.duplicated()].unique()]
    if twice:
        raise UserInputError(
            f"More than one column is named {_listed(twice)} (spaces around a name do not count). "
            "Rename them."
        )
    if target not in columns:
        raise UserInputError(f"There is no column {target!r}. The table has: {_listed(columns)}.")
    if len(columns) < 2:
        raise UserInputError("The table has no column besides the target.")
    if len(frame) < MIN_ROWS:
        raise UserInputError(
            f"The table has {len(frame)} rows; at least {MIN_ROWS} are needed to train, validate "
            "and test a network."
        )
    missing = frame.isna().sum()
    missing = missing[missing > 0]
    if len(missing):
        counts = _listed([f"{name!r} ({count} rows)" for name, count in missing.items()])
        raise UserInputError(
            f"Values are missing in {counts}: empty, or a word that is read as missing (NA, None, "
            "null, ...). Drop those rows or columns, or fill the values in (pandas: "
            "DataFrame.dropna, DataFrame.fillna), and run again."
        )
    numeric = frame.select_dtypes("number")
    infinite = [str(name) for name in numeric if not np.all(np.isfinite(numeric[name]))]
    if infinite:
        raise UserInputError(f"There are infinite values in {_listed(infinite)}.")


def _encode_target(target: Any, task: str) -> tuple[np.ndarray, tuple]:
    import pandas

    if task == "regression":
        if not pandas.api.types.is_numeric_dtype(target):
            raise UserInputError(
                f"Regression needs a target of numbers, but {target.name!r} holds "
                f"{target.iloc[0]!r}, for one. Use --task classification, or another target."
            )
        return target.to_numpy(np.float64), ()
    numbers, classes = pandas.factorize(target, sort=True)
    counts = np.bincount(numbers)
    if len(classes) < 2:
        raise UserInputError(f"The target {target.name!r} has one value only, {str(classes[0])!r}.")
    if counts.min() < 5:
        rare = [f"{classes[i]} ({counts[i]})" for i in np.flatnonzero(counts < 5)]
        raise UserInputError(
            f"Classes need at least 5 rows each, but {target.name!r} has {len(rare)} rarer ones: "
            f"{_listed(rare)}. Drop or merge them, or use --task regression for a quantity."
        )
    return numbers.astype(np.int32), tuple(classes)


def _split(y: np.ndarray, task: str, seed: int) -> list[np.ndarray]:
    """Return the training, validation and test rows."""
    rng = np.random.default_rng(seed)
    groups = [np.arange(len(y))]
    if task == "classification":
        groups = [np.flatnonzero(y == label) for label in range(y.max() + 1)]
    parts: list[list[np.ndarray]] = [[], [], []]
    for group in groups:
        edges = np.cumsum([max(1, round(share * len(group))) for share in SHARES])
        # The smallest class leaves a row for the test, too.
        edges -= max(0, edges[-1] + 1 - len(group))
        for part, rows in zip(parts, np.split(rng.permutation(group), edges), strict=True):
            part.append(rows)
    return [np.sort(np.concatenate(part)) for part in parts]


def _encode_features(frame: Any, train: np.ndarray) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return columns of numbers by name; constant ones are left out."""
    import pandas

    columns: dict[str, np.ndarray] = {}
    constant = []
    # In a table sorted by the target it gives that away; but with a name it may be a time.
    counts = [str(name) for name in frame.columns if _counts_the_rows(frame[name])]
    unnamed = [name for name in counts if name.startswith("Unnamed: ")]
    frame = frame.drop(columns=unnamed)
    notes = [f"left out, counts the rows: {name}" for name in unnamed]
    notes += [
        f"{name!r} counts the rows and is a feature: remove the column unless their order matters "
        "(in a table sorted by the target it gives that away)"
        for name in counts
        if name not in unnamed
    ]
    for name in frame.columns:
        column = frame[name]
        if pandas.api.types.is_numeric_dtype(column):
            columns[str(name)] = column.to_numpy(np.float64)
            continue
        values = column.iloc[train].unique()
        if len(values) > max(2, MAX_CATEGORY_SHARE * len(train)):
            numbers = pandas.to_numeric(pandas.Series(values).astype(str), errors="coerce").notna()
            example = values[int(np.argmin(numbers))]  # the first that is none, if there is one
            raise UserInputError(
                f"Column {str(name)!r} is text with {len(values)} values in {len(train)} training "
                f"rows (e.g. {str(example)!r}): a name, or numbers with something in between. "
                "Drop or clean it."
            )
        if len(values) > MANY_CATEGORIES:
            notes.append(f"{name!r}: text, {len(values)} categories, a feature each")
        for value in sorted(values, key=str):
            encoded = f"{name}={value}"
            if encoded in columns or encoded in frame.columns:
                raise UserInputError(
                    f"Category {value!r} of column {str(name)!r} needs a column {encoded!r}, and "
                    "there is one already. Rename it, or make the values of one kind (all text)."
                )
            columns[encoded] = (column == value).to_numpy(np.float64)
        unseen = int((~column.isin(values)).sum())
        if unseen:
            notes.append(f"{name!r}: {unseen} rows have a category that no training row has")
    for name in list(columns):
        if np.ptp(columns[name][train]) == 0:
            constant.append(name)
            del columns[name]
    if constant:
        notes.append(f"left out, constant in the training rows: {_listed(constant)}")
    if not columns:
        raise UserInputError("Every column besides the target is constant in the training rows.")
    return columns, notes


def _counts_the_rows(column: Any) -> bool:
    """Return whether it is an index, like the one that other programs save with a table."""
    return any(np.array_equal(column, np.arange(len(column)) + first) for first in (0, 1))


def _listed(names: Sequence[str], most: int = 10) -> str:
    listed = ", ".join(names[:most])
    return listed + (f" and {len(names) - most} more" if len(names) > most else "")
