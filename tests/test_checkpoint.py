"""A run that was stopped, killed or damaged goes on as if nothing had happened."""

import functools
import itertools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import blackjax_smile
from blackjax_smile.preconditioners import low_rank_estimator
from blackjax_smile.running import fingerprint
from blackjax_smile.running.sources import RowSampler
from long_runs import (
    NUM_GRADIENTS,
    PROBLEM,
    assert_identical,
    copy,
    everything,
    host_minibatches,
    sample,
    stop_after,
)

pytest.importorskip("zarr")
pytest.importorskip("orbax.checkpoint")

# Tensorstore's callbacks find the event loop gone after one of their reads has failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def undisturbed():
    return sample()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run stopped three times: in the warmup, and twice while sampling."""
    store = tmp_path_factory.mktemp("stopped") / "run.zarr"
    for count in (500, 900, 1201):
        stop_after(count, store)
    return store


def steps_of(store):
    folder = pathlib.Path(f"{store}.checkpoint") / "steps"
    return sorted((int(p.name), p) for p in folder.iterdir() if p.name.isdigit())


def test_stopped_and_resumed_is_undisturbed(stopped, undisturbed, tmp_path):
    assert_identical(sample(copy(stopped, tmp_path / "run.zarr")), undisturbed)


@pytest.mark.numerics
def test_a_finished_run_is_returned_and_can_be_extended(stopped, undisturbed, tmp_path):
    store = copy(stopped, tmp_path / "run.zarr")
    sample(store)
    # One minibatch is looked at; a run would need more.
    assert_identical(sample(store, list(host_minibatches(1))), undisturbed)
    assert_identical(sample(store, list(host_minibatches(1)), chunk_size=7), undisturbed)
    longer = sample(store, num_samples=130)
    assert_identical(longer, sample(num_samples=130))
    with pytest.raises(ValueError, match="holds 130 draws"):
        sample(store)


class Iterator:
    """Has a state, as grain's iterators do, and counts what was taken."""

    def __init__(self):
        self.minibatches, self.at, self.num_taken = list(host_minibatches(NUM_GRADIENTS)), 0, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.at == len(self.minibatches):
            raise StopIteration
        self.at, self.num_taken = self.at + 1, self.num_taken + 1
        return self.minibatches[self.at - 1]

    def get_state(self):
        return {"at": self.at}

    def set_state(self, state):
        self.at = state["at"]


class Loader:
    """Has a state dict, as torchdata's loaders do."""

    def __init__(self):
        self.iterator = Iterator()

    def __iter__(self):
        return self.iterator

    def state_dict(self):
        return self.iterator.get_state()

    def load_state_dict(self, state):
        self.iterator.set_state(state)


@pytest.mark.numerics
@pytest.mark.parametrize("kind", [Iterator, Loader])
def test_the_position_of_a_loader_is_kept(kind, undisturbed, tmp_path, monkeypatch):
    """The resumed run takes little more than what is left, not all from the start."""
    if kind is Loader:
        monkeypatch.delattr(Iterator, "get_state")
        monkeypatch.setattr(Loader, "state_dict", lambda self: {"at": self.iterator.at})
    store, first, second = tmp_path / "run.zarr", kind(), kind()
    inner = getattr(first, "iterator", first)
    inner.minibatches = inner.minibatches[:1201]
    with pytest.raises(ValueError, match="ended after 1200"):
        sample(store, first)
    assert_identical(sample(store, second), undisturbed)
    assert getattr(second, "iterator", second).num_taken <= NUM_GRADIENTS - 1200 + 2 * 64


def test_grain(tmp_path):
    grain = pytest.importorskip("grain")
    rows = [tuple(leaf[i] for leaf in PROBLEM.data) for i in range(len(PROBLEM.data[1]))]

    def minibatches(count=None):
        data = grain.MapDataset.source(rows).seed(0).shuffle().repeat()
        data = data.batch(20, drop_remainder=True).to_iter_dataset()
        return iter(data)

    class Short:
        def __init__(self, iterator, count):
            self.iterator, self.left = iterator, count

        def __iter__(self):
            return self

        def __next__(self):
            if self.left == 0:
                raise StopIteration
            self.left -= 1
            return next(self.iterator)

        def get_state(self):
            return self.iterator.get_state()

        def set_state(self, state):
            self.iterator.set_state(state)

    store = tmp_path / "run.zarr"
    with pytest.raises(ValueError, match="ended after"):
        sample(store, Short(minibatches(), 1000))
    assert_identical(sample(store, minibatches()), sample(minibatches=minibatches()))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"logdensity_fn": lambda x, b: 1.1 * PROBLEM.logdensity_fn(x, b)}, "logdensity_fn: was"),
        ({"positions": jnp.zeros((3, 5))}, r"was array float32\[2, 5\], is array float32\[3, 5\]"),
        ({"positions": jnp.zeros((2, 5), jnp.bfloat16)}, r"is array bfloat16\[2, 5\]"),
        ({"positions": jnp.zeros((2, 5))}, r"positions \(values\)"),
        ({"rng_key": jax.random.key(1)}, "rng_key: was"),
        ({"thinning": 2}, "thinning: was 3, is 2"),
        ({"num_warmup": 300}, "num_warmup: was 400, is 300"),
        ({"preconditioner": "diagonal"}, "preconditioner: was auto, is diagonal"),
        ({"collect": lambda x: x[:3]}, r"x'\] float32\[3\]"),
        ({"dtype": "float16"}, "float16"),
        ({"minibatches": PROBLEM.minibatch_fn(20)}, "minibatches: was an iterable"),
    ],
)
def test_another_run_is_refused_with_what_differs(stopped, options, what):
    with pytest.raises(ValueError, match=f"(?s)is of another run.*{what}"):
        sample(stopped, **options)


def wrapped(values, wrap):
    return wrap(lambda x: jnp.sum((x - values) ** 2))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: f,
        jax.jit,
        lambda f: jax.jit(lambda x: jax.jit(f)(x) + 1),
        jax.checkpoint,
        lambda f: lambda x: jax.lax.cond(x[0] > 0, jax.jit(f), lambda x: 0.0, x),
        lambda f: lambda x: jax.lax.scan(lambda c, _: (c + jax.jit(f)(x), None), 0.0, None, 3)[0],
    ],
)
def test_what_a_model_closes_over_tells_runs_apart(wrap):
    """Also where it was jitted: the inner program keeps its constants."""
    mean, other = jnp.arange(3.0), jnp.array([0.0, 1.0, 3.0])
    programs = [
        fingerprint.program_digest(wrapped(x, wrap), jnp.ones(3)) for x in (mean, mean, other)
    ]
    assert programs[0] == programs[1] != programs[2]


def test_rows_of_another_file_tell_runs_apart():
    """A row in a hundred of another value, in one of two files."""

    def description(values):
        data = (np.ones((1000, 2)), values)
        return RowSampler(data, 10, np.zeros(2), (), slice(None)).description

    other = np.zeros(1000)
    other[::100] = 1
    assert description(np.zeros(1000)) == description(np.zeros(1000)) != description(other)


@pytest.mark.numerics
def test_a_resumed_run_is_told_again_what_its_warmup_came_to(tmp_path):
    nan = {"positions": jnp.full((2, 5), jnp.nan)}
    for _ in range(2):
        with pytest.raises(ValueError, match="no chain moved"):
            sample(tmp_path / "failed.zarr", **nan)
    one_failed = {"positions": jnp.tile(PROBLEM.mode, (2, 1)).at[1].set(jnp.nan)}
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"chains \[1\] failed"):
            sample(tmp_path / "one_failed.zarr", **one_failed)


def test_other_minibatches_of_an_iterable_are_told(tmp_path):
    """Which has no state that would say where it is."""
    store = tmp_path / "run.zarr"
    sample(store, num_samples=10)
    with pytest.warns(UserWarning, match="first minibatch is not the one"):
        sample(store, itertools.islice(host_minibatches(), 1, None), num_samples=20)


def test_estimators_of_one_name_tell_runs_apart(tmp_path):
    """And one whose function has no name is none the worse."""
    one, two = (low_rank_estimator(rank) for rank in (1, 2))
    one = one._replace(fit=functools.partial(one.fit))
    store = tmp_path / "run.zarr"
    sample(store, preconditioner=one, num_samples=10)
    with pytest.raises(ValueError, match=r"preconditioner \(shapes and dtypes\): was"):
        sample(store, preconditioner=two, num_samples=10)


def test_a_terminal_does_not_make_another_run(monkeypatch):
    """On a terminal, and in notebooks, JAX prints programs in colour."""

    def program():
        return fingerprint.program_digest(lambda x: 2 * x, jnp.ones(3))

    plain = program()
    monkeypatch.setattr("jax._src.pretty_printer.CAN_USE_COLOR", True)
    assert "\x1b" in str(jax.make_jaxpr(lambda x: 2 * x)(jnp.ones(3)).jaxpr)
    assert program() == plain


def test_another_version_is_refused(stopped, monkeypatch):
    monkeypatch.setattr(blackjax_smile, "__version__", "9.9")
    with pytest.raises(ValueError, match=r"version: was .*, is 9\.9"):
        sample(stopped)


@pytest.mark.numerics
def test_a_damaged_checkpoint_is_not_used(stopped, undisturbed, tmp_path):
    """Its arrays cut, its record gone, or a folder half-written: the one before is."""
    store = copy(stopped, tmp_path / "run.zarr")
    (_, older), (_, newer) = steps_of(store)[-2:]
    for file in (newer / "arrays").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (older.parent / "999999.orbax-checkpoint-tmp").mkdir()
    assert_identical(sample(store), undisturbed)

    store = copy(stopped, tmp_path / "again.zarr")
    for file in (steps_of(store)[-1][1] / "record").iterdir():
        file.unlink()
    assert_identical(sample(store), undisturbed)


@pytest.mark.numerics
def test_a_damaged_chunk_of_the_store_is_made_again(stopped, undisturbed, tmp_path):
    store = copy(stopped, tmp_path / "run.zarr")
    last = max((store / "posterior" / "x" / "c" / "1").iterdir(), key=lambda p: int(p.name))
    chunk = last / "0"
    chunk.write_bytes(chunk.read_bytes()[:-10])
    assert_identical(sample(store), undisturbed)


@pytest.mark.numerics
def test_no_good_checkpoint_is_an_error(tmp_path):
    store = tmp_path / "run.zarr"
    stop_after(500, store)
    for _, step in steps_of(store):
        for file in (step / "arrays").rglob("d/*"):
            file.write_bytes(b"")
    with pytest.raises(ValueError, match="None of the checkpoints"):
        sample(store)


def start(store, target, cache):
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": cache,
        "PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parents[1]), *sys.path]),
    }
    script = pathlib.Path(__file__).with_name("long_runs.py")
    return subprocess.Popen([sys.executable, script, store, target], env=environment)


def test_kill_at_random_moments(undisturbed, tmp_path):
    """SIGKILL in the warmup and twice while sampling, each a random moment after a checkpoint.

    ``benchmarks/kill_and_resume.py`` does the same twenty times.
    """
    rng = np.random.default_rng(0)
    store, target = tmp_path / "run.zarr", tmp_path / "result.npz"
    # A copy: the killed process may leave half a program in it.
    cache = shutil.copytree(os.environ["JAX_COMPILATION_CACHE_DIR"], tmp_path / "cache")
    for gradients in (50, 420, 560):
        process = start(store, target, cache)
        while process.poll() is None and not (
            pathlib.Path(f"{store}.checkpoint/steps").exists()
            and any(step >= gradients for step, _ in steps_of(store))
        ):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not target.exists()
    assert start(store, target, cache).wait() == 0
    with np.load(target) as found:
        for name, expected in zip(found.files, everything(undisturbed), strict=True):
            np.testing.assert_array_equal(found[name], expected)
