"""Everything of ours runs where JAX refuses to mix dtypes (``jax_numpy_dtype_promotion="strict"``).

Not what we call: optax's Adam, BlackJAX's R-hat (`prediction_diagnostics`), and JAX's
`ravel_pytree` of leaves of several dtypes (the dense and low-rank maps).
"""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import blackjax_smile
from blackjax_smile import evaluation, prediction

NUM_ROWS, BATCH_SIZE = 2000, 20


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def rows():
    x = jax.random.normal(jax.random.key(0), (NUM_ROWS, 3))
    return x, x @ jnp.array([1.0, -1.0, 0.5])


def start(dtype=jnp.float32):
    return {"kernel": jnp.zeros((3, 1)), "bias": jnp.zeros(1, dtype)}


def predict(position, row):
    return (row[0] @ position["kernel"] + position["bias"].astype(jnp.float32))[0]


def loglikelihood(position, row):
    return -0.5 * (row[1] - predict(position, row)) ** 2


def logprior(position):
    return -0.5 * sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in jax.tree.leaves(position))


logdensity_fn = blackjax.sgmcmc.gradients.logdensity_estimator(logprior, loglikelihood, NUM_ROWS)


def minibatch_fn():
    return blackjax_smile.minibatch_sampler(rows(), BATCH_SIZE)


def warmup(preconditioner="diagonal"):
    return blackjax_smile.smile_adaptation(
        blackjax_smile.smile, logdensity_fn, minibatch_fn(), preconditioner=preconditioner
    )


@pytest.mark.numerics
@pytest.mark.parametrize(
    "preconditioner", ["identity", "diagonal", "dense", "kronecker", "low_rank", "bfloat16"]
)
def test_warmup_and_steps(preconditioner):
    position = start()
    if preconditioner == "bfloat16":
        position, preconditioner = start(jnp.bfloat16), "diagonal"
    (state, parameters), _ = warmup(preconditioner).run(jax.random.key(1), position, 500)
    algorithm = blackjax_smile.with_minibatches(
        blackjax_smile.smile(logdensity_fn, **parameters), minibatch_fn()
    )
    state, info = jax.jit(algorithm.step)(jax.random.key(2), state)
    assert not info.is_divergent
    assert jnp.isfinite(state.logdensity)


@pytest.mark.numerics
def test_other_samplers():
    x = rows()
    centred = blackjax_smile.control_variates(logdensity_fn, start(), x)
    for fn in (logdensity_fn, centred):
        online = blackjax_smile.online_smile(fn, step_size=0.1)
        state = online.init(start(), jax.random.key(0))
        state, info = online.step(jax.random.key(1), state, jax.tree.map(lambda a: a[:20], x))
        assert jnp.isfinite(info.energy_change)
    full = blackjax_smile.smile(
        lambda position: logdensity_fn(position, x),
        L=1.0,
        step_size=0.1,
        integrator=blackjax.mcmc.integrators.isokinetic_mclachlan,
    )
    _, info = full.step(jax.random.key(1), full.init(start(), jax.random.key(0)))
    assert not info.is_divergent
    noise = blackjax_smile.gradient_noise(jax.random.key(0), logdensity_fn, start(), minibatch_fn())
    assert jnp.isfinite(noise.raw.anisotropy)


def test_whole_run(tmp_path):
    """Training, sampling to disk and in memory, predictions and their scores."""
    trained = blackjax_smile.train_ensemble(
        jax.random.key(0),
        lambda key: start(),
        logdensity_fn,
        minibatch_fn(),
        optax.sgd(0.1),
        data_size=NUM_ROWS,
        num_members=2,
        num_steps=200,
        validation_fn=lambda position: logdensity_fn(position, rows()),
    )
    result = blackjax_smile.sample(
        jax.random.key(3),
        logdensity_fn,
        trained.positions,
        rows(),
        batch_size=BATCH_SIZE,
        num_warmup=500,
        num_samples=200,
        store=tmp_path / "run.zarr",
        progress_bar=False,
    )
    result.to_arviz()
    draws = jax.tree.map(jnp.asarray, result.positions)
    ensemble = blackjax_smile.adapt_ensemble(
        jax.random.key(4), warmup("kronecker"), trained.positions, 500
    )
    blackjax_smile.sample_ensemble(
        jax.random.key(5), blackjax_smile.smile, logdensity_fn, minibatch_fn(), ensemble, 20
    )

    held_out = jax.tree.map(lambda a: a[:50], rows())
    mean = prediction.predictive_mean(predict, draws, held_out)
    assert evaluation.rmse(mean, held_out[1]) < 0.2
    assert evaluation.lppd(loglikelihood, draws, held_out) > -0.05
    simulated = prediction.posterior_predictive(
        jax.random.key(6), lambda key, position, row: predict(position, row), draws, held_out
    )
    assert np.shape(simulated)[-1] == 50
    prediction.predictive_quantiles(
        jax.random.key(6), lambda key, *args: predict(*args), draws, held_out, (0.1, 0.9)
    )
    probabilities = jax.nn.softmax(jax.random.normal(jax.random.key(7), (50, 3)))
    labels = jax.random.randint(jax.random.key(8), (50,), 0, 3)
    assert 0 <= evaluation.expected_calibration_error(probabilities, labels) <= 1
    assert 0 <= evaluation.accuracy(probabilities, labels) <= 1
    evaluation.coverage(jax.random.uniform(jax.random.key(9), (50,)), (0.5, 0.9))
