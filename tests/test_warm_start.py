"""Training of an ensemble: it reaches the mode, stops early, and keeps the best."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import blackjax_smile
from blackjax_smile import train_ensemble
from helpers import LinearRegression

pytestmark = pytest.mark.numerics

MODEL = LinearRegression(d=4, data_size=1000, spread=3.0)


def train(optimizer, num_members=3, **options):
    options = {"num_steps": 3000, "init_fn": lambda key: jax.random.normal(key, (4,)), **options}
    return train_ensemble(
        jax.random.key(0),
        options.pop("init_fn"),
        options.pop("logdensity_fn", MODEL.logdensity_fn),
        options.pop("minibatch_fn", MODEL.minibatch_fn(50)),
        optimizer,
        data_size=MODEL.data_size,
        num_members=num_members,
        **options,
    )


def distance_to_mode(position):
    """In posterior deviations, which for 1000 rows are about 0.03."""
    mean, covariance = MODEL.posterior
    return jnp.max(jnp.abs(position - mean.astype(np.float32)) / np.sqrt(np.diag(covariance)))


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adamw(optax.cosine_decay_schedule(0.01, 3000), weight_decay=0.0),
        # An ordinary learning rate: the loss is a mean, not a sum over the data.
        optax.sgd(optax.cosine_decay_schedule(0.1, 3000)),
    ],
    ids=["adamw", "sgd"],
)
def test_members_reach_the_mode_from_independent_starts(optimizer):
    trained = train(optimizer)
    for position in trained.positions:
        assert distance_to_mode(position) < 0.5
    assert np.all(np.unique(trained.positions[:, 0]).shape == (3,))
    assert np.all(trained.num_steps == 3000)
    assert np.all(trained.is_finite)
    assert np.all(trained.losses[:, -1] < trained.losses[:, 0])


def test_stops_after_patience_and_keeps_the_best():
    """A loss that falls for 5 evaluations, then rises: known from the step count alone."""
    optimizer = optax.sgd(1.0)
    trained = train_ensemble(
        jax.random.key(0),
        lambda key: jnp.zeros(2),
        lambda x, batch: 10.0 * jnp.sum(x),  # each step adds 1 to each element
        lambda key: jnp.zeros(1),
        optimizer,
        data_size=10,
        num_members=2,
        num_steps=100,
        evaluation_interval=3,
        patience=4,
        validation_fn=lambda x: jnp.abs(x[0] - 15),
    )
    np.testing.assert_allclose(trained.positions, 15.0)
    np.testing.assert_array_equal(trained.best_step, 15)
    np.testing.assert_array_equal(trained.num_steps, 27)
    np.testing.assert_allclose(trained.losses[0, :9], [12, 9, 6, 3, 0, 3, 6, 9, 12])
    assert np.all(np.isnan(trained.losses[:, 9:]))


def test_a_stopped_member_does_not_change_while_others_go_on():
    """Starts at different distances from 15, one unit a step: each stops in its own time."""
    trained = train_ensemble(
        jax.random.key(3),
        lambda key: jax.random.uniform(key, (2,), minval=-40.0, maxval=14.0),
        lambda x, batch: 10.0 * jnp.sum(x),
        lambda key: jnp.zeros(1),
        optax.sgd(1.0),
        data_size=10,
        num_members=8,
        num_steps=100,
        evaluation_interval=1,
        patience=2,
        validation_fn=lambda x: jnp.abs(x[0] - 15),
    )
    assert len(set(trained.num_steps.tolist())) > 3
    assert np.all(np.abs(trained.positions[:, 0] - 15) <= 0.5)
    assert np.all(trained.num_steps - trained.best_step == 2)


def test_a_member_that_diverges_is_reported_and_the_others_unharmed():
    def init_fn(key):
        bad = jax.random.bernoulli(key, 0.5)
        return jnp.where(bad, jnp.nan, jax.random.normal(key, (4,)))

    trained = train(
        optax.adam(0.01), num_members=8, init_fn=init_fn, validation_fn=distance_to_mode
    )
    finite = np.asarray(trained.is_finite)
    assert 0 < finite.sum() < 8
    assert np.all(np.isfinite(trained.positions[finite]))
    assert np.all(jax.vmap(distance_to_mode)(trained.positions[finite]) < 1)
    np.testing.assert_array_equal(np.asarray(trained.num_steps)[~finite], 0)


def test_divergence_after_a_good_start_keeps_the_good_parameters():
    def logdensity_fn(x, batch):
        return jnp.where(x[0] < 10, 1.0, jnp.nan) * jnp.sum(x)

    trained = train_ensemble(
        jax.random.key(0), lambda key: jnp.zeros(2), logdensity_fn, lambda key: jnp.zeros(1),
        optax.sgd(1.0), data_size=1, num_members=1, num_steps=50, evaluation_interval=1,
        validation_fn=lambda x: -x[0],
    )  # fmt: skip
    assert bool(trained.is_finite[0])
    np.testing.assert_allclose(trained.positions, 10.0)
    assert trained.num_steps[0] == 11


def test_any_tree_and_no_second_compilation():
    def init_fn(key):
        return {"w": jax.random.normal(key, (2, 2)), "b": (jnp.zeros((), jnp.bfloat16),)}

    def logdensity_fn(position, batch):
        return -sum(jnp.sum((x - 1).astype(jnp.float32) ** 2) for x in jax.tree.leaves(position))

    traced = chex.assert_max_traces(logdensity_fn, n=2)
    arguments = (init_fn, traced, lambda key: jnp.zeros(1), optax.sgd(0.1))
    options = {"data_size": 1, "num_members": 2, "num_steps": 200}
    trained = train_ensemble(jax.random.key(0), *arguments, **options)
    again = train_ensemble(jax.random.key(1), *arguments, **options)
    for leaf in jax.tree.leaves((trained.positions, again.positions)):
        np.testing.assert_allclose(leaf.astype(np.float32), 1, atol=0.01)
    assert trained.positions["b"][0].dtype == jnp.bfloat16


def test_a_callable_that_cannot_be_hashed():
    class Model:
        __hash__ = None

        def __init__(self, target):
            self.target = target

        def __call__(self, x, batch):
            return -0.5 * jnp.sum((x - self.target) ** 2)

    trained = train(optax.sgd(0.1 * MODEL.data_size), logdensity_fn=Model(2.0))
    np.testing.assert_allclose(trained.positions, 2.0, atol=1e-3)


def test_starts_for_chains():
    """What comes out goes into the warmup as it is, one member per chain."""
    trained = train(optax.adam(0.02), num_members=2, num_steps=1000)
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile, MODEL.logdensity_fn, MODEL.minibatch_fn(50)
    )
    keys = jax.random.split(jax.random.key(1), 2)
    (_, parameters), info = jax.vmap(lambda k, x: warmup.run(k, x, num_steps=400))(
        keys, trained.positions
    )
    assert np.all(parameters["step_size"] > 0)
    assert np.all(info.windows.num_rejected == 0)


@pytest.mark.parametrize("name", ["num_members", "num_steps", "patience", "evaluation_interval"])
def test_bad_numbers(name):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got 0"):
        train(optax.sgd(0.1), **{name: 0})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"init_fn": jnp.zeros(4)}, "init_fn must be a function of a key, got ArrayImpl"),
        ({"minibatch_fn": jnp.zeros((1000, 4))}, "minibatch_fn must be a function"),
        ({"optimizer": "adam"}, "optimizer must be an optax one, like .*, got adam"),
        ({"logdensity_fn": lambda x: -x @ x}, r"called as logdensity_fn\(position, minibatch\)"),
    ],
)
def test_arguments_of_another_kind(wrong, message):
    with pytest.raises(ValueError, match=message):
        train(**{"optimizer": optax.sgd(0.1), **wrong})


def test_integer_starts_are_refused():
    with pytest.raises(ValueError, match="floating-point leaves"):
        train(optax.sgd(0.1), init_fn=lambda key: jnp.zeros(4, int))
