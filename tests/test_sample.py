"""The driver: the same warmup as `smile_adaptation`, right moments, any source of minibatches."""

import gc
import subprocess
import sys
import threading
import tracemalloc
import weakref

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import blackjax_smile
from blackjax_smile.running.prefetch import Prefetcher
from blackjax_smile.running.progress import RunningRhat
from blackjax_smile.running.sources import RowSampler, Stream
from helpers import LinearRegression, assert_moments

pytestmark = pytest.mark.numerics

PROBLEM = LinearRegression()
BATCH = 20
SHORT = {"num_warmup": 400, "num_samples": 20, "thinning": 3}


def start(num_chains=2):
    return jnp.tile(PROBLEM.mode, (num_chains, 1))


def sample(minibatches=None, logdensity_fn=PROBLEM.logdensity_fn, **options):
    options = {**SHORT, "progress_bar": False, **options}
    positions = options.pop("positions", start())
    rng_key = options.pop("rng_key", jax.random.key(0))
    minibatches = PROBLEM.minibatch_fn(BATCH) if minibatches is None else minibatches
    return blackjax_smile.sample(rng_key, logdensity_fn, positions, minibatches, **options)


def host_minibatches(count=None, seed=0):
    """A generator of minibatches, the same ones at each call."""
    rng = np.random.default_rng(seed)
    X, y = PROBLEM.data
    while count is None or count > 0:
        indices = rng.integers(0, len(X), BATCH)
        yield X[indices], y[indices]
        count = None if count is None else count - 1


@pytest.fixture(scope="module")
def memory_mapped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    names = [folder / name for name in ("X.npy", "y.npy")]
    for name, array in zip(names, PROBLEM.data, strict=True):
        np.save(name, array)
    return tuple(np.load(name, mmap_mode="r") for name in names)


def test_the_warmup_is_that_of_smile_adaptation():
    result = sample()
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile, PROBLEM.logdensity_fn, PROBLEM.minibatch_fn(BATCH)
    )
    keys = jax.random.split(jax.random.split(jax.random.key(0))[0], 2)
    (_, parameters), info = jax.vmap(lambda key, x: warmup.run(key, x, SHORT["num_warmup"]))(
        keys, start()
    )
    expected = (parameters, *info[1:])
    found = (result.parameters, *result.adaptation[1:])

    def assert_close(path, a, b):
        # An energy change is a difference of large terms: round-off is that of the largest.
        is_energy = jax.tree_util.GetAttrKey("energy_change") in path
        atol = 1e-6 * np.max(np.abs(b)) if is_energy else 0
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol)

    jax.tree_util.tree_map_with_path(assert_close, found, expected)


def test_moments_from_a_memory_mapped_file(memory_mapped):
    """Within 5 standard errors; bias as in the tests of `smile` itself."""
    result = sample(memory_mapped, batch_size=BATCH, num_samples=10_000)
    mean, covariance = PROBLEM.posterior
    assert_moments(result.positions[0], mean, np.diag(covariance), 0.05, 0.1)


@pytest.mark.parametrize("thinning", [1, 4])
def test_draws_are_those_of_the_kernel(thinning):
    """The same chain as a loop over `smile.step` with the keys that the driver documents."""
    result = sample(thinning=thinning, num_samples=10)
    chain = jax.tree.map(lambda x: x[0], (result.parameters, result.states))
    assert np.all(result.positions[0, -1] == chain[1].position)
    longer = sample(thinning=2 * thinning, num_samples=5)
    np.testing.assert_array_equal(result.positions[:, 1::2], longer.positions)


@pytest.mark.filterwarnings("ignore:Of the steps")
def test_statistics_count_what_happened_between_draws():
    def sometimes_nan(x, batch):
        bad = batch[1][0] > np.quantile(PROBLEM.data[1], 0.95)
        return jnp.where(bad, jnp.nan, PROBLEM.logdensity_fn(x, batch))

    result = sample(logdensity_fn=sometimes_nan, thinning=5, num_samples=40)
    single = sample(logdensity_fn=sometimes_nan, thinning=1, num_samples=200)
    counts = np.asarray(result.statistics["num_rejected"])
    assert 0 < counts.sum() < counts.size * 5
    np.testing.assert_array_equal(result.statistics["diverging"], counts > 0)
    assert np.all(np.isfinite(result.statistics["energy_error"]))
    assert np.all(np.isfinite(result.positions))
    np.testing.assert_array_equal(
        np.asarray(single.statistics["num_rejected"]).reshape(2, 40, 5).sum(-1), counts
    )


class TestSources:
    def test_chains_take_turns_in_an_iterable(self):
        """A generator's minibatches are those of the same lists, stacked by hand."""
        taken = list(host_minibatches(2 * (400 + 60)))
        np.testing.assert_array_equal(sample(iter(taken)).positions, sample(taken).positions)
        assert not np.array_equal(sample(taken).positions, sample(list(reversed(taken))).positions)

    def test_shared_minibatches(self):
        """One minibatch for all chains: 460 are enough for two chains."""
        result = sample(host_minibatches(460), share_minibatches=True)
        assert not np.array_equal(*result.positions)

    def test_an_iterable_that_ends_names_what_was_needed(self):
        with pytest.raises(ValueError, match=r"needs 920 minibatches .* ended after 830"):
            sample(host_minibatches(830))

    def test_an_error_of_the_iterable_is_passed_on(self):
        def broken():
            yield from host_minibatches(100)
            raise KeyError("no such shard")

        with pytest.raises(KeyError, match="no such shard"):
            sample(broken())
        assert not [t for t in threading.enumerate() if t.name == "minibatches"]

    def test_an_odd_one_out(self):
        def uneven():
            yield from host_minibatches(50)
            yield tuple(leaf[:7] for leaf in next(host_minibatches()))

        with pytest.raises(ValueError, match="drop_last=True"):
            sample(uneven())

    @pytest.mark.parametrize("what", ["an error", "a short minibatch"])
    def test_nothing_is_read_past_the_end(self, what):
        """920 minibatches are needed: what comes after them harms no run."""

        def minibatches():
            yield from host_minibatches(920)
            if what == "an error":
                raise KeyError("the server closed the stream")
            yield tuple(leaf[:7] for leaf in next(host_minibatches()))

        np.testing.assert_array_equal(
            sample(minibatches()).positions, sample(host_minibatches()).positions
        )

    @pytest.mark.parametrize("kind", ["rows", "iterable", "iterable that ends"])
    def test_all_blocks_have_one_shape(self, kind):
        """So that one program is compiled; the last one, of a run of 100 gradients, is padded."""
        source = RowSampler(PROBLEM.data, BATCH, np.zeros(2, np.uint32), (2,), slice(0, 2))
        if kind != "rows":
            source = Stream(host_minibatches(200 if kind == "iterable" else 150), 2)
        with Prefetcher(source, lambda tree: tree, 100, 2) as feed:
            feed.start(0, None)
            blocks = [feed.block_at(0), feed.block_at(64)]
        counts = [64, 11 if kind == "iterable that ends" else 36]
        assert [block.num_gradients for block in blocks] == counts
        assert [block.is_last for block in blocks] == [False, kind == "iterable that ends"]
        for block in blocks:
            assert [x.shape for x in block.minibatches] == [(64, 2, BATCH, 5), (64, 2, BATCH)]
        if kind != "rows":
            assert next(iter(source.iterable), None) is None

    def test_rows_of_a_file_are_drawn_evenly_and_stay_together(self, memory_mapped):
        """Chi-squared with 3999 degrees of freedom: beyond 4550 with probability 1e-9."""
        seed = np.asarray([1, 2], np.uint32)
        sampler = RowSampler(memory_mapped, BATCH, seed, (2,), slice(0, 2))
        (X, y), count = sampler.read(7, 64)
        assert X.shape == (64, 2, BATCH, 5)
        assert count == 64
        rows = {row.tobytes(): value for row, value in zip(*PROBLEM.data, strict=True)}
        pairs = zip(X.reshape(-1, 5), y.reshape(-1), strict=True)
        assert all(rows[x.tobytes()] == value for x, value in pairs)
        part, _ = RowSampler(memory_mapped, BATCH, seed, (2,), slice(1, 2)).read(10, 1)
        np.testing.assert_array_equal(part[0][0, 0], X[3, 1])
        indices = np.concatenate([sampler.indices(i).reshape(-1) for i in range(10_000)])
        counts = np.bincount(indices, minlength=4000)
        assert np.sum((counts - 100.0) ** 2 / 100) < 4550

    def test_rows_of_some_columns_do_not_take_the_whole_file(self, tmp_path):
        table = np.memmap(tmp_path / "table.bin", np.float32, "w+", shape=(100_000, 9))
        sampler = RowSampler((table[:, :8], table[:, 8]), 10, np.zeros(2, np.uint32), (), slice(0))
        tracemalloc.start()
        (X, y), _ = sampler.read(0, 4)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert X.shape == (4, 10, 8)
        assert y.shape == (4, 10)
        assert peak < 100_000  # bytes, of a file of 3.6e6


def test_collect_dtype_and_tree():
    positions = {"w": start()[:, :4], "b": [start()[:, 4], jnp.zeros((2, 3), jnp.bfloat16)]}

    def logdensity_fn(x, batch):
        theta = jnp.append(x["w"], x["b"][0])
        penalty = jnp.sum(x["b"][1].astype(jnp.float32) ** 2)
        return PROBLEM.logdensity_fn(theta, batch) - 0.5 * penalty

    def collect(x):
        return {"x": x, "sum": jnp.sum(x["w"]), "is_positive": x["w"] > 0}

    options = {"positions": positions, "logdensity_fn": logdensity_fn, "collect": collect}
    found = sample(**options, dtype="float16").positions
    assert jax.tree.structure(found["x"]) == jax.tree.structure(positions)
    assert found["x"]["b"][1].dtype == found["sum"].dtype == np.float16
    w = np.asarray(found["x"]["w"], np.float32)
    np.testing.assert_allclose(found["sum"], w.sum(-1), rtol=1e-2, atol=1e-2)
    np.testing.assert_array_equal(found["is_positive"], w > 0)
    wide = sample(**options, num_samples=1)
    assert list(wide.draws) == ["is_positive", "sum", "x.b.0", "x.b.1", "x.w"]
    assert wide.draws["x.b.1"].dtype == wide.draws["x.w"].dtype == np.float32


def test_a_result_is_shown_in_a_line():
    shown = repr(sample(num_samples=3))
    assert shown == f"SampleResult(2 chains of 3 draws in memory: x ({PROBLEM.mode.size},))"


def test_a_failed_chain_is_named_and_harms_no_other():
    with pytest.warns(UserWarning, match=r"chains \[1\] failed"):
        result = sample(positions=start().at[1].set(jnp.nan))
    np.testing.assert_array_equal(result.positions[0], sample().positions[0])
    with pytest.raises(ValueError, match="no chain moved"):
        sample(positions=jnp.full((2, 5), jnp.nan))


@pytest.mark.parametrize(("num_missing", "share"), [(8, "few"), (100, "most")])
def test_missing_values_do_not_pass_in_silence(num_missing, share):
    """Of 4000 rows: one minibatch in nine is not finite, or nine in ten are not."""
    X, y = (np.array(leaf) for leaf in PROBLEM.data)
    y[:: len(y) // num_missing] = np.nan
    data = {"minibatches": (X, y), "batch_size": 60 if share == "few" else 120}
    if share == "few":
        with pytest.warns(UserWarning, match=r"steps .* chains rejected up to \d+%"):
            sample(**data, num_samples=500)
    else:
        with pytest.raises(ValueError, match=r"no chain moved.*missing values"):
            sample(**data)


@pytest.mark.parametrize("preconditioner", ["low_rank", "kronecker"])
def test_a_sound_run_passes_under_debug_nans(preconditioner):
    """Who looks for a NaN of his model is not stopped by one of ours."""
    with jax.debug_nans(True):
        sample(preconditioner=preconditioner)


@pytest.fixture
def compilations():
    """The programs that are lowered to be compiled, in a list that grows."""
    names = []

    def listen(name, duration, **_):
        if name == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            names.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def test_a_second_run_compiles_nothing(compilations):
    """Of the same model, and of other data in the same shapes."""
    logdensity_fn = PROBLEM.logdensity_fn

    def run(problem, num_samples):
        return sample(
            problem.minibatch_fn(BATCH),
            logdensity_fn,
            positions=jnp.tile(problem.mode, (2, 1)),
            preconditioner="diagonal",
            num_samples=num_samples,
            thinning=20,
            chunk_size=20,
        )

    run(PROBLEM, 20)
    assert compilations
    for problem in (PROBLEM, LinearRegression(seed=1)):
        compilations.clear()
        result = run(problem, 300)
        assert not compilations
        mean, covariance = problem.posterior
        z = (np.asarray(result.positions).mean((0, 1)) - mean) / np.sqrt(np.diag(covariance))
        assert np.all(np.abs(z) < 1)


def test_a_variable_that_the_model_reads_may_change(monkeypatch):
    """What was compiled for its old value is not used again."""
    monkeypatch.setitem(globals(), "SHIFT", 0.0)

    def shifted(x, minibatch):
        return PROBLEM.logdensity_fn(x + SHIFT, minibatch)  # noqa: F821

    means = []
    for shift in (0.0, 1.0):
        monkeypatch.setitem(globals(), "SHIFT", shift)
        draws = sample(logdensity_fn=shifted, positions=start() - shift, num_samples=200)
        means.append(draws.positions.mean((0, 1)))
    np.testing.assert_allclose(means[0] - means[1], 1, atol=0.2)


def test_the_data_are_no_constants_of_the_programs():
    """Which would be copied while they are compiled, and held as long as they are."""
    X, y = (jnp.asarray(leaf) for leaf in PROBLEM.data)
    alive = weakref.ref(X)
    sample((X, y), batch_size=BATCH, num_samples=3)
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile,
        PROBLEM.logdensity_fn,
        blackjax_smile.minibatch_sampler((X, y), BATCH),
    )
    warmup.run(jax.random.key(0), PROBLEM.mode, num_steps=200)
    del X, y, warmup
    gc.collect()
    assert alive() is None


def test_numpy_numbers_are_numbers(tmp_path):
    """And make the same run."""
    pytest.importorskip("zarr")
    pytest.importorskip("orbax.checkpoint")
    plain = {"num_warmup": 400, "num_samples": 3, "thinning": 2, "target_deflection": 0.25}
    store = tmp_path / "run.zarr"
    sample(store=store, **{name: np.asarray(value)[()] for name, value in plain.items()})
    assert sample(store=store, **plain).positions.shape == (2, 3, 5)


def test_a_slow_drift_to_an_absurd_row_is_named():
    """It is in few minibatches, and cut off in those: nothing is rejected, nothing aligned.

    The chains agree with each other, hundreds of deviations from the posterior.
    """
    X, y = PROBLEM.data
    y = np.where(np.arange(len(y)) == 7, np.float32(1e5), y)
    with pytest.warns(UserWarning, match=r"chains \[0, 1\].*look for rows with absurd values"):
        sample((X, y), batch_size=100, num_warmup=1000)


def test_a_chain_that_has_not_arrived_is_named():
    with pytest.warns(UserWarning, match=r"chains \[1\] were still on their way"):
        sample(positions=start().at[1].add(1e5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": jnp.zeros(())}, "leading axis, the chains"),
        (
            {"positions": {"w": jnp.zeros((2, 5)), "activation": "relu"}},
            r"\['activation'\] is a str",
        ),
        (
            {"positions": blackjax_smile.TrainedEnsemble(start(), *[jnp.arange(2)] * 4)},
            "got TrainedEnsemble: pass its positions",
        ),
        ({"rng_key": 0}, r"rng_key must be .* jax.random.key\(0\); got 0"),
        ({"rng_key": np.zeros((2, 2), np.uint32)}, "rng_key must be one key"),
        ({"num_samples": 0}, "num_samples must be an integer of at least 1"),
        ({"thinning": 1.5}, "thinning must be an integer"),
        ({"num_warmup": 50}, "num_steps >= 100"),
        ({"minibatches": PROBLEM.data}, "pass batch_size"),
        ({"minibatches": 3}, "got int"),
        ({"minibatches": PROBLEM.data, "batch_size": 5000}, "between 1 and the 4000"),
        ({"batch_size": 10}, "is a function already"),
        (
            {"minibatches": iter([PROBLEM.data]), "batch_size": 10},
            "list_iterator.* drop batch_size",
        ),
        ({"minibatches": list(PROBLEM.data)}, r"looks like a data set \(a list"),
        ({"minibatches": []}, "empty"),
        (
            {"minibatches": {"x": np.full((9, 2), "a", object)}, "batch_size": 4},
            r"\['x'\] has dtype object",
        ),
        (
            {"minibatches": ([[1.0, 2.0]] * 9,), "batch_size": 4},
            r"\[0\]\[1\]\[0\] and 15 more are scalars",
        ),
        ({"collect": lambda x: None}, "collect must return"),
        ({"collect": lambda x: "text"}, "collect must be a function .*'str'"),
        ({"collect": "predictions"}, "collect must be a function .* got predictions"),
        ({"positions": jnp.zeros(5)}, "5 chains of a single parameter"),
        ({"minibatches": PROBLEM.data, "batch_size": 50.0}, "an integer between 1"),
        ({"dims": {"z": ["a"]}}, "dims names"),
        ({"dims": {"x": "five5"}}, r"a list such as \['five5'\], got 'five5'"),
        ({"coords": {"a": [1, 2]}}, r"coords names \['a'\], .* are \['chain', 'x_dim_0'\]"),
        ({"dims": {"x": ["a", "b"]}}, "names 2 dimensions"),
        ({"dims": {"x": ["draw"]}}, "uses .'draw'.*rename"),
        ({"dims": {"x": ["x"]}}, "uses .'x'.*rename"),
        ({"dims": {"x": ["a"]}, "coords": {"a": [1, 2]}}, "2 entries, but .* length 5"),
        (
            {
                "collect": lambda x: {"u": x, "v": x[:3]},
                "dims": {"u": ["a"], "v": ["a"]},
            },
            "two lengths, 5 and 3",
        ),
        ({"dtype": "int32"}, "floating dtype"),
        ({"dtype": "flat32"}, "such as 'float16', got 'flat32'"),
        ({"mesh": "chains"}, "mesh must be .* got 'chains'"),
        ({"target_deflection": "0.2"}, r"a number in \(0, 1\] radians, got '0.2'"),
        ({"checkpoint": "somewhere"}, "needs a store"),
        ({"store": b"somewhere", "checkpoint": "somewhere"}, "must be two folders"),
        ({"progress_bar": "yes"}, "progress_bar"),
        ({"share_minibatches": True}, "from the host"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        sample(**options)


def test_progress_is_silent_in_a_log_and_shown_on_request(capsys):
    pytest.importorskip("tqdm")
    sample(progress_bar=True)
    assert capsys.readouterr().err == ""
    sample(progress_bar="force", num_samples=400)
    shown = capsys.readouterr().err
    for word in ("sampling", "step size=", "deflection=", "rejected=", "draws/s="):
        assert word in shown


def test_running_rhat_is_that_of_the_two_halves():
    """Also after stretches were merged."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4, 2560)) + 0.3 * np.arange(4)[:, None]
    running = RunningRhat()
    for part in np.split(draws, 128, axis=1):
        running.add(part)
    assert len(running.stretches) <= 64
    halves = np.concatenate(np.split(draws, 2, axis=1))
    with jax.numpy_rank_promotion("allow"):
        expected = blackjax.rhat(jnp.asarray(halves))
    np.testing.assert_allclose(running.value(), expected, rtol=1e-2)
    assert np.isnan(RunningRhat().value())


def test_the_package_imports_none_of_the_optional_ones():
    code = (
        "import sys, blackjax_smile; "
        "print([m for m in ('orbax', 'zarr', 'tqdm', 'arviz') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
