"""Functions that look as if nothing were kept of them: what is kept must not show."""

import functools
import gc
import weakref

import jax.numpy as jnp
import numpy as np
import pytest

from blackjax_smile import _jitted, prediction

POSITIONS, ROWS = jnp.ones((2, 3)), jnp.zeros(4)


class Model:
    scale = 1.0

    def predict(self, position, row):
        return self.scale * position + row


class Called(Model):
    def __call__(self, position, row):
        return self.predict(position, row)


@pytest.mark.parametrize("of", [lambda model: model, functools.partial])
def test_an_object_that_is_called_is_as_it_is_now(of):
    model = Called()
    for scale in (1.0, 5.0):
        model.scale = scale
        found = prediction.predictive_mean(of(model), POSITIONS, ROWS)
        np.testing.assert_allclose(found, scale)


@pytest.mark.parametrize("wrap", [lambda f: f, functools.partial])
def test_a_method_is_that_of_its_object_now(wrap):
    model = Model()
    for scale in (1.0, 5.0):
        model.scale = scale
        found = prediction.predictive_mean(wrap(model.predict), POSITIONS, ROWS)
        np.testing.assert_allclose(found, scale)


def test_a_function_is_traced_once():
    traced = []

    def predict(position, row):
        traced.append(1)
        return position + row

    prediction.predictive_mean(predict, POSITIONS, ROWS)
    first = len(traced)
    assert first > 0
    prediction.predictive_mean(predict, POSITIONS, ROWS)
    assert len(traced) == first


def test_what_functions_close_over_is_let_go():
    """All but what was used last."""

    def of(data):
        return lambda position, row: position + jnp.sum(data) + row

    functions = [of(jnp.ones(1000)) for _ in range(_jitted.MAX_PROGRAMS + 8)]
    alive = [weakref.ref(function) for function in functions]
    for function in functions:
        prediction.predictive_mean(function, POSITIONS, ROWS)
    del functions, function
    # JAX lets go of the programs of a function that is gone by itself.
    gc.collect()
    assert sum(ref() is not None for ref in alive) <= _jitted.MAX_PROGRAMS
