"""Draws on disk: what is there, who can read it when, and what a full disk does."""

import contextlib
import logging
import resource
import shutil

import jax
import numpy as np
import pytest

from blackjax_smile.arviz_export import import_arviz
from long_runs import assert_identical, host_minibatches, sample, stop_after

pytest.importorskip("zarr")
pytest.importorskip("orbax.checkpoint")
xarray = pytest.importorskip("xarray")

# Tensorstore's callbacks find the event loop gone after one of their reads has failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def in_memory():
    return sample()


def test_the_store_holds_what_memory_would(tmp_path, in_memory):
    result = sample(
        tmp_path / "run.zarr", dims={"x": ["parameter"]}, coords={"parameter": [*"abcde"]}
    )
    assert_identical(result, in_memory)
    assert not isinstance(result.draws["x"], np.ndarray)
    data, expected = result.to_arviz(), in_memory.to_arviz()
    assert type(data) is type(expected)
    assert data.posterior["x"].dims == ("chain", "draw", "parameter")
    assert data.posterior.coords["parameter"].values.tolist() == [*"abcde"]
    assert set(data.sample_stats.data_vars) == set(expected.sample_stats.data_vars)
    for name in ("chain", "draw"):
        np.testing.assert_array_equal(data.posterior[name], expected.posterior[name])
    np.testing.assert_array_equal(data.sample_stats["lp"], expected.sample_stats["lp"])
    assert data.posterior.attrs["inference_library"] == "blackjax_smile"
    assert "estimate" in data.sample_stats["lp"].attrs["comment"]
    groups = {"log_likelihood": {"y": np.ones((*data.posterior["x"].shape[:2], 7))}}
    for run in (result, in_memory):
        data_with = run.to_arviz(**groups)
        assert data_with.log_likelihood["y"].shape[2] == 7
        np.testing.assert_array_equal(data_with.posterior["x"], data.posterior["x"])
    with jax.numpy_rank_promotion("allow"):
        ess = [np.asarray(import_arviz().ess(run)["x"]) for run in (data, expected)]
    assert np.all(np.isfinite(ess[0]))
    np.testing.assert_allclose(*ess, rtol=1e-6)


def test_it_can_be_read_while_the_run_goes_on(tmp_path):
    """All variables are of one length, written to the end, and never shorter.

    A look at one in 50 minibatches: each reads the whole store. Minibatches are read up
    to 192 gradients ahead, so the run is long enough that the looks must find it growing.
    """
    store, seen = tmp_path / "run.zarr", []

    def look(i):
        if i % 50 == 0 and (store / "zarr.json").exists():
            tree = xarray.open_datatree(store, engine="zarr", chunks=None)
            x, lp = tree["posterior"]["x"].values, tree["sample_stats"]["lp"].values
            assert x.shape[1] == lp.shape[1] == tree["posterior"].sizes["draw"]
            assert np.all(x != 0)
            seen.append(x)

    result = sample(store, host_minibatches(watch=look), num_samples=300, checkpoint_every=1.0)
    lengths = [x.shape[1] for x in seen]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 5
    assert lengths[-1] > 150
    for x in seen:
        np.testing.assert_array_equal(x, result.positions[:, : x.shape[1]])


def test_another_store_is_not_overwritten(tmp_path):
    store = tmp_path / "precious"
    store.mkdir()
    (store / "thesis.txt").write_text("ten years of work")
    with pytest.raises(ValueError, match="is not empty"):
        sample(store)
    assert (store / "thesis.txt").exists()


def test_checkpoints_without_their_draws_are_an_error_and_kept(tmp_path, in_memory):
    store, moved = tmp_path / "run.zarr", tmp_path / "moved.zarr"
    stop_after(1200, store)
    store.rename(moved)
    with pytest.raises(ValueError, match="belongs to draws that are not in"):
        sample(store)
    moved.rename(store)
    assert_identical(sample(store), in_memory)


def test_draws_without_their_checkpoints_are_not_overwritten(tmp_path):
    store = tmp_path / "run.zarr"
    draws = sample(store).positions
    shutil.rmtree(tmp_path / "run.zarr.checkpoint")
    with pytest.raises(ValueError, match="holds draws of this run, but its checkpoints"):
        sample(store)
    kept = xarray.open_datatree(store, engine="zarr", chunks=None)["posterior"]["x"]
    np.testing.assert_array_equal(kept, draws)


@contextlib.contextmanager
def no_file_larger_than(size):
    """A disk that is full: writing more fails with an OSError, as it would there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The file that pytest captures messages in would be too large as well.
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("at", [0, 900])
def test_a_full_disk_is_a_clear_error_and_the_run_goes_on_later(tmp_path, in_memory, at):
    store = tmp_path / "run.zarr"
    limit = contextlib.ExitStack()

    def fill(i):
        if i == at:
            limit.enter_context(no_file_larger_than(200))

    with limit, pytest.raises(OSError, match="cannot be written") as caught:
        sample(store, host_minibatches(watch=fill))
    message = str(caught.value)
    assert "start the same command again to resume" in message
    assert str(store) in message
    assert_identical(sample(store), in_memory)


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        sample(tmp_path / "file" / "run.zarr")


def test_what_to_install_is_said(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ModuleNotFoundError, match=r"store= needs zarr: pip install .*\[run\]"):
        sample(tmp_path / "run.zarr")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ModuleNotFoundError, match=r"checkpoint= needs orbax"):
        sample(tmp_path / "run.zarr")


@pytest.mark.parametrize("chunk", [0, 6])
def test_missing_files_are_no_zeros(chunk, tmp_path, in_memory):
    """Zarr reads the fill value where a file is gone: early ones are named, late ones resampled."""
    store = tmp_path / "run.zarr"
    sample(store)
    file = store / "posterior" / "x" / "c" / "1" / str(chunk) / "0"
    content = file.read_bytes()
    file.unlink()
    if chunk == 6:
        assert_identical(sample(store), in_memory)
        assert file.read_bytes() == content
        return
    with pytest.raises(ValueError, match=r"1 files of draws are missing in .* Restore them"):
        sample(store)
    file.write_bytes(content)
    assert_identical(sample(store), in_memory)


def test_draws_that_are_all_zero_are_written(tmp_path):
    """No file would be one that is missing."""
    zeros = sample(tmp_path / "run.zarr", collect=lambda x: {"zero": 0 * x})
    again = sample(tmp_path / "run.zarr", collect=lambda x: {"zero": 0 * x})
    assert np.all(again.draws["zero"][...] == 0)
    assert_identical(again, zeros)


def test_one_writer_at_a_time(tmp_path, in_memory):
    """A second start of the same command, while the first samples, changes nothing."""
    store, refused = tmp_path / "run.zarr", []

    def start_again(i):
        if i == 1000:
            with pytest.raises(ValueError, match="is being written by another process"):
                sample(store)
            refused.append(i)

    assert_identical(sample(store, host_minibatches(watch=start_again)), in_memory)
    assert refused == [1000]


def test_paths_are_taken_at_their_word(tmp_path, in_memory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    result = sample("~/run.zarr/")
    assert (tmp_path / "run.zarr" / "zarr.json").exists()
    assert (tmp_path / "run.zarr.checkpoint").exists()
    monkeypatch.chdir("/")
    assert_identical(result, in_memory)
    assert result.to_arviz().posterior["x"].shape == (2, 100, 5)
    (tmp_path / "file").write_text("")
    for paths, message in [
        ({"store": "s3://bucket/run.zarr"}, "must be a folder of this machine"),
        ({"store": tmp_path / "file"}, "'.*file' is a file"),
        ({"store": tmp_path / "a", "checkpoint": tmp_path / "a"}, "one outside the other"),
        ({"store": tmp_path / "a", "checkpoint": tmp_path / "a" / "b"}, "one outside the other"),
    ]:
        with pytest.raises(ValueError, match=message):
            sample(**paths)


def test_the_names_of_a_resumed_run_are_those_of_its_store(tmp_path):
    store = tmp_path / "run.zarr"
    names = {"dims": {"x": ["parameter"]}, "coords": {"parameter": [*"abcde"]}}
    sample(store, num_samples=10, **names)
    result = sample(store, num_samples=20)
    for data in (result.to_arviz(), result.to_arviz(attrs={"of": "both"})):
        assert data["posterior"]["x"].dims == ("chain", "draw", "parameter")
        assert list(data["posterior"]["parameter"].values) == [*"abcde"]
    with pytest.raises(ValueError, match=r"has them as \['parameter'\]"):
        sample(store, num_samples=30, dims={"x": ["other"]})
