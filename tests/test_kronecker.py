"""The Kronecker preconditioner: which matrices a tree holds, and whitening them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import blackjax_smile
from blackjax_smile import _tree
from blackjax_smile.preconditioners import KroneckerPreconditioner, kronecker_estimator
from blackjax_smile.preconditioners.kronecker_side import INITIAL_FLOOR
from blackjax_smile.preconditioners.matrix_layout import matrix_layout
from helpers import LinearRegression, assert_moments, sample

pytestmark = pytest.mark.numerics

ROWS, COLUMNS = 7, 4


def spd(seed, d, spread):
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(d, d)))
    return rotation @ np.diag(spread ** np.linspace(-0.5, 0.5, d)) @ rotation.T


def zeros(**shapes):
    return {name: jnp.zeros(shape) for name, shape in shapes.items()}


def fit(noise_fn, like, num_draws=2000, num_windows=3, gradient=None, **options):
    """Run windows of ``noise_fn(key)`` through the estimator; no correlation is known at first.

    ``gradient`` is that of each step, where the floors are to be bounded by it.
    """
    estimator = kronecker_estimator(**options)
    draws = jax.vmap(noise_fn)(jax.random.split(jax.random.key(99), 200))
    preconditioner = estimator.init(jax.tree.map(lambda x: jnp.mean(x**2, axis=0), draws))

    @jax.jit
    def window(key, preconditioner):
        def body(moments, key):
            noise = noise_fn(key)
            moments = estimator.update(moments, noise, preconditioner.whiten(noise))
            if gradient is not None:
                moments = estimator.update_gradient(moments, gradient, None)
            return moments, None

        moments, _ = jax.lax.scan(
            body, estimator.init_statistics(preconditioner), jax.random.split(key, num_draws)
        )
        return estimator.fit(moments, preconditioner)

    for key in jax.random.split(jax.random.key(0), num_windows):
        preconditioner = window(key, preconditioner)
    return preconditioner


def matrix_normal(A, B):
    root_a, root_b = (jnp.asarray(np.linalg.cholesky(M), jnp.float32) for M in (A, B))
    return lambda key: root_a @ jax.random.normal(key, (len(A), len(B))) @ root_b.T


def flat_map(preconditioner, tree):
    """Return F as a matrix on the row-major elements of the tree's only block."""
    layout = matrix_layout(tree)
    (shape,) = {block.shape for block in layout.blocks}
    sides = [[jnp.eye(n)] for n in shape]

    def column(e):
        moved = preconditioner.to_position(layout.map(lambda *_: e.reshape(shape), *sides, tree))
        return layout.to_matrices(moved)[0].ravel()

    F = jax.vmap(column, out_axes=1)(jnp.eye(shape[0] * shape[1]))
    return np.asarray(F, np.float64)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (zeros(kernel=(5, 3), bias=3), {(6, 3)}),
        (zeros(weight=(3, 5), bias=3), {(3, 6)}),
        (zeros(weight=(3, 3), bias=3), {(3, 4)}),
        (zeros(w=(3, 3), b=3), {(4, 3)}),
        (zeros(w1=(5, 3), b1=3, w2=(3, 2), b2=2), {(6, 3), (4, 2)}),
        (zeros(dense_kernel=(5, 3), dense_bias=3), {(6, 3)}),
        (zeros(kernel=(3, 3, 2, 8), bias=8), {(19, 8)}),
        (zeros(weight=(8, 2, 3, 3), bias=(8, 1, 1)), {(8, 19)}),
        (zeros(kernel=(5, 2, 3), bias=(2, 3)), {(6, 6)}),
        (zeros(kernel=(2, 3, 5), bias=(5,)), {(7, 5)}),
        (zeros(kernel=(5, 2, 3), bias=(3, 2)), {(10, 3), (3, 2)}),
        (zeros(kernel=(5, 3), bias=4), {(5, 3), (4, 1)}),
        (zeros(scale=(4,), bias=(4,)), {(4, 1)}),
        (zeros(view=(5, 3), bib=3), {(5, 3), (3, 1)}),
        (jnp.zeros(6), {(6, 1)}),
        (jnp.zeros(()), {(1, 1)}),
        ([(jnp.zeros((5, 3)), jnp.zeros(3)), (jnp.zeros((3, 1)), jnp.zeros(1))], {(6, 3), (4, 1)}),
        ([jnp.zeros((5, 3)), jnp.zeros(3), jnp.zeros(())], {(5, 3), (3, 1), (1, 1)}),
        ({"a": zeros(kernel=(2, 3)), "c": zeros(bias=3)}, {(2, 3), (3, 1)}),
        (zeros(kernel=(0, 3), bias=3), {(1, 3)}),
        (zeros(kernel=(5, 0), bias=0, scale=(2,)), {(2, 1)}),
    ],
)
def test_layout(tree, expected):
    layout = matrix_layout(tree)
    assert {block.shape for block in layout.blocks} == expected
    assert hash(layout) == hash(matrix_layout(tree))
    values = jax.tree.map(
        lambda x: jnp.asarray(np.random.default_rng(x.size).normal(size=x.shape)), tree
    )
    rng = np.random.default_rng(0)
    left, right = (
        [jnp.asarray(rng.normal(size=block.shape[axis])) for block in layout.blocks]
        for axis in (0, 1)
    )
    scaled = [
        a[:, None] * m * b[None]
        for a, m, b in zip(left, layout.to_matrices(values), right, strict=True)
    ]
    # Of vectors the kernel and its bias apart, of matrices the two joined.
    apart = layout.map(lambda a, b, m: a[:, None] * m * b[None], left, right, values)
    full = [[jnp.diag(side) for side in sides] for sides in (left, right)]
    joined = layout.map(lambda A, B, m: A @ m @ B, *full, values)
    for mapped in (apart, joined):
        assert jax.tree.structure(mapped) == jax.tree.structure(values)
        for found, expected in zip(layout.to_matrices(mapped), scaled, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_bias_of_another_dtype_stays_apart(x64):
    tree = {"kernel": jnp.zeros((5, 3), jnp.float32), "bias": jnp.zeros(3, jnp.float64)}
    assert {block.shape for block in matrix_layout(tree).blocks} == {(5, 3), (3, 1)}


def test_another_position_is_an_error():
    preconditioner = kronecker_estimator().init({"kernel": jnp.ones((5, 3))})
    with pytest.raises(ValueError, match=r"\(5, 3\)"):
        preconditioner.to_position({"kernel": jnp.ones((3, 5))})


@pytest.mark.parametrize("spread", [1.0, 1e2, 1e4])
def test_matrix_normal_noise_is_whitened(spread):
    """Eigenvalues of the whitened covariance, floor included, within sampling error of 1.

    The left factor is estimated from 2000 * 4 columns of 7 rows, the right one from
    2000 * 7 rows of 4: edges 1 -+ 2 sqrt(7 / 8000) and 1 -+ 2 sqrt(4 / 14000), whose
    product is within 0.91 and 1.10.
    """
    A, B = spd(0, ROWS, spread), spd(1, COLUMNS, spread)
    tree = jnp.zeros((ROWS, COLUMNS))
    preconditioner = fit(matrix_normal(A, B), tree)
    F = flat_map(preconditioner, tree)
    R = _floor(preconditioner)
    eigenvalues = np.linalg.eigvalsh(F.T @ (np.kron(A, B) + R) @ F)
    assert 0.88 < eigenvalues[0] < eigenvalues[-1] < 1.14


def _floor(preconditioner):
    """R = (A + D_A) (x) (B + D_B) - A (x) B from the sides of the only block."""
    floored, noise = [], []
    for (side,) in (preconditioner.left, preconditioner.right):
        F = np.asarray(side.factor, np.float64)
        F = np.diag(F) if F.ndim == 1 else F
        floored.append(np.linalg.inv(F @ F.T))
        noise.append(floored[-1] - np.diag(np.asarray(side.floor, np.float64)))
    return np.kron(*floored) - np.kron(*noise)


def test_streamed_flip_flop_reaches_the_maximum_likelihood_factors():
    """One window after another agrees with the flip-flop iteration on kept draws."""
    A, B = spd(0, ROWS, 1e2), spd(1, COLUMNS, 1e2)
    draw = matrix_normal(A, B)
    preconditioner = fit(draw, jnp.zeros((ROWS, COLUMNS)), num_draws=4000, num_windows=3)
    keys = jax.random.split(jax.random.split(jax.random.key(0), 3)[-1], 4000)
    N = np.asarray(jax.vmap(draw)(keys), np.float64)
    a, b = np.eye(ROWS), np.eye(COLUMNS)
    for _ in range(20):
        a = np.einsum("kij,jl,kml->im", N, np.linalg.inv(b), N) / (len(N) * COLUMNS)
        b = np.einsum("kji,jl,klm->im", N, np.linalg.inv(a), N) / (len(N) * ROWS)
    (left,), (right,) = preconditioner.left, preconditioner.right
    fitted = [
        np.linalg.inv(np.asarray(s.factor, np.float64) @ np.asarray(s.factor, np.float64).T)
        - np.diag(np.asarray(s.floor, np.float64))
        for s in (left, right)
    ]
    expected = np.kron(a, b)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    # They differ by the floor in the weights (a share of 0.01) and by one step's error.
    np.testing.assert_allclose(np.kron(*fitted) / scale, expected / scale, atol=0.02)


def test_dead_units_are_floored_and_the_total_is_white():
    """Columns and rows without noise (dead units), and a leaf without any."""
    A, B = spd(0, ROWS, 10.0), spd(1, COLUMNS, 10.0)
    A[[2, 5]] = A[:, [2, 5]] = 0
    B[3] = B[:, 3] = 0
    jitter = 1e-30
    inner = matrix_normal(A + jitter * np.eye(ROWS), B + jitter * np.eye(COLUMNS))
    tree = {"kernel": jnp.zeros((ROWS, COLUMNS)), "silent": jnp.zeros((2, 3))}

    def noise_fn(key):
        return {"kernel": inner(key), "silent": jnp.zeros((2, 3))}

    preconditioner = fit(noise_fn, tree)
    assert _tree.all_finite(preconditioner)
    # The silent leaf: all of its whitened variance is the floor's.
    a, b = preconditioner.left[1], preconditioner.right[1]
    np.testing.assert_allclose(a.share, 1, rtol=1e-4)
    G = float(preconditioner.geometric_mean)
    floored = np.kron(np.linalg.inv(a.factor @ a.factor.T), np.linalg.inv(b.factor @ b.factor.T))
    np.testing.assert_allclose(np.diag(floored), a.level * b.level * G, rtol=1e-2)
    one = jnp.ones(())
    draws = jax.vmap(
        lambda key: preconditioner.refresh_noise(key, tree, 0 * one, one, _tree.random_normals)
    )(jax.random.split(jax.random.key(5), 20_000))
    noise = jax.vmap(lambda key: preconditioner.whiten(noise_fn(key)))(
        jax.random.split(jax.random.key(6), 20_000)
    )
    for name in tree:
        total = np.asarray(draws[name] + noise[name], np.float64).reshape(20_000, -1)
        eigenvalues = np.linalg.eigvalsh(total.T @ total / len(total))
        # Sampling alone: (1 -+ sqrt(28 / 20000))^2 = 0.93, 1.08; the fit: see above.
        assert 0.8 < eigenvalues[0] < eigenvalues[-1] < 1.22, name


@pytest.mark.parametrize("scales", [(1e-3, 1e3), (1e-6, 1e-6), (1e5, 1e5)])
def test_scales_of_rows_do_not_matter(scales):
    """Columns of data in other units: the whitened noise is as white, in float32."""
    units = np.geomspace(*scales, ROWS)
    A, B = spd(0, ROWS, 100.0) * np.outer(units, units), spd(1, COLUMNS, 100.0)
    tree = jnp.zeros((ROWS, COLUMNS))
    preconditioner = fit(matrix_normal(A, B), tree)
    F = flat_map(preconditioner, tree)
    eigenvalues = np.linalg.eigvalsh(F.T @ (np.kron(A, B) + _floor(preconditioner)) @ F)
    assert 0.88 < eigenvalues[0] < eigenvalues[-1] < 1.14


def test_small_rows_keep_no_floor_of_large_ones_on_the_way():
    """A row of numbers a million times larger; a gradient a thousand times the noise.

    Once calm, the floor that the gradient does not bound is a share of the typical noise. As a
    share of the mean it was a hundred times the noise of all rows but one.
    """
    units = np.array([1e6, *[1.0] * (ROWS - 1)])
    A, B = np.diag(units**2), np.eye(COLUMNS)
    tree = jnp.zeros((ROWS, COLUMNS))
    gradient = jnp.asarray(1e3 * units[:, None] * np.ones(COLUMNS), jnp.float32)
    preconditioner = fit(matrix_normal(A, B), tree, num_windows=5, gradient=gradient)
    floor = preconditioner.left[0].floor / np.diag(A)
    assert preconditioner.left[0].level < 0.001
    assert np.max(floor) < 0.1


@pytest.mark.parametrize("columns", [1, COLUMNS])
def test_rows_that_few_minibatches_inform(columns):
    """An embedding, its rows in every minibatch or in one of 300: each row moves as it should.

    With nothing but the level's share under a row that a window has missed, the noise that came
    later was 6 times (3 times of four columns) what was promised, and that held the level of all
    at 0.01.
    """
    num_rows = 300
    share = np.geomspace(1, 1 / 300, num_rows)

    def noise_fn(key):
        key_present, key_noise = jax.random.split(key)
        present = jax.random.uniform(key_present, (num_rows, 1)) < jnp.asarray(share)[:, None]
        return present * jax.random.normal(key_noise, (num_rows, columns))

    tree = jnp.zeros((num_rows, columns))
    preconditioner = fit(noise_fn, tree, num_draws=400, num_windows=5)
    keys = jax.random.split(jax.random.key(9), 40_000)
    whitened = jax.vmap(lambda key: jnp.mean(preconditioner.whiten(noise_fn(key)) ** 2, axis=1))
    variance = jax.lax.map(whitened, keys.reshape(40, -1)).mean(axis=(0, 1))
    assert preconditioner.left[0].level < 0.002
    # The size of an event is that of a chi-square of as many degrees of freedom as columns.
    assert 0.05 < np.min(variance) < np.max(variance) < 4


@pytest.mark.parametrize("outputs", [(2,), (2, 2)])
def test_bias_is_whitened_with_its_kernel(outputs):
    """Noise of a dense layer: the bias is correlated with the kernel, and no longer after.

    Outputs of two axes are those of flax's attention, (heads, size).
    """
    mean = np.linspace(1.0, 3.0, 3)
    A = np.block([[np.eye(3) + np.outer(mean, mean), mean[:, None]], [mean[None], np.ones((1, 1))]])
    B = spd(1, int(np.prod(outputs)), 10.0)
    draw = matrix_normal(A, B)
    tree = {"kernel": jnp.zeros((3, *outputs)), "bias": jnp.zeros(outputs)}

    def noise_fn(key):
        noise = draw(key)
        return {"kernel": noise[:-1].reshape(3, *outputs), "bias": noise[-1].reshape(outputs)}

    preconditioner = fit(noise_fn, tree)
    keys = jax.random.split(jax.random.key(7), 10_000)
    whitened = jax.vmap(lambda key: preconditioner.whiten(noise_fn(key)))(keys)
    flat = np.concatenate([x.reshape(len(keys), -1) for x in jax.tree.leaves(whitened)], axis=1)
    correlation = np.corrcoef(flat.T)
    # Standard error 0.01 of a correlation, and as much from the 2000 draws of the fit.
    assert np.max(np.abs(correlation - np.eye(flat.shape[1]))) < 0.09


def test_sides_beyond_the_limit_are_diagonal():
    A, B = spd(0, ROWS, 10.0), spd(1, COLUMNS, 10.0)
    tree = jnp.zeros((ROWS, COLUMNS))
    preconditioner = fit(matrix_normal(A, B), tree, side_limit=5)
    assert preconditioner.left[0].factor.ndim == 1
    assert preconditioner.right[0].factor.ndim == 2
    keys = jax.random.split(jax.random.key(8), 5000)
    noise = jax.vmap(lambda key: preconditioner.whiten(matrix_normal(A, B)(key)))(keys)
    one = jnp.ones(())
    complement = jax.vmap(
        lambda key: preconditioner.refresh_noise(key, tree, 0 * one, one, _tree.random_normals)
    )(keys)
    total = np.asarray(noise + complement, np.float64)
    rows = np.mean(total**2, axis=(0, 2))
    columns = np.einsum("kij,kil->jl", total, total) / (5000 * ROWS)
    # Standard errors 0.02 and 0.01, and what the correlation of the rows adds to them.
    np.testing.assert_allclose(rows, 1, atol=0.1)
    np.testing.assert_allclose(columns, np.eye(COLUMNS), atol=0.1)


def test_few_draws_leave_correlations_alone():
    """A factor of 7 rows from 3 draws of one column: variances only, nothing singular."""
    A = spd(0, ROWS, 1e2)
    preconditioner = fit(matrix_normal(A, np.eye(1)), jnp.zeros((ROWS, 1)), 3, 1)
    factor = np.asarray(preconditioner.left[0].factor)
    gram = np.linalg.inv(factor @ factor.T)
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-4 * gram.max())


@pytest.mark.parametrize("scales", [(1, 1, 1, 1, 1), (1e2, 1, 1, 1, 1e-3)])
def test_posterior_of_a_linear_layer(scales):
    """A regression with several outputs, whose gradient noise is matrix-normal, exactly.

    With inputs of condition number 900 a diagonal map gets the variances wrong by half
    (`test_adaptation.TestPosterior`). The inputs' own scales make no difference; under a floor
    by the mean of all rows the last one would hardly move. Allowed bias: 0.05 deviations and 5 %.
    """
    inputs, outputs, N = 5, 2, 4000
    problem = LinearRegression(d=inputs, data_size=N, spread=30.0)
    X = np.asarray(problem.data[0], np.float64)
    rng = np.random.default_rng(1)
    Y = X @ rng.normal(size=(inputs, outputs)) + 0.5 + rng.normal(size=(N, outputs))
    X = X * scales
    prior_precision = np.square([*scales, 1])
    design = np.concatenate([X, np.ones((N, 1))], axis=1)
    covariance = np.linalg.inv(design.T @ design + np.diag(prior_precision))
    mean = covariance @ design.T @ Y

    def logdensity_fn(layer, minibatch):
        x, y = minibatch
        error = y - x @ layer["kernel"] - layer["bias"][None]
        rows = jnp.concatenate([layer["kernel"], layer["bias"][None]])
        prior = jnp.sum(prior_precision @ rows**2)
        return -0.5 * prior - 0.5 * N * jnp.mean(jnp.sum(error**2, axis=1))

    data = (X.astype(np.float32), Y.astype(np.float32))
    start = {"kernel": mean[:-1].astype(np.float32), "bias": mean[-1].astype(np.float32)}
    draws, _, parameters, info = sample(
        logdensity_fn,
        blackjax_smile.minibatch_sampler(data, 100),
        start,
        2000,
        30_000,
        preconditioner="kronecker",
    )
    assert isinstance(parameters["inverse_mass_matrix"], KroneckerPreconditioner)
    assert info.windows.anisotropy[-1] < 0.7
    flat = jnp.concatenate([draws["kernel"], draws["bias"][:, None]], axis=1)
    variance = np.repeat(np.diag(covariance), outputs)
    assert_moments(flat.reshape(len(flat), -1), mean.ravel(), variance, 0.05, 0.05)


def test_the_floor_falls_where_the_noise_stays_and_rises_where_it_changes():
    """Units that were silent in one window and are not in the next are a surprise."""
    A, B = spd(0, ROWS, 10.0), spd(1, COLUMNS, 10.0)
    quiet = B.copy()
    quiet[3] = quiet[:, 3] = 0
    quiet[3, 3] = 1e-12
    tree = jnp.zeros((ROWS, COLUMNS))
    steady = fit(matrix_normal(A, B), tree)
    levels = [float(side[0].level) for side in (steady.left, steady.right)]
    assert max(levels) < 0.3 * INITIAL_FLOOR
    estimator = kronecker_estimator()
    before = fit(matrix_normal(A, quiet), tree)
    moments = estimator.init_statistics(before)
    awake = jax.vmap(matrix_normal(A, B))(jax.random.split(jax.random.key(1), 500))
    moments, _ = jax.lax.scan(
        lambda moments, noise: (estimator.update(moments, noise, before.whiten(noise)), None),
        moments,
        awake,
    )
    after = estimator.fit(moments, before)
    assert after.right[0].level > 1.4 * before.right[0].level


def test_a_factor_has_the_same_floor_on_either_side():
    """Noise of 4 loud rows of 16, as often as promised: no surprise, transposed or not."""
    scales = jnp.where(jnp.arange(16) < 4, 1.0, 0.03)

    def noise(key):
        return scales[:, None] * jax.random.normal(key, (16, 16))

    rows = fit(noise, jnp.zeros((16, 16)), num_draws=400, num_windows=4)
    columns = fit(lambda key: noise(key).T, jnp.zeros((16, 16)), num_draws=400, num_windows=4)
    for one, other in ((rows.left, columns.right), (rows.right, columns.left)):
        assert one[0].level < 0.001
        np.testing.assert_allclose(one[0].level, other[0].level, rtol=0.05)
