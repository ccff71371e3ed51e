"""Predictions against the exact posterior predictive law of a conjugate model, and their memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from blackjax_smile import evaluation, prediction
from blackjax_smile.arviz_export import import_arviz, to_arviz
from blackjax_smile.function_space import prediction_diagnostics
from helpers import SIGMAS, LinearRegression

MODEL = LinearRegression(d=4, data_size=40, spread=2.0)
NUM_CHAINS, NUM_DRAWS = 4, 2000


@functools.cache
def posterior_draws():
    """Independent draws of the exact posterior."""
    mean, covariance = MODEL.posterior
    rng = np.random.default_rng(1)
    draws = rng.multivariate_normal(mean, covariance, (NUM_CHAINS, NUM_DRAWS))
    return jnp.asarray(draws, jnp.float32)


@functools.cache
def held_out(num_rows=100):
    """Rows of the prior predictive law given the posterior, and their exact predictive law."""
    mean, covariance = MODEL.posterior
    rng = np.random.default_rng(2)
    X = rng.normal(size=(num_rows, MODEL.d))
    predictive_mean = X @ mean
    deviation = np.sqrt(1 + np.einsum("ri,ij,rj->r", X, covariance, X))
    y = predictive_mean + deviation * rng.normal(size=num_rows)
    return (X.astype(np.float32), y.astype(np.float32)), predictive_mean, deviation


def loglikelihood(theta, row):
    x, y = row
    return jax.scipy.stats.norm.logpdf(y, x @ theta)


def sample(rng_key, theta, row):
    return row[0] @ theta + jax.random.normal(rng_key)


def assert_close_in_error(found, exact, deviation, num_draws=NUM_CHAINS * NUM_DRAWS):
    np.testing.assert_array_less(np.abs(found - exact), SIGMAS * deviation / np.sqrt(num_draws))


def test_predictive_mean_and_variance():
    rows, mean, deviation = held_out()

    def moments(theta, row):
        prediction = row[0] @ theta
        return {"mean": prediction, "square": prediction**2}

    found = prediction.predictive_mean(moments, posterior_draws(), rows, batch_size=7)
    spread = np.sqrt(deviation**2 - 1)
    assert_close_in_error(np.asarray(found["mean"]), mean, spread)
    variance = np.asarray(found["square"] - found["mean"] ** 2)
    assert_close_in_error(variance / spread**2, 1.0, np.sqrt(2))


def test_predictive_mean_of_infinite_values():
    """Over blocks of draws: infinite of one sign stays so, both signs or a NaN give NaN."""
    values = jnp.array(
        [
            [jnp.inf, 0.0, 0.0, jnp.inf, jnp.inf, 1.0],
            [0.0, 0.0, -jnp.inf, jnp.inf, 0.0, 2.0],
            [0.0, -jnp.inf, 0.0, jnp.inf, -jnp.inf, 3.0],
            [0.0, 0.0, -jnp.inf, jnp.inf, 0.0, jnp.nan],
        ]
    )
    found = prediction.predictive_mean(
        lambda values, i: values[i], values[None], jnp.arange(6), draw_batch_size=1
    )
    np.testing.assert_array_equal(found, [jnp.inf, -jnp.inf, -jnp.inf, jnp.inf, jnp.nan, jnp.nan])


def test_log_predictive_density():
    """Against the exact density; the estimate's error follows from the spread over draws."""
    rows, mean, deviation = held_out()
    found = np.asarray(prediction.log_predictive_density(loglikelihood, posterior_draws(), rows))
    exact = scipy.stats.norm.logpdf(rows[1], mean, deviation)
    density = np.exp(prediction.log_likelihood(loglikelihood, posterior_draws(), rows))
    relative = density.reshape(-1, len(exact)).std(0) / np.exp(exact)
    assert_close_in_error(found, exact, relative)
    np.testing.assert_allclose(
        evaluation.lppd(loglikelihood, posterior_draws(), rows), found.mean(), rtol=1e-5
    )


def test_log_predictive_density_far_from_zero():
    """Densities that underflow, and a draw that gives none, are no obstacle."""
    log_values = jnp.array([[-1000.0, -1001.0], [-jnp.inf, -1002.0]])
    found = prediction.log_predictive_density(lambda x, row: x + row, log_values, jnp.zeros(3))
    exact = -1000 + np.log((1 + np.exp(-1) + np.exp(-2)) / 4)
    np.testing.assert_allclose(found, exact, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000])
@pytest.mark.parametrize("draw_batch_size", [1, 3, 64])
def test_blocks_do_not_matter(batch_size, draw_batch_size):
    """Neither the rows nor the draws need to be a multiple of their block."""
    rows, _, _ = held_out()
    draws = posterior_draws()[:, :5]
    blocks = {"batch_size": batch_size, "draw_batch_size": draw_batch_size}
    density = prediction.log_predictive_density(loglikelihood, draws, rows, **blocks)
    mean = prediction.predictive_mean(lambda theta, row: row[0] @ theta, draws, rows, **blocks)
    X = rows[0].astype(np.float64)
    values = np.asarray(draws, np.float64) @ X.T
    np.testing.assert_allclose(mean, values.mean((0, 1)), rtol=1e-4, atol=1e-5)
    exact = np.log(np.exp(scipy.stats.norm.logpdf(rows[1], values)).mean((0, 1)))
    np.testing.assert_allclose(density, exact, rtol=1e-4, atol=1e-5)


def test_predictive_draws_and_quantiles():
    """Their law is the exact one, with the posterior's spread and the noise's."""
    rows, mean, deviation = held_out(num_rows=10)
    draws = prediction.posterior_predictive(jax.random.key(0), sample, posterior_draws(), rows)
    assert draws.shape == (NUM_CHAINS, NUM_DRAWS, 10)
    standard = (draws - mean) / deviation
    for row in range(10):
        # False alarms: 10 rows at 1e-5.
        assert scipy.stats.kstest(standard[:, :, row].ravel(), "norm").pvalue > 1e-5

    levels = [0.05, 0.5, 0.9]
    quantiles = prediction.predictive_quantiles(
        jax.random.key(1), sample, posterior_draws(), rows, levels, batch_size=3
    )
    found = scipy.stats.norm.cdf((np.asarray(quantiles) - mean) / deviation)
    exact = np.broadcast_to(np.array(levels)[:, None], found.shape)
    assert_close_in_error(found, exact, np.sqrt(exact * (1 - exact)))


def test_quantiles_of_counts():
    rates = jnp.full((2, 500), 10.0)
    found = prediction.predictive_quantiles(
        jax.random.key(0),
        lambda key, rate, row: jax.random.poisson(key, rate),
        rates,
        jnp.zeros(3),
        [0.05, 0.5, 0.95],
    )
    exact = scipy.stats.poisson(10).ppf([0.05, 0.5, 0.95])[:, None]
    np.testing.assert_allclose(found, np.broadcast_to(exact, (3, 3)), atol=1)


def test_noise_of_rows_is_independent():
    """Two equal rows get different draws, and the draws of one row are not correlated."""
    draws = prediction.posterior_predictive(
        jax.random.key(0),
        lambda key, theta, row: jax.random.normal(key) + 0 * row,
        jnp.zeros((2, 2000)),
        jnp.ones(2),
    ).reshape(-1, 2)
    bound = SIGMAS / np.sqrt(len(draws))
    assert abs(np.corrcoef(draws.T)[0, 1]) < bound
    assert abs(np.corrcoef(draws[1:, 0], draws[:-1, 0])[0, 1]) < bound


@pytest.mark.parametrize("function", ["density", "mean", "quantiles"])
def test_memory_does_not_grow_with_draws_times_rows(function):
    """Compiled for 64 times more draws times rows, the scratch memory grows like their sum."""

    def scratch(num_draws, num_rows):
        positions = jax.ShapeDtypeStruct((2, num_draws // 2, MODEL.d), jnp.float32)
        rows = (
            jax.ShapeDtypeStruct((num_rows, MODEL.d), jnp.float32),
            jax.ShapeDtypeStruct((num_rows,), jnp.float32),
        )
        compute = {
            "density": functools.partial(prediction.log_predictive_density, loglikelihood),
            "mean": functools.partial(
                prediction.predictive_mean, lambda theta, row: row[0] @ theta
            ),
            "quantiles": lambda positions, rows: prediction.predictive_quantiles(
                jax.random.key(0), sample, positions, rows, [0.5], batch_size=32
            ),
        }[function]
        compiled = jax.jit(compute).lower(positions, rows).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = scratch(1024, 1024), scratch(8192, 8192)
    assert large < 16 * small
    assert large < 0.1 * 8192 * 8192 * 4


def test_a_network_of_any_tree_and_output():
    """Class probabilities of a nested tree's network."""
    keys = jax.random.split(jax.random.key(0), 6).reshape(2, 3)
    positions = jax.vmap(
        jax.vmap(lambda k: {"w": jax.random.normal(k, (2, 3)), "b": [jnp.ones(3)]})
    )(keys)
    x = jax.random.normal(jax.random.key(1), (5, 2))

    def probabilities(position, x):
        return jax.nn.softmax(x @ position["w"] + position["b"][0])

    found = prediction.predictive_mean(probabilities, positions, x)
    exact = jax.vmap(jax.vmap(lambda p: jax.vmap(lambda r: probabilities(p, r))(x)))(positions)
    np.testing.assert_allclose(found, exact.mean((0, 1)), rtol=1e-5)


def test_functions_that_return_a_tree():
    """Each leaf is what the function of that leaf alone gives, in half precision as well."""
    draws, (rows, *_) = posterior_draws()[:, :20], held_out(7)
    key, blocks = jax.random.key(0), {"batch_size": 3}

    def drawn(rng_key, theta, row):
        y = sample(rng_key, theta, row)
        return {"y": y, "half": y.astype(jnp.bfloat16)}

    def first(rng_key, theta, row):
        return drawn(rng_key, theta, row)["y"]

    values, alone = (
        prediction.posterior_predictive(key, fn, draws, rows, **blocks) for fn in (drawn, first)
    )
    assert values["half"].shape == alone.shape == (NUM_CHAINS, 20, 7)
    np.testing.assert_array_equal(values["y"], alone)
    quantiles, alone = (
        prediction.predictive_quantiles(key, fn, draws, rows, [0.1, 0.9], **blocks)
        for fn in (drawn, first)
    )
    np.testing.assert_array_equal(quantiles["y"], alone)
    np.testing.assert_allclose(quantiles["half"], alone, rtol=0.02, atol=0.02)

    def mean(theta, row):
        return {"y": row[0] @ theta, "half": (row[0] @ theta).astype(jnp.bfloat16)}

    found = prediction_diagnostics(mean, draws, rows)
    exact = prediction_diagnostics(lambda theta, row: row[0] @ theta, draws, rows)
    for field, expected in zip(found, exact, strict=True):
        np.testing.assert_array_equal(field["y"], expected)
        np.testing.assert_allclose(field["half"], expected, rtol=0.2)


def test_draws_and_rows_on_a_mesh():
    """`jax.make_mesh` makes explicit axes: what is computed of the arrays is the same."""
    mesh = jax.make_mesh((2,), ("chains",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("chains"))
    draws, rows = posterior_draws()[:, :20], jax.tree.map(jnp.asarray, held_out(6)[0])
    for positions, data in (
        (jax.device_put(draws, sharding), rows),
        (draws, jax.device_put(rows, sharding)),
    ):
        for function in (prediction.predictive_mean, prediction.log_likelihood):
            np.testing.assert_allclose(
                function(loglikelihood, positions, data),
                function(loglikelihood, draws, rows),
                rtol=1e-5,
            )


def test_predictions_go_to_arviz():
    """LOO agrees with the exact leave-one-out density of the conjugate model."""
    arviz = import_arviz()
    X, y = (a.astype(np.float64) for a in MODEL.data)
    draws = posterior_draws()
    idata = to_arviz(
        draws,
        chain_axis=True,
        log_likelihood={"y": prediction.log_likelihood(loglikelihood, draws, MODEL.data)},
        posterior_predictive={
            "y": prediction.posterior_predictive(jax.random.key(0), sample, draws, MODEL.data)
        },
        observed_data={"y": MODEL.data[1]},
    )
    exact = 0.0
    for i in range(len(y)):
        rest = np.arange(len(y)) != i
        covariance = np.linalg.inv(X[rest].T @ X[rest] + np.eye(MODEL.d))
        mean = covariance @ X[rest].T @ y[rest]
        deviation = np.sqrt(1 + X[i] @ covariance @ X[i])
        exact += scipy.stats.norm.logpdf(y[i], X[i] @ mean, deviation)
    loo = arviz.loo(idata)
    found = float(getattr(loo, "elpd", None) or loo.elpd_loo)
    # Importance sampling of 8000 draws: hundredths of a nat per row at most.
    assert abs(found - exact) < 0.2
    sizes = dict(idata["posterior_predictive"]["y"].sizes)
    assert (sizes["chain"], sizes["draw"]) == (NUM_CHAINS, NUM_DRAWS)
    assert idata["observed_data"]["y"].shape == (MODEL.data_size,)


def test_errors_of_the_model_name_the_axes():
    """The draws of one chain, whose axis is missing."""
    with pytest.raises(ValueError, match="ndim") as error:
        prediction.predictive_mean(lambda w, row: row @ w, jnp.ones((500, 3)), jnp.ones((4, 3)))
    assert "Positions lead with (chain, draw)" in "".join(error.value.__notes__)


@pytest.mark.parametrize("size", [0, -1, 2.5, None])
@pytest.mark.parametrize("name", ["batch_size", "draw_batch_size"])
def test_bad_block_sizes(name, size):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got {size}"):
        prediction.predictive_mean(
            lambda x, row: x, jnp.zeros((1, 2)), jnp.zeros(3), **{name: size}
        )


@pytest.mark.parametrize("probabilities", [0.5, []])
def test_probabilities_that_are_no_list(probabilities):
    with pytest.raises(ValueError, match="probabilities must be a list of some"):
        prediction.predictive_quantiles(
            jax.random.key(0), lambda key, x, row: x, jnp.zeros((1, 2)), jnp.zeros(3), probabilities
        )


def test_bad_positions():
    with pytest.raises(ValueError, match="same leading axes"):
        prediction.log_likelihood(loglikelihood, {"a": jnp.ones((2, 3)), "b": jnp.ones(2)}, [1.0])
    with pytest.raises(ValueError, match="There is no draw"):
        prediction.log_likelihood(loglikelihood, jnp.ones((2, 0, 4)), jnp.ones(3))
    with pytest.raises(ValueError, match="differ in their number of rows"):
        prediction.log_predictive_density(
            loglikelihood, posterior_draws(), (jnp.ones((3, 4)), jnp.ones(2))
        )
