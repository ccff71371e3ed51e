"""The plots show what they are given: curves and lines where theory puts them."""

import sys
from types import SimpleNamespace

import jax
import matplotlib
import numpy as np
import pytest
from scipy import stats

matplotlib.use("Agg")

import matplotlib.pyplot as plt

import blackjax_smile
from blackjax_smile import evaluation
from blackjax_smile.adaptation.full_batch import FullBatchAdaptationInfo
from blackjax_smile.noise_diagnostics import GradientNoise, NoiseSummary
from blackjax_smile.plots import (
    plot_adaptation,
    plot_coverage,
    plot_energy_error,
    plot_noise_spectrum,
    plot_predictive_bands,
    plot_reliability,
)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_energy_error():
    """Of a Gamma law: the drawn density and thresholds are scipy's, within 3 %."""
    law = stats.gamma(4.0, scale=0.5)
    signs = np.random.default_rng(0).choice([-1, 1], 40_000)
    changes = signs * law.rvs(40_000, random_state=1)
    changes[::100] = np.inf
    ax = plot_energy_error(SimpleNamespace(energy_change=changes.reshape(2, -1)))
    curve, *lines = ax.get_lines()
    x, density = curve.get_data()
    np.testing.assert_allclose(density, law.pdf(x), atol=0.03 * law.pdf(x).max())
    drawn = [line.get_xdata()[0] for line in lines]
    np.testing.assert_allclose(drawn, law.ppf([1 / 30, 14 / 15, 0.98]), rtol=0.03)
    assert "nats" in ax.get_xlabel()
    assert [text.get_text() for text in ax.get_legend().get_texts()][1].startswith("Gamma")


def test_energy_error_without_anything_to_show():
    with pytest.raises(ValueError, match="0 are finite"):
        plot_energy_error(SimpleNamespace(energy_change=np.full(5, np.inf)))
    with pytest.raises(ValueError, match=r"needs infos, .* got a ndarray"):
        plot_energy_error(np.ones(5))


def test_what_to_install_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ModuleNotFoundError, match=r"A plot needs matplotlib.*\[plots\]"):
        plot_energy_error(SimpleNamespace(energy_change=np.ones(5)))


def test_noise_spectrum_on_given_axes():
    def summary(eigenvalues, anisotropy):
        return NoiseSummary(jax.numpy.asarray(eigenvalues), anisotropy, 0.9, 0.1)

    noise = GradientNoise(summary([1.0, 4.0, 25.0], 1.1), summary([2.0, 2.0, 2.0], 0.0), 1000)
    _, ax = plt.subplots()
    assert plot_noise_spectrum(noise, ax) is ax
    before, after = ax.get_lines()
    np.testing.assert_allclose(before.get_ydata(), [2.5, 0.4, 0.1], rtol=1e-6)
    np.testing.assert_allclose(after.get_ydata(), 1.0)
    assert ax.get_yscale() == "log"


DATA = 1.0 + jax.random.normal(jax.random.key(0), (1000, 2))
MINIBATCH_FN = blackjax_smile.minibatch_sampler(DATA, 50)
THINNING, NUM_DRAWS = 10, 40


def logdensity_fn(x, batch):
    return -0.5 * x @ x - 500 * jax.numpy.mean(jax.numpy.sum((batch - x[None]) ** 2, axis=1))


def broken_logdensity_fn(x, batch):
    """Not finite on about every tenth minibatch."""
    return jax.numpy.where(batch[0, 0] > 2.3, jax.numpy.nan, logdensity_fn(x, batch))


def rejected_so_far(ax):
    """Return abscissa and counts, one line per chain."""
    lines = [line for line in ax.get_lines() if len(line.get_xdata()) > 2]
    return lines[0].get_xdata(), np.stack([line.get_ydata() for line in lines])


def line_of(ax, label):
    return next(line for line in ax.get_lines() if line.get_label() == label)


def borders(ax):
    lines = [line for line in ax.get_lines() if line.get_ydata() is not None]
    return [x[0] for line in lines if len(x := line.get_xdata()) == 2 and x[0] == x[1]]


def test_adaptation_of_an_ensemble_and_its_sampling():
    """Lines are the history's: step sizes, block means, rejections so far, window borders."""
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile, broken_logdensity_fn, MINIBATCH_FN
    )
    adapted = blackjax_smile.adapt_ensemble(
        jax.random.key(1), warmup, jax.numpy.ones((3, 2)), num_steps=500
    )
    _, (_, infos) = blackjax_smile.sample_ensemble(
        jax.random.key(2), blackjax_smile.smile, broken_logdensity_fn, MINIBATCH_FN, adapted,
        NUM_DRAWS, THINNING,
    )  # fmt: skip
    axes = plot_adaptation(adapted, infos, thinning=THINNING)
    steps = adapted.info.steps
    num_steps = steps.step_size.shape[1]  # 500 less 50 probes
    assert num_steps == 450
    # The step sizes of the warmup, then the frozen one to the end.
    x, median = line_of(axes[0], "median").get_data()
    np.testing.assert_array_equal(x, [*range(50, 500), 500, 900])
    frozen = np.median(adapted.parameters["step_size"])
    expected = [*np.median(steps.step_size, axis=0), frozen, frozen]
    np.testing.assert_allclose(median, expected, rtol=1e-6)
    # The first block of 50 steps, as a geometric mean over all chains.
    x, mean = line_of(axes[1], "geometric mean").get_data()
    first = np.asarray(steps.deflection, np.float64)[:, :50]
    first = first[np.isfinite(first) & (first > 0)]
    np.testing.assert_allclose([x[0], mean[0]], [75, np.exp(np.mean(np.log(first)))])
    # The target of each window, the last one's to the end.
    (target,) = (p for p in axes[1].patches if p.get_label().startswith("target, 0.25"))
    targets = np.median(adapted.info.windows.target_deflection, axis=0)
    np.testing.assert_allclose(target.get_data().values, targets, rtol=1e-6)
    assert target.get_data().edges[-1] == 900
    # Rejections add up to those of the infos.
    x, counts = rejected_so_far(axes[2])
    np.testing.assert_array_equal(x, np.arange(50, 901, 50))
    in_warmup = np.sum(steps.is_divergent, axis=1)
    np.testing.assert_array_equal(counts[:, x == 500][:, 0], in_warmup)
    in_sampling = np.sum(infos.is_divergent, axis=1)
    np.testing.assert_array_equal(counts[:, -1], in_warmup + in_sampling)
    assert in_warmup.min() > 0
    assert in_sampling.min() > 0
    assert axes[0].get_title() == (
        f"warmup: {in_warmup.sum()} of 1350 steps rejected; "
        f"sampling: {in_sampling.sum()} of 1200 steps rejected"
    )
    ends = 50 + np.cumsum([0, *adapted.info.schedule.slow_windows])
    assert borders(axes[0]) == [*ends, 500]
    assert "radians" in axes[1].get_ylabel()


def test_adaptation_of_a_whole_run_is_that_of_its_parts(tmp_path):
    """A SampleResult, from memory and from a store, is drawn as info and statistics are."""
    pytest.importorskip("zarr")

    def run(store):
        return blackjax_smile.sample(
            jax.random.key(1), logdensity_fn, jax.numpy.ones((2, 2)), DATA, batch_size=50,
            num_warmup=500, num_samples=NUM_DRAWS, thinning=THINNING, progress_bar=False,
            store=store,
        )  # fmt: skip

    result = run(None)
    statistics = result.statistics
    infos = SimpleNamespace(
        deflection=statistics["deflection"], is_divergent=statistics["num_rejected"]
    )
    drawn = [
        plot_adaptation(result),
        plot_adaptation(run(tmp_path / "run.zarr"), thinning=THINNING),
        plot_adaptation(result.adaptation, infos, thinning=THINNING),
    ]
    lines = [[line.get_xydata() for ax in axes for line in ax.get_lines()] for axes in drawn]
    for others in lines[1:]:
        for mine, theirs in zip(lines[0], others, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    # The last block of draws: 5 of 10 steps each.
    *_, last = (line for line in drawn[0][1].get_lines() if len(line.get_xdata()) > 2)
    expected = np.exp(np.mean(np.log(statistics["deflection"][:, -5:].astype(np.float64))))
    np.testing.assert_allclose(last.get_xydata()[-1], [875, expected])


def test_adaptation_of_one_chain_alone_on_given_axes():
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile, logdensity_fn, MINIBATCH_FN, target_deflection=0.3
    )
    _, info = warmup.run(jax.random.key(1), jax.numpy.ones(2), num_steps=500)
    _, given = plt.subplots(3)
    axes = plot_adaptation(info, axes=given)
    assert axes is given
    assert axes[1].get_legend().get_texts()[-1].get_text() == "target, 0.3"
    assert axes[0].get_xlim() == (0, 500)
    np.testing.assert_array_equal(rejected_so_far(axes[2])[1], np.zeros((1, 10)))


def test_a_failed_chain_does_not_take_the_axes():
    """Chains whose step size goes to zero, or is not known: the others are shown as ever."""
    warmup = blackjax_smile.smile_adaptation(blackjax_smile.smile, logdensity_fn, MINIBATCH_FN)
    starts = jax.numpy.ones((4, 2))
    adapted = blackjax_smile.adapt_ensemble(jax.random.key(1), warmup, starts, 500)
    info = adapted.info
    limits = [ax.get_ylim() for ax in plot_adaptation(info)[:2]]
    shrunk = info.steps.step_size.at[0].set(1e-35).at[1].set(jax.numpy.nan)
    windows = info.windows._replace(
        step_size=info.windows.step_size.at[0].set(1e-35).at[1].set(jax.numpy.nan),
        target_deflection=info.windows.target_deflection.at[1].set(jax.numpy.nan),
    )
    failed = info._replace(steps=info.steps._replace(step_size=shrunk), windows=windows)
    axes = plot_adaptation(failed)
    for ax, (low, high) in zip(axes[:2], limits, strict=True):
        assert low / 3 < ax.get_ylim()[0]
        assert ax.get_ylim()[1] < 3 * high
    unknown = jax.tree.map(lambda x: jax.numpy.full_like(x, jax.numpy.nan), windows)
    plot_adaptation(info._replace(windows=unknown))
    for wrong, message in (
        ({"thinning": 0}, "thinning must be an integer of at least 1, got 0"),
        (
            {"infos": (None, (None, info))},
            r"\(states, \(positions, infos\)\) the last; got a tuple",
        ),
        ({"axes": axes[0]}, r"axes must be three, .* got the shape \(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_adaptation(info, **wrong)


def test_adaptation_without_a_history():
    with pytest.raises(ValueError, match="got FullBatchAdaptationInfo"):
        plot_adaptation(FullBatchAdaptationInfo(300))


def band(collection):
    """Return the lowest and the highest ordinate of a filled band at each abscissa."""
    vertices = collection.get_paths()[0].vertices
    by_x = {x: vertices[vertices[:, 0] == x, 1] for x in np.unique(vertices[:, 0])}
    return {x: (y.min(), y.max()) for x, y in by_x.items()}


def test_predictive_bands():
    """Intervals, mean and rows are drawn at their x; the legend counts rows inside."""
    x = np.array([3.0, 1.0, 2.0, 4.0])
    probabilities = [0.95, 0.25, 0.5, 0.75, 0.05]
    quantiles = np.stack([x + stats.norm.ppf(p) for p in probabilities])
    observed = x + np.array([0.0, 1.0, -1.0, 5.0])
    ax = plot_predictive_bands(quantiles, probabilities, mean=x, x=x, observed=observed)
    for collection, p in zip(ax.collections, (0.05, 0.25), strict=True):
        for at, edges in band(collection).items():
            np.testing.assert_allclose(edges, at + stats.norm.ppf([p, 1 - p]))
        assert len(band(collection)) == 4
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[:2] == [
        "90 % interval, 75 % of rows inside",
        "50 % interval, 25 % of rows inside",
    ]
    np.testing.assert_array_equal(line_of(ax, "predictive mean").get_data(), [np.sort(x)] * 2)
    np.testing.assert_allclose(line_of(ax, "predictive median").get_ydata(), np.sort(x))
    np.testing.assert_array_equal(line_of(ax, "outside").get_data(), [[4.0], [9.0]])
    np.testing.assert_array_equal(line_of(ax, "observed").get_xdata(), [1, 2, 3])


def test_predictive_bands_of_rows_side_by_side():
    """Without an x, rows come in the order of their means."""
    mean = np.array([2.0, 0.0, 1.0])
    quantiles = np.stack([mean - 1, mean + 1])
    _, given = plt.subplots()
    ax = plot_predictive_bands(quantiles, [0.1, 0.9], mean=mean, ax=given)
    assert ax is given
    np.testing.assert_array_equal(
        line_of(ax, "predictive mean").get_xydata(), [[1, 0], [2, 1], [3, 2]]
    )


@pytest.mark.parametrize(
    ("shape", "probabilities", "rows", "message"),
    [
        ((2, 5), [0.1, 0.8], {}, "pairs"),
        ((2, 5), [0.1, 0.9, 0.5], {}, r"got \(2, 5\)"),
        ((2, 5), [0.1, 0.9], {"observed": np.zeros((5, 1))}, "observed must have the shape"),
        ((2, 5), 0.5, {}, r"got \(2, 5\) and \(\)"),
        ((0, 5), [], {}, "nothing to draw"),
    ],
)
def test_predictive_bands_that_do_not_fit(shape, probabilities, rows, message):
    with pytest.raises(ValueError, match=message):
        plot_predictive_bands(np.zeros(shape), probabilities, **rows)


def test_reliability():
    """Points, chance bars and bin counts of two classifiers, computed apart."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 400)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = (rng.uniform(size=400) > confidence).astype(int)
    sure = evaluation.calibration_curve(probabilities, np.zeros(400, int), num_bins=10)
    right = evaluation.calibration_curve(probabilities, labels, num_bins=10)
    ax = plot_reliability({"calibrated": right, "other": sure})
    x, y = line_of(ax, "calibrated").get_data()
    count, low, high = [], [], []
    for i, edge in enumerate((0.5, 0.6, 0.7, 0.8, 0.9)):
        rows = (confidence > edge) & (confidence <= edge + 0.1)
        np.testing.assert_allclose(x[i], confidence[rows].mean(), rtol=1e-5)
        np.testing.assert_allclose(y[i], np.mean(labels[rows] == 0), rtol=1e-5)
        count.append(rows.sum())
        law = stats.binom(rows.sum(), x[i])
        low.append(law.ppf(0.025) / rows.sum())
        high.append(law.ppf(0.975) / rows.sum())
    bars = np.array([segment[:, 1] for segment in ax.collections[0].get_segments()])
    np.testing.assert_allclose(bars, np.stack([low, high], axis=1), rtol=1e-5)
    texts = [text.get_text() for text in ax.texts]
    assert texts[:6] == [*(str(n) for n in count), "calibrated"]
    np.testing.assert_array_equal(line_of(ax, "other").get_ydata(), 1.0)
    with pytest.raises(ValueError, match=r"what calibration_curve.* got ndarray"):
        plot_reliability({"not a curve": probabilities})


def test_coverage():
    """Nominal against observed, and the band of chance of so many rows."""
    transform = np.random.default_rng(0).uniform(0.25, 0.75, 80)
    ax = plot_coverage({"too wide": transform, "none": np.full(80, 0.999)}, num_levels=5)
    levels, shares = line_of(ax, "too wide").get_data()
    np.testing.assert_array_equal(levels, [0, 0.25, 0.5, 0.75, 1])
    inside = [np.mean(2 * np.abs(transform - 0.5) <= level) for level in levels]
    np.testing.assert_allclose(shares, inside)
    np.testing.assert_array_equal(line_of(ax, "none").get_ydata(), [0, 0, 0, 0, 1])
    edges = band(ax.collections[0])[0.5]
    np.testing.assert_allclose(edges, stats.binom.ppf([0.025, 0.975], 80, 0.5) / 80)
    assert ax.get_legend().get_texts()[0].get_text() == "calibrated, 80 rows (95 %)"
