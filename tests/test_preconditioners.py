"""The suite that every preconditioner passes, and what is particular to each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc.metrics import LowRankInverseMassMatrix
from jax.flatten_util import ravel_pytree

from blackjax_smile import _tree
from blackjax_smile.preconditioners import (
    DiagonalPreconditioner,
    KroneckerPreconditioner,
    LowRankPreconditioner,
    as_preconditioner,
    dense_estimator,
    diagonal_estimator,
)
from blackjax_smile.preconditioners.floor import FLOOR, noise_floor
from blackjax_smile.preconditioners.metric import as_metric
from blackjax_smile.preconditioners.variances import geometric_mean
from helpers import ESTIMATORS, POSITIONS

pytestmark = pytest.mark.numerics

D = 6
POSITION = POSITIONS["nested"](jnp.float32)


def covariance(seed=0, spread=100.0, d=D):
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(d, d)))
    return rotation @ np.diag(spread ** np.linspace(-0.5, 0.5, d)) @ rotation.T


def low_rank():
    U, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(D, 2)))
    return LowRankInverseMassMatrix(
        jnp.linspace(0.5, 2.0, D), jnp.asarray(U, jnp.float32), jnp.asarray([4.0, 0.2])
    )


def fitted(name, V=None, num_draws=4000, position=POSITION, num_windows=2):
    """Estimate a preconditioner from draws of N(0, V), in windows as the warmup does."""
    V = covariance() if V is None else V
    root = jnp.asarray(np.linalg.cholesky(V + 1e-300 * np.eye(len(V))), jnp.float32)
    _, unravel = ravel_pytree(position)
    estimator = ESTIMATORS[name](position)

    @jax.jit
    def window(key, preconditioner):
        def body(statistics, key):
            noise = unravel(root @ jax.random.normal(key, (len(V),)))
            return estimator.update(statistics, noise, preconditioner.whiten(noise)), None

        start = estimator.init_statistics(preconditioner)
        statistics, _ = jax.lax.scan(body, start, jax.random.split(key, num_draws))
        eigenvalues = estimator.noise_eigenvalues(statistics, preconditioner)
        return estimator.fit(statistics, preconditioner), eigenvalues

    preconditioner = estimator.init(unravel(jnp.asarray(np.diag(V), jnp.float32)))
    for key in jax.random.split(jax.random.key(0), num_windows):
        preconditioner, eigenvalues = window(key, preconditioner)
    return preconditioner, eigenvalues


GIVEN = {
    "scalar": lambda: 2.0,
    "vector": lambda: jnp.linspace(0.5, 3.0, D),
    "matrix": lambda: jnp.asarray(covariance(), jnp.float32),
    "low_rank": low_rank,
}
ALL = [*GIVEN, *ESTIMATORS]


def make(name):
    return as_preconditioner(GIVEN[name]()) if name in GIVEN else fitted(name)[0]


def matrix_of(function, like=POSITION):
    """Return the matrix of a linear map on trees."""
    _, unravel = ravel_pytree(like)
    return np.asarray(
        jax.vmap(lambda e: ravel_pytree(function(unravel(e)))[0], out_axes=1)(jnp.eye(D))
    )


def floor_matrix(preconditioner):
    """Return R, the covariance of the complementary noise of the gradient, in float64."""
    if isinstance(preconditioner, DiagonalPreconditioner):
        scale, _ = ravel_pytree(preconditioner.scale)
        return np.diag(ravel_pytree(preconditioner.complement)[0] / scale**2)
    if isinstance(preconditioner, KroneckerPreconditioner):
        return kronecker_floor(preconditioner)
    return np.diag(np.asarray(getattr(preconditioner, "floor", np.zeros(D)), np.float64))


def kronecker_floor(preconditioner):
    """R of the matrices one after the other, which is the order of `POSITION`'s leaves."""
    blocks = []
    for sides in zip(preconditioner.left, preconditioner.right, strict=True):
        floored, floors = [], []
        for side in sides:
            F = np.asarray(side.factor, np.float64)
            F = np.diag(F) if F.ndim == 1 else F
            floored.append(np.linalg.inv(F @ F.T))
            floors.append(np.diag(np.asarray(side.floor, np.float64)))
        noise = [total - floor for total, floor in zip(floored, floors, strict=True)]
        blocks.append(np.kron(*floored) - np.kron(*noise))
    sizes = np.cumsum([0, *map(len, blocks)])
    R = np.zeros((sizes[-1], sizes[-1]))
    for start, stop, block in zip(sizes[:-1], sizes[1:], blocks, strict=True):
        R[start:stop, start:stop] = block
    return R


@pytest.mark.parametrize("name", ALL)
class TestEveryPreconditioner:
    def test_whiten_is_the_transpose_of_to_position(self, name):
        preconditioner = make(name)
        F = matrix_of(preconditioner.to_position)
        np.testing.assert_allclose(matrix_of(preconditioner.whiten), F.T, rtol=1e-5, atol=1e-6)

    def test_refresh_noise_has_the_stated_covariance(self, name):
        """Entries of the sample covariance within 6 standard errors of the exact one."""
        preconditioner = make(name)
        isotropic, complementary = jnp.asarray(0.5), jnp.asarray(3.0)
        n = 20_000
        draws = jax.vmap(
            lambda key: ravel_pytree(
                preconditioner.refresh_noise(
                    key, POSITION, isotropic, complementary, _tree.random_normals
                )
            )[0]
        )(jax.random.split(jax.random.key(0), n))
        F = matrix_of(preconditioner.to_position)
        complement = F.T @ floor_matrix(preconditioner) @ F
        np.testing.assert_allclose(
            preconditioner.complement_trace, np.trace(complement), rtol=1e-4, atol=1e-12
        )
        exact = 0.25 * np.eye(D) + 9 * complement
        sd = np.sqrt(np.diag(exact))
        error = np.abs(np.asarray(draws.T @ draws) / n - exact)
        assert np.all(error < 6 * np.sqrt(2) * np.outer(sd, sd) / np.sqrt(n))

    def test_is_a_pytree_of_arrays(self, name):
        preconditioner = make(name)
        stacked = jax.tree.map(lambda x: jnp.stack([x, x]), preconditioner)
        out = jax.jit(jax.vmap(lambda p: p.to_position(POSITION)))(stacked)
        single = preconditioner.to_position(POSITION)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-5), out, single)

    def test_passes_through_as_preconditioner(self, name):
        preconditioner = make(name)
        assert as_preconditioner(preconditioner) is preconditioner

    def test_metric_for_blackjax_is_the_same_map(self, name):
        if name == "kronecker":
            with pytest.raises(ValueError, match="integrator=None"):
                as_metric(make(name))
            return
        metric = as_metric(make(name))
        F = matrix_of(make(name).to_position)
        G = matrix_of(metric.preconditioner.to_position)
        np.testing.assert_allclose(G @ G.T, F @ F.T, rtol=1e-3, atol=1e-4 * np.max(F @ F.T))
        given = metric.inverse_mass_matrix
        if isinstance(given, LowRankInverseMassMatrix):
            inner = np.eye(D) + given.U @ np.diag(given.lam - 1) @ given.U.T
            full = np.diag(given.sigma) @ inner @ np.diag(given.sigma)
        else:
            full = np.diag(np.broadcast_to(given, D))
        np.testing.assert_allclose(full, F @ F.T, rtol=1e-3, atol=1e-4 * np.max(F @ F.T))


@pytest.mark.parametrize("name", list(GIVEN))
def test_given_matrix_is_factorised(name):
    F = matrix_of(make(name).to_position)
    M = GIVEN[name]()
    if name == "low_rank":
        inner = np.eye(D) + M.U @ np.diag(M.lam - 1) @ M.U.T
        M = np.diag(M.sigma) @ inner @ np.diag(M.sigma)
    elif np.ndim(M) < 2:
        M = np.diag(np.broadcast_to(M, D))
    np.testing.assert_allclose(F @ F.T, M, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (-1.0, "positive"),
        (0.0, "positive"),
        (jnp.asarray([1.0, -1.0]), "positive"),
        (jnp.asarray([1.0, jnp.nan]), "positive"),
        (jnp.asarray([[1.0, 2.0], [2.0, 1.0]]), "positive definite"),
        (jnp.asarray([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (jnp.ones((2, 3)), r"\(2, 3\)"),
        (jnp.ones((2, 2, 2)), r"\(2, 2, 2\)"),
        ("dense", "got str"),
        (LowRankInverseMassMatrix(jnp.ones(3), jnp.ones((2, 1)), jnp.ones(1)), "sigma"),
    ],
)
def test_bad_inverse_mass_matrix(bad, message):
    with pytest.raises(ValueError, match=message):
        as_preconditioner(bad)


def test_low_rank_is_kept_low_rank():
    assert isinstance(as_preconditioner(low_rank()), LowRankPreconditioner)


@pytest.mark.parametrize("spread", [1.0, 1e2, 1e4])
def test_dense_whitens_correlated_noise(spread):
    """The covariance of fresh noise after whitening is that of a sample of the window's size."""
    V = covariance(spread=spread)
    preconditioner, (smallest, largest) = fitted("dense", V)
    F = matrix_of(preconditioner.to_position).astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(F.T @ (V + np.diag(preconditioner.floor)) @ F)
    # Edges for 4000 draws in 6 dimensions: 1 -+ 2 sqrt(6 / 4000) = 0.92, 1.08.
    assert 0.88 < eigenvalues[0] < eigenvalues[-1] < 1.12
    assert 0.88 < smallest < largest < 1.12


def test_diagonal_whitens_variances_and_reports_correlation():
    V = covariance(spread=1e4)
    preconditioner, (smallest, largest) = fitted("diagonal", V)
    F = matrix_of(preconditioner.to_position)
    np.testing.assert_allclose(np.diag(F.T @ V @ F), 1, atol=0.12)
    assert largest / smallest > 50


def test_identity_leaves_noise_alone_and_reports_it():
    V = covariance(spread=100.0)
    preconditioner, (smallest, largest) = fitted("identity", V)
    np.testing.assert_array_equal(matrix_of(preconditioner.to_position), np.eye(D))
    assert 80 < largest / smallest < 125


@pytest.mark.parametrize("name", ["diagonal", "dense"])
def test_silent_parameters_get_the_floor_and_its_noise(name):
    """Parameters without noise: the total of noise and complement is white."""
    V = np.diag([1.0, 1e-6, 1e6, 0.0, 1.0, 0.0])
    preconditioner, _ = fitted(name, V)
    F = matrix_of(preconditioner.to_position).astype(np.float64)
    if name == "dense":
        floor = np.asarray(preconditioner.floor, np.float64)
    else:
        scale = ravel_pytree(preconditioner.scale)[0]
        floor = np.asarray(ravel_pytree(preconditioner.complement)[0] / scale**2, np.float64)
    np.testing.assert_allclose(floor[3], FLOOR * 1.0, rtol=0.3)  # geometric mean 1
    eigenvalues = np.linalg.eigvalsh(F.T @ (V + np.diag(floor)) @ F)
    assert 0.85 < eigenvalues[0] < eigenvalues[-1] < 1.15


@pytest.mark.parametrize("name", ["diagonal", "dense", "kronecker"])
def test_no_noise_at_all_keeps_the_old_map(name):
    preconditioner, _ = fitted(name, np.zeros((D, D)))
    np.testing.assert_allclose(matrix_of(preconditioner.to_position), np.eye(D), atol=1e-6)


def test_dense_uses_variances_until_a_window_holds_enough_draws():
    V = covariance(spread=100.0)
    preconditioner, _ = fitted("dense", V, num_draws=2 * D - 1, num_windows=1)
    F = matrix_of(preconditioner.to_position)
    np.testing.assert_allclose(F, np.diag(np.diag(F)), atol=1e-6)


def test_floor_follows_the_parameters_scales():
    variance = {"a": jnp.asarray([1e-6, 1e6]), "b": jnp.zeros(3)}
    G = geometric_mean(variance)
    np.testing.assert_allclose(G, 1.0, rtol=1e-4)
    floor = noise_floor(variance, {"a": G, "b": G})
    np.testing.assert_allclose(floor["b"], FLOOR, rtol=1e-4)
    np.testing.assert_allclose(floor["a"], [FLOOR, FLOOR * 1e6], rtol=1e-3)


@pytest.mark.parametrize("estimator", [diagonal_estimator(0), dense_estimator()])
def test_rounding_is_not_noise(estimator):
    """A variance at round-off level does not drag the geometric mean down."""
    variance = jnp.asarray([1.0, 1.0, 1e-20])
    preconditioner = estimator.init(variance)
    velocity = preconditioner.to_position(jnp.ones(3))
    np.testing.assert_allclose(velocity[2] / velocity[0], FLOOR**-0.5, rtol=1e-2)
