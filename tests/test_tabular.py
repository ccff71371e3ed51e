"""The command on a user's table: what it prepares, refuses, prints and writes."""

import re

import numpy as np
import pytest

from blackjax_smile.__main__ import main
from blackjax_smile.arviz_export import import_arviz
from blackjax_smile.errors import UserInputError
from blackjax_smile.tabular import guess_task, prepare_table
from blackjax_smile.tabular_file import read_table
from blackjax_smile.tabular_report import Means, _predictions, in_units
from blackjax_smile.tabular_text import clean_text

pandas = pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

SMALL = [
    *("--num-chains", "2", "--num-warmup", "400", "--num-samples", "40", "--thinning", "5"),
    *("--hidden-units", "6", "--preconditioner", "diagonal"),
]


def make_frame(num_rows=300):
    """A curved function of a number and a category, noise of deviation 3."""
    rng = np.random.default_rng(0)
    size, kind = rng.normal(50, 10, num_rows), rng.choice(["a", "b", "c"], num_rows)
    mean = 200 + 2 * size + 10 * (kind == "a") * np.sin(size / 5)
    return pandas.DataFrame(
        {"size": size, "kind": kind, "price": mean + rng.normal(0, 3, num_rows)}
    )


def refused(frame, target="price", **options):
    with pytest.raises(UserInputError) as error:
        prepare_table(frame, target, **options)
    return str(error.value)


def test_rows_are_split_once_and_standardised_by_the_training_rows():
    frame = make_frame().assign(row=np.arange(300.0))
    frame.loc[:, "size"] *= 1e6
    table = prepare_table(frame, "price")
    assert table.task == "regression"
    assert table.features == ("size", "kind=a", "kind=b", "kind=c", "row")
    x, y = table.train
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(0), 1, rtol=1e-4)
    np.testing.assert_allclose([y.mean(), y.std()], [0, 1], atol=1e-4)
    # The number of the row, recovered from its standardised value: each in one part.
    parts = [
        np.asarray(part[0][:, -1], np.float64)
        for part in (table.train, table.validation, table.test)
    ]
    assert [len(part) for part in parts] == [210, 30, 60]
    step = np.diff(np.sort(np.concatenate(parts)))
    np.testing.assert_allclose(step, step.mean(), rtol=1e-3)
    # The other parts saw nothing of their own mean: it is not zero.
    assert np.all(np.abs(table.test[0].mean(0)) > 1e-4)
    # In the target's own units again, the values are those of the table.
    found = np.asarray(table.test[1]) * table.target_deviation + table.target_mean
    gaps = np.abs(found[:, None] - frame["price"].to_numpy()[None]).min(axis=1)
    np.testing.assert_array_less(gaps, 1e-3)


def test_classes_are_numbered_and_kept_in_every_part():
    frame = make_frame()
    frame["sold"] = np.where(frame["price"] > 310, "yes", "no")
    table = prepare_table(frame, "sold")
    assert (table.task, table.classes) == ("classification", ("no", "yes"))
    for part in (table.train, table.validation, table.test):
        assert set(np.unique(part[1])) == {0, 1}
    assert any("guessed" in note for note in table.notes)


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (np.linspace(0, 1, 60), "regression"),
        (np.arange(60), "regression"),
        (np.arange(60) % 3, "classification"),
        (np.arange(60) % 2 == 0, "classification"),
        (np.array(["a", "b"] * 30), "classification"),
    ],
)
def test_the_task_is_guessed(values, task):
    assert guess_task(pandas.Series(values)) == task


def test_bad_tables_are_refused_with_the_column_and_what_to_do():
    frame = make_frame()
    holes = frame.copy()
    holes.loc[:6, "size"] = np.nan
    holes.loc[3, "kind"] = None
    message = refused(holes)
    assert "'size' (7 rows), 'kind' (1 rows)" in message
    assert "dropna" in message
    assert "no column 'cost'. The table has: size, kind, price" in refused(frame, "cost")
    assert "20 rows; at least 50" in refused(frame[:20])
    assert "no column besides the target" in refused(frame[["price"]])
    assert "numbers, but 'kind' holds" in refused(frame, "kind", task="regression")
    assert "constant" in refused(frame.assign(price=1.0), task="regression")
    assert "one value only" in refused(frame.assign(price="x"))
    assert "at least 5 rows each" in refused(frame, task="classification")
    names = frame.assign(kind=[f"name {i}" for i in range(len(frame))])
    assert "'kind' is text with" in refused(names)
    assert "infinite values in size" in refused(frame.assign(size=np.inf))
    assert "is constant" in refused(frame[["price"]].assign(flat=1.0))


def test_values_that_cannot_be_standardised_are_refused():
    frame = make_frame()
    for scale in (1e-200, 1e200):
        assert "of size are too" in refused(frame.assign(size=scale * frame["size"]))
        assert "of price are too" in refused(frame.assign(price=scale * frame["price"]))
    # One value, of which the moments of the training rows know nothing.
    test_row = int(prepare_table(frame, "price").test_rows[0])
    for column in ("size", "price"):
        for value in (1e30, 1e200):
            far = frame.copy()
            far.loc[test_row, column] = value
            message = f"Row {test_row} (from 0, without the header) has {value:g} in column "
            assert message + repr(column) in refused(far)
    # The deviation of rounded values is not zero, though they are the same.
    assert "constant" in refused(frame.assign(price=0.1), task="regression")


def test_a_category_that_another_column_is_named_after():
    assert "'kind=a', and there is one already" in refused(make_frame().assign(**{"kind=a": 1.5}))
    codes = np.where(np.arange(300) % 2, "10", "x").astype(object)
    codes[:100] = 10
    assert "'code=10'" in refused(make_frame().assign(code=codes))


def test_names_that_spaces_alone_tell_apart(tmp_path):
    frame = make_frame().assign(**{"size ": 1.5, "kind ": "a"})
    frame.to_csv(tmp_path / "table.csv", index=False)
    assert "named 'size', 'kind' (spaces" in refused(read_table(tmp_path / "table.csv"))


def test_names_that_are_no_text():
    frame = make_frame()
    numbered = frame.rename(columns={"size": 0, "kind": 1, "price": 2})
    for target in ("2", 2):
        table = prepare_table(numbered, target)
        assert table.features == ("0", "1=a", "1=b", "1=c")
        np.testing.assert_array_equal(table.train[0], prepare_table(frame, "price").train[0])
    assert "'1 of the columns'" in refused(numbered, "1 of the columns")
    assert "named '0'" in refused(numbered.assign(**{"0": 1.0}), "2")


@pytest.mark.parametrize("size", [5, 6, 7, 10])
def test_the_smallest_classes_are_in_every_part(size):
    frame = pandas.DataFrame({"x": np.arange(12.0 * size), "y": np.repeat([*"abcdefghijkl"], size)})
    table = prepare_table(frame, "y")
    for part in (table.train, table.validation, table.test):
        assert len(np.unique(part[1])) == 12


def test_the_index_of_another_program_is_no_feature():
    frame = make_frame()
    for first in (0, 1):
        table = prepare_table(frame.assign(**{"Unnamed: 0": np.arange(300) + first}), "price")
        assert "Unnamed: 0" not in table.features
        assert any("counts the rows: Unnamed: 0" in note for note in table.notes)
        # With a name it may be a time, and is kept.
        table = prepare_table(frame.assign(id=np.arange(300) + first), "price")
        assert "id" in table.features
        assert any("'id' counts the rows and is a feature" in note for note in table.notes)
    assert not any("counts" in note for note in prepare_table(frame, "price").notes)


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_a_column_is_read_as_one_kind(tmp_path):
    """Read in pieces, the numbers before the word would be others than those after it."""
    rows = 300_000
    text = "code,y\n" + "".join(f"{10 * (i % 3 + 1)},{i}\n" for i in range(rows)) + "A,1\n"
    frame = read_table(write(tmp_path / "table.csv", text))
    assert set(frame["code"].unique()) == {"10", "20", "30", "A"}


@pytest.mark.parametrize("rows", ["a,b\n1,2,\n3,4,\n", "a,b,\n1,2,\n3,4,\n", " a , b\n1,2\n3,4\n"])
def test_commas_at_the_end_and_spaces_in_the_header(rows, tmp_path):
    frame = read_table(write(tmp_path / "table.csv", rows))
    assert frame.to_dict("list") == {"a": [1, 3], "b": [2, 4]}


@pytest.mark.parametrize(
    ("name", "text", "encoding", "message"),
    [
        ("table.csv", "a;b\n1;2\n", "utf-8", "separated by semicolons. Save it"),
        ("table.csv", "a\tb\n1\t2\n", "utf-8", "separated by tabs. Save it"),
        ("table.csv", "größe,b\n1,2\n", "latin-1", "Save it as UTF-8"),
        ("table.csv", "", "utf-8", "cannot be read as comma-separated"),
        ("table.csv.gz", "no gzip", "utf-8", "cannot be read as comma-separated"),
        ("table.zip", "no zip", "utf-8", "cannot be read as comma-separated"),
        ("table.csv.xz", "no xz", "utf-8", "cannot be read as comma-separated"),
        ("table.xlsx", "PK\x03\x04", "utf-8", "an Excel workbook, or an archive. Export"),
        ("table.csv", "\xd0\xcf\x11\xe0", "latin-1", "an Excel workbook, or an archive. Export"),
    ],
)
def test_files_that_are_no_table(name, text, encoding, message, tmp_path):
    with pytest.raises(UserInputError, match=message):
        read_table(write(tmp_path / name, text, encoding))


def test_large_targets_keep_their_digits():
    """Time stamps: their deviation is far below the spacing of float32 numbers of their size."""
    frame = make_frame()
    frame["price"] += 1.7e9
    table = prepare_table(frame, "price")
    expected = frame["price"].to_numpy()[table.test_rows]
    np.testing.assert_allclose(in_units(table, table.test[1]), expected, rtol=0, atol=1e-4)


def test_the_output_folder_is_looked_at_before_the_fit(tmp_path, capsys):
    make_frame().to_csv(tmp_path / "table.csv", index=False)
    arguments = ["--data", str(tmp_path / "table.csv"), "--target", "price"]
    file = write(tmp_path / "afile", "")
    for output in (file, file / "folder"):
        assert main([*arguments, "--output", str(output)]) == 2
        captured = capsys.readouterr()
        assert "afile' is a file. Choose another name" in captured.err
        assert not captured.out


@pytest.fixture
def interrupted_fit(monkeypatch):
    """A Ctrl-C while the networks train."""
    from blackjax_smile import tabular_fit

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(tabular_fit, "fit_table", interrupt)


def test_a_run_that_is_stopped_leaves_no_empty_folder(tmp_path, interrupted_fit, capsys):
    make_frame().to_csv(tmp_path / "table.csv", index=False)
    arguments = ["--data", str(tmp_path / "table.csv"), "--target", "price", "--output"]
    (tmp_path / "empty").mkdir()
    for name, is_left in (("new", False), ("empty", True), (".", True)):
        assert main([*arguments, str(tmp_path / name)]) == 130
        assert capsys.readouterr().err == "stopped\n"
        assert (tmp_path / name).exists() == is_left


def test_blanks_around_text_do_not_count(tmp_path, interrupted_fit, capsys):
    frame = make_frame()
    padded = frame.assign(sold=np.where(frame["price"] > 310, "yes", "no"))
    padded.loc[::2, ["kind", "sold"]] += "  "
    path = tmp_path / "table.csv"
    padded.to_csv(path, index=False)
    assert main(["--data", str(path), "--target", "sold", "--output", str(tmp_path / "out")]) == 130
    printed = capsys.readouterr().out
    assert "'kind': blanks around values do not count; merged: " in printed
    table = prepare_table(clean_text(read_table(path))[0], "sold")
    assert table.classes == ("no", "yes")
    assert table.features == ("size", "kind=a", "kind=b", "kind=c", "price")
    # Blanks that told nothing apart are no news; the words for a missing value are those words.
    assert clean_text(frame.assign(kind=frame["kind"] + " "))[1] == []
    padded.loc[:3, "kind"] = ["NA ", "  ", " null ", ""]
    padded.to_csv(path, index=False, quoting=1)
    assert "'kind' (4 rows)" in refused(clean_text(read_table(path))[0])


def test_numbers_with_others_in_between(tmp_path, interrupted_fit, capsys):
    frame = make_frame()
    path = tmp_path / "table.csv"
    few, many = frame.index % 10, frame["size"]
    for column in ("size", "price"):
        for numbers, count in ((few, 11), (many, 294)):
            marked = frame.assign(**{column: numbers.astype(str)})
            marked.loc[[5, 70, 71, 72, 73, 74, 75], column] = "?"
            marked.to_csv(path, index=False)
            arguments = ["--data", str(path), "--target", "price"]
            assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
            message = capsys.readouterr().err
            assert f"Column '{column}' is text: {count - 1} of its {count} values" in message
            assert "but '?' (7 rows) is none. If it stands for a missing value" in message
    # Few numbers may be names of categories, many are none.
    names, sizes = (frame.assign(size=numbers.astype(str)) for numbers in (few, many))
    names.loc[[8, 9], "size"] = sizes.loc[[8, 9], "size"] = ["3+", "5+"]
    (note,) = clean_text(names)[1]
    assert note.startswith("'size': 10 of its 12 values are numbers, but '3+' (1 rows) and 1 more")
    with pytest.raises(UserInputError, match="298 of its 300 values are numbers, but '3"):
        clean_text(sizes)
    words = frame.assign(kind=frame["kind"].replace("a", "?"))
    assert clean_text(words)[1] == []


def test_the_example_of_text_is_no_number():
    values = [f"{i}.5" if i < 120 else f"name {i}" for i in range(300)]
    assert "(e.g. 'name 12" in refused(make_frame().assign(kind=values))


@pytest.mark.parametrize(
    ("header", "notes"),
    [
        ("id,size,kind,price", []),
        ("size,kind,price", ["rows have one value more than the header: the first was taken"]),
        ("kind,price", ["rows have 2 values more than the header: the first were taken"]),
        ("kind,size,kind,price", ["2 columns are named 'kind': the later ones"]),
    ],
)
def test_what_is_made_of_the_header_is_told(header, notes, tmp_path, monkeypatch, capsys):
    from blackjax_smile import tabular_fit

    def stop(*args):
        raise UserInputError("here")

    monkeypatch.setattr(tabular_fit, "build_network", stop)
    frame = make_frame()
    frame.insert(0, "id", np.arange(300) % 7)
    text = header + frame.to_csv(index=False).removeprefix("id,size,kind,price")
    arguments = ["--data", str(write(tmp_path / "table.csv", text)), "--target", "price"]
    assert main([*arguments, "--output", str(tmp_path)]) == 2
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(notes) + 1  # that the task is guessed
    for line, note in zip(printed, notes, strict=False):
        assert note in line


@pytest.mark.parametrize("name", ["price", " price "])
def test_two_columns_named_as_the_target(name, tmp_path, capsys):
    text = make_frame().to_csv(index=False).replace("size", name, 1)
    arguments = ["--data", str(write(tmp_path / "table.csv", text)), "--target", "price"]
    assert main([*arguments, "--output", str(tmp_path)]) == 2
    assert "2 columns are named 'price', the target" in capsys.readouterr().err


def test_text_that_becomes_many_features_is_told():
    frame = make_frame().assign(when=[f"day {i % 60}" for i in range(300)])
    notes = prepare_table(frame, "price").notes
    assert "'when': text, 60 categories, a feature each" in notes
    assert not any("'kind'" in note for note in notes)


def test_predictions_of_many_classes():
    """Columns added one at a time would make pandas warn of a fragmented frame."""
    frame = pandas.DataFrame({"x": np.arange(1000.0), "y": [f"k{i % 200}" for i in range(1000)]})
    table = prepare_table(frame, "y")
    labels = np.asarray(table.test[1])
    mean = np.full((len(labels), 200), 1 / 200)
    predictions = _predictions(table, Means(mean, mean), np.zeros(0))
    assert list(predictions.columns[:4]) == ["row", "observed", "predicted", "probability of k0"]
    assert predictions.shape == (200, 203)
    assert predictions["observed"].tolist() == frame["y"].iloc[table.test_rows].tolist()


def test_constant_columns_are_left_out_and_new_categories_told():
    frame = make_frame().assign(flat=3.0)
    table = prepare_table(frame, "price")
    assert "flat" not in table.features
    assert any("flat" in note for note in table.notes)


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_command(task, tmp_path, capsys):
    """Better than the mean of the training rows by far, and readable by ArviZ."""
    frame = make_frame()
    if task == "classification":
        frame["price"] = np.where(frame["price"] > 300, "dear", "cheap")
    frame.to_csv(tmp_path / "table.csv", index=False)
    arguments = ["--data", str(tmp_path / "table.csv"), "--target", "price"]
    assert main([*arguments, *SMALL, "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"task: {task}, guessed" in printed
    error, lppd, calibration = map(
        float, re.search(r"^SMILE +([\d.]+) +(-?[\d.]+) +([\d.]+)", printed, re.M).groups()
    )
    if task == "regression":
        assert error < 8  # the target's deviation is 21, the noise's 3
        assert lppd > -3.6  # a normal law of deviation 8 has -3.5
        assert 0.75 < calibration <= 1
    else:
        assert error > 0.85
        assert lppd > -0.45
        assert calibration < 0.25
    for word in ("deep ensemble", "R-hat", "ESS", "rejected steps", "gradients", "time"):
        assert word in printed
    assert (tmp_path / "out" / "figure.png").stat().st_size > 10_000
    arviz = import_arviz()
    idata = arviz.from_netcdf(str(tmp_path / "out" / "posterior.nc"))
    assert dict(idata["posterior_predictive"].sizes)["draw"] == 40
    assert np.isfinite(idata["log_likelihood"]["target"].values).all()
    if task == "regression":
        observed = idata["observed_data"]["target"].values
        assert np.isin(np.rint(observed), np.rint(frame["price"])).all()
    attributes = idata.attrs
    rows = attributes["test_rows"]
    # A row is prepared again from what is stored.
    table = prepare_table(frame, "price")
    column = (frame["size"].to_numpy()[rows] - attributes["feature_mean"][0]) / attributes[
        "feature_deviation"
    ][0]
    np.testing.assert_allclose(column, table.test[0][:, 0], rtol=1e-4, atol=1e-5)
    predictions = pandas.read_csv(tmp_path / "out" / "predictions.csv")
    assert predictions["row"].tolist() == list(rows)
    if task == "regression":
        np.testing.assert_allclose(predictions["observed"], frame["price"].iloc[rows], rtol=1e-14)
        inside = predictions["observed"].between(predictions["5 %"], predictions["95 %"])
        # Quantiles of 80 draws, on 60 rows: the one is not the other exactly.
        assert abs(inside.mean() - calibration) < 0.15
        errors = predictions["observed"] - predictions["mean"]
        np.testing.assert_allclose(np.sqrt(np.mean(errors**2)), error, rtol=1e-3)
    else:
        assert predictions["observed"].tolist() == frame["price"].iloc[rows].tolist()
        right = predictions["observed"] == predictions["predicted"]
        np.testing.assert_allclose(right.mean(), error, atol=0.01)
        both = predictions[["probability of cheap", "probability of dear"]].sum(axis=1)
        np.testing.assert_allclose(both, 1, rtol=1e-5)
    idata.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.csv", "--target", "y"], "There is no file 'nowhere.csv'"),
        (["--data", ".", "--target", "y"], "'.' is a folder"),
        (["--data", "nowhere.csv"], "--data needs --target"),
        (["--target", "y"], "--target cannot be used without --data"),
        (["--data", "x.csv", "--target", "y", "--num-components", "3"], "--num-components cannot"),
        (["--data", "x.csv", "--target", "y", "--batch-size", "33"], "must be even; got 33"),
        (["--data", "x.csv", "--target", "y", "--num-samples", "3"], "at least 8, got 3"),
        (["--data", "x.csv", "--target", "y", "--preconditioner", "none"], "must be one of"),
        (["--data", "x.csv", "--target", "y", "--seed", "-1"], "at least 0, got -1"),
    ],
)
def test_bad_arguments_exit_with_2(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_defect_is_not_a_users_error(monkeypatch):
    """A ValueError from inside is not passed off as one."""
    from blackjax_smile import demo

    def broken(*args):
        raise ValueError("a defect")

    monkeypatch.setattr(demo, "run", broken)
    with pytest.raises(ValueError, match="a defect"):
        main([])


def test_help_covers_both_commands(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--help"])
    assert exit_info.value.code == 0
    printed = capsys.readouterr().out
    assert "--data" in printed
    assert "digits" in printed
