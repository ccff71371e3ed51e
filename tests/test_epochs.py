"""Minibatches in epochs: found by their rows, and said where they make a posterior too narrow."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import blackjax_smile
from blackjax_smile import _epochs
from blackjax_smile._epochs import EpochDetector

pytestmark = pytest.mark.numerics

DATA = 1 + np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)


def in_epochs(data, batch_size, seed=0):
    """As a shuffling loader with drop_last=True."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(data))
        for first in range(0, len(data) - batch_size + 1, batch_size):
            yield data[order[first : first + batch_size]]


def independent(data, batch_size, replace=True, seed=0):
    rng = np.random.default_rng(seed)
    while True:
        yield data[rng.choice(len(data), batch_size, replace=replace)]


def found(minibatches, count=400):
    detector = EpochDetector()
    for minibatch in itertools.islice(minibatches, count):
        detector.look(minibatch)
    return detector.in_epochs


@pytest.mark.parametrize(("data_size", "batch_size"), [(500, 20), (500, 110), (97, 10), (60, 2)])
def test_epochs_are_told_from_independent_rows(data_size, batch_size):
    """A hundred seeds of independent rows: a false alarm has a probability below 1e-8 each."""
    data = DATA[:data_size]
    assert found(in_epochs(data, batch_size))
    for seed in range(100):
        assert not found(independent(data, batch_size, seed=seed), 100)
        assert not found(independent(data, batch_size, replace=False, seed=seed), 100)


def test_the_same_order_in_every_epoch():
    assert found(itertools.cycle(DATA.reshape(25, 20, 3)))


def test_what_cannot_be_told_is_no_alarm():
    assert not found(itertools.repeat(DATA[:20]))
    # Rows that are equal in the data, shorter than an epoch, leaves without a common axis.
    assert not found(in_epochs(np.round(DATA), 20))
    assert not found(in_epochs(DATA, 20), 24)
    assert not found({"x": x, "n": np.zeros(3)} for x in in_epochs(DATA, 20))


def test_rows_of_several_leaves_and_of_many_numbers():
    wide = np.random.default_rng(1).normal(size=(300, 3, 40, 40))
    assert found(({"x": x}, x[:, 0, 0, 0]) for x in in_epochs(wide, 20))


def test_more_rows_than_are_remembered(monkeypatch):
    monkeypatch.setattr(_epochs, "MAX_SEEN", 100)
    assert found(in_epochs(DATA, 20))
    assert not found(independent(DATA, 20))


def logdensity_fn(x, batch):
    return -0.5 * x @ x - 0.5 * len(DATA) * jnp.mean(jnp.sum((batch - x[None]) ** 2, axis=1))


@pytest.mark.parametrize(
    ("num_chains", "share", "warns"), [(1, False, True), (2, True, True), (4, False, False)]
)
def test_chains_that_see_whole_epochs(num_chains, share, warns):
    def sample(minibatches):
        blackjax_smile.sample(
            jax.random.key(0),
            logdensity_fn,
            jnp.ones((num_chains, 3)),
            minibatches,
            num_warmup=100,
            num_samples=10,
            share_minibatches=share,
            progress_bar=False,
        )

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sample(in_epochs(DATA, 20))
    told = [w for w in caught if "come in epochs" in str(w.message)]
    assert len(told) == warns
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sample(independent(DATA, 20))
    assert not any("epochs" in str(w.message) for w in caught)


def test_the_warmup_on_an_iterable():
    def run(minibatches):
        warmup = blackjax_smile.smile_adaptation(blackjax_smile.smile, logdensity_fn, minibatches)
        warmup.run(jax.random.key(0), jnp.ones(3), num_steps=100)

    with pytest.warns(UserWarning, match="come in epochs, every row once in each"):
        run(in_epochs(DATA, 20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(independent(DATA, 20))
