"""The same network from each library, and a NumPyro program: equal log-densities, and a run.

Warnings of the libraries themselves are not ours to fix: see ``filterwarnings``.
"""

import operator

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import blackjax_smile
from helpers import assert_moments, sample

DATA_SIZE, NUM_FEATURES, HIDDEN = 200, 3, 4
rng = np.random.default_rng(0)
X = rng.normal(size=(DATA_SIZE, NUM_FEATURES)).astype(np.float32)
Y = (np.sin(X[:, 0]) + 0.1 * rng.normal(size=DATA_SIZE)).astype(np.float32)
BATCH = (jnp.asarray(X[:20]), jnp.asarray(Y[:20]))


def plain_jax():
    from blackjax_smile import bnn

    return bnn.init_mlp(jax.random.key(0), (NUM_FEATURES, HIDDEN, 1)), bnn.apply_mlp


def flax_linen():
    nn = pytest.importorskip("flax.linen")
    module = nn.Sequential([nn.Dense(HIDDEN), nn.relu, nn.Dense(1)])
    position = module.init(jax.random.key(0), jnp.ones(NUM_FEATURES))["params"]
    return position, lambda position, x: module.apply({"params": position}, x)


def flax_nnx():
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(NUM_FEATURES, HIDDEN, rngs=rngs), nnx.relu,
                           nnx.Linear(HIDDEN, 1, rngs=rngs))  # fmt: skip
    return taken_apart(nnx, model)


def taken_apart(nnx, model):
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)
    position = nnx.to_pure_dict(parameters)

    def apply(position, x):
        # Copies: the module may change what it is made of, as its random state.
        state, others = (jax.tree.map(lambda x: x, part) for part in (parameters, rest))
        nnx.replace_by_pure_dict(state, position)
        return nnx.merge(graph, state, others)(x)

    return position, apply


def equinox():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(NUM_FEATURES, 1, HIDDEN, 1, key=jax.random.key(0))
    # The other part holds what is no array: the activation function, the sizes.
    position, static = eqx.partition(model, eqx.is_inexact_array)
    return position, lambda position, x: eqx.combine(position, static)(x)


NETWORKS = {f.__name__: f for f in (plain_jax, flax_linen, flax_nnx, equinox)}


def gaussian_logdensity(apply):
    def logprior(position):
        return -0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(position))

    def loglikelihood(position, row):
        return -0.5 * ((row[1] - apply(position, row[0])[0]) / 0.1) ** 2

    return blackjax.sgmcmc.gradients.logdensity_estimator(logprior, loglikelihood, DATA_SIZE)


def two_layers(position):
    """Return the matrices and vectors of the network, inputs first, whatever the library."""
    leaves = jax.tree.leaves(position)
    matrices = {tuple(sorted(m.shape, reverse=False)): m for m in leaves if m.ndim == 2}
    first, second = matrices[(NUM_FEATURES, HIDDEN)], matrices[(1, HIDDEN)]
    first = first if first.shape[0] == NUM_FEATURES else first.T
    second = second if second.shape[0] == HIDDEN else second.T
    vectors = {v.size: v for v in leaves if v.ndim == 1}
    return first, vectors[HIDDEN], second, vectors[1]


@pytest.mark.numerics
@pytest.mark.parametrize("library", NETWORKS)
def test_a_network_of_each_library(library):
    """Its log-density is that of the two layers written out, and a run takes its tree."""
    position, apply = NETWORKS[library]()
    logdensity_fn = gaussian_logdensity(apply)
    W, b, V, c = two_layers(position)
    outputs = np.maximum(BATCH[0] @ W + b[None], 0) @ V + c[None]
    squares = sum(float(jnp.sum(leaf**2)) for leaf in (W, b, V, c))
    residuals = np.asarray(BATCH[1] - outputs[:, 0]) / 0.1
    exact = -0.5 * squares - 0.5 * DATA_SIZE * np.mean(residuals**2)
    np.testing.assert_allclose(logdensity_fn(position, BATCH), exact, rtol=1e-4)

    minibatch_fn = blackjax_smile.minibatch_sampler((X, Y), 20)
    draws, infos, _, _ = sample(
        logdensity_fn, minibatch_fn, position, 300, 300, preconditioner="diagonal"
    )
    assert jax.tree.structure(draws) == jax.tree.structure(position)
    assert float(jnp.mean(infos.is_divergent)) < 0.1
    predictions = blackjax_smile.prediction.predictive_mean(
        lambda position, row: apply(position, row[0])[0],
        jax.tree.map(lambda x: x[None], draws),
        BATCH,
    )
    assert np.all(np.isfinite(predictions))


def test_an_nnx_module_that_uses_random_state():
    """A recurrent network draws its first carry, in `eval` as well; dropout is off there."""
    nnx = pytest.importorskip("flax.nnx")

    class Recurrent(nnx.Module):
        def __init__(self, rngs):
            self.rnn = nnx.RNN(nnx.GRUCell(NUM_FEATURES, HIDDEN, rngs=rngs))
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.out = nnx.Linear(HIDDEN, 1, rngs=rngs)

        def __call__(self, x):
            return self.out(self.dropout(self.rnn(x[None])[0, -1]))

    model = Recurrent(nnx.Rngs(0))
    model.eval()
    position, apply = taken_apart(nnx, model)
    batch = (jnp.broadcast_to(BATCH[0][:, None], (20, 5, NUM_FEATURES)), BATCH[1])
    with jax.numpy_rank_promotion("allow"):  # flax adds its biases
        value_and_grad = jax.jit(jax.value_and_grad(gaussian_logdensity(apply)))
        value, gradient = value_and_grad(position, batch)
        again, _ = value_and_grad(position, batch)
        outputs = jnp.stack([model(x)[0] for x in batch[0]])
    squares = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(position))
    exact = -0.5 * squares - 0.5 * DATA_SIZE * jnp.mean(((BATCH[1] - outputs) / 0.1) ** 2)
    np.testing.assert_allclose(value, exact, rtol=1e-4)
    assert value == again
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(gradient))


def test_batch_norm_with_frozen_statistics():
    """The running statistics are constants: rows do not depend on each other, no state changes."""
    nn = pytest.importorskip("flax.linen")
    module = nn.Sequential([nn.Dense(HIDDEN), nn.BatchNorm(use_running_average=True), nn.Dense(1)])
    variables = module.init(jax.random.key(0), jnp.ones((1, NUM_FEATURES)))
    position = variables["params"]
    statistics = jax.tree.map(lambda x: x + 0.5, variables["batch_stats"])

    def apply(position, x):
        return module.apply({"params": position, "batch_stats": statistics}, x)

    logdensity_fn = gaussian_logdensity(apply)
    rows = jax.vmap(lambda row: logdensity_fn(position, jax.tree.map(lambda x: x[None], row)))
    np.testing.assert_allclose(jnp.mean(rows(BATCH)), logdensity_fn(position, BATCH), rtol=1e-5)
    state = blackjax_smile.smile(logdensity_fn, step_size=0.1).init(position, jax.random.key(0))
    assert jax.tree.structure(state.position) == jax.tree.structure(position)


def regression_program(batch):
    numpyro = pytest.importorskip("numpyro")
    dist = numpyro.distributions
    x, y = batch
    weights = numpyro.sample("weights", dist.Normal(0, 1).expand([NUM_FEATURES]).to_event(1))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    numpyro.deterministic("variance", scale**2)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(x @ weights, scale), obs=y)


def test_numpyro_log_density_is_scaled_to_the_data():
    """Against the density written out, on the unconstrained scale."""
    pytest.importorskip("numpyro")
    from jax.scipy.stats import norm

    from blackjax_smile.interop import numpyro_logdensity

    program = numpyro_logdensity(regression_program, DATA_SIZE, BATCH)
    position = program.init_fn(jax.random.key(1))
    w, s = position["weights"], position["scale"]  # s = log scale; LogNormal: s ~ N(0, 1)
    prior = jnp.sum(norm.logpdf(w)) + norm.logpdf(s)
    likelihood = norm.logpdf(BATCH[1], BATCH[0] @ w, jnp.exp(s))
    exact = prior + DATA_SIZE * jnp.mean(likelihood)
    np.testing.assert_allclose(program.logdensity_fn(position, BATCH), exact, rtol=1e-4)
    constrained = program.constrain_fn(position)
    np.testing.assert_allclose(constrained["scale"], jnp.exp(s), rtol=1e-5)
    np.testing.assert_allclose(constrained["variance"], jnp.exp(2 * s), rtol=1e-5)


@jax.numpy_rank_promotion("allow")  # NumPyro broadcasts a row of locations
@pytest.mark.numerics
def test_numpyro_posterior():
    """A conjugate mean: the draws have the exact posterior's moments."""
    numpyro = pytest.importorskip("numpyro")
    from blackjax_smile.interop import numpyro_logdensity

    data = (0.5 + rng.normal(size=(500, 2))).astype(np.float32)

    def model(y):
        mean = numpyro.sample("mean", numpyro.distributions.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("y", numpyro.distributions.Normal(mean, 1.0), obs=y)

    program = numpyro_logdensity(model, len(data), data[:50])
    draws, _, _, _ = sample(
        program.logdensity_fn,
        blackjax_smile.minibatch_sampler(data, 50),
        program.init_fn(jax.random.key(0)),
        5000,  # starts 85 posterior deviations away
        20_000,
    )
    exact = data.astype(np.float64).sum(0) / 501
    assert_moments(draws["mean"], exact, np.full(2, 1 / 501), bias_mean=0.05, bias_variance=0.05)


@pytest.mark.parametrize("likelihood", ["rows", "sum"])
def test_numpyro_scales_what_depends_on_the_rows(likelihood):
    """Not a factor or a constraint of the parameters; nor is a plate of groups one of rows."""
    numpyro = pytest.importorskip("numpyro")
    from blackjax_smile.interop import numpyro_logdensity

    dist = numpyro.distributions
    num_rows, size = 20, 200

    def model(y):
        b = numpyro.sample("b", dist.Normal(0, 10).expand([3]).to_event(1))
        with numpyro.plate("groups", num_rows):
            effects = numpyro.sample("effects", dist.Normal(0, 1))
        numpyro.factor("ridge", -5 * jnp.sum(b**2))
        numpyro.sample("sum_to_zero", dist.Normal(jnp.sum(b), 0.05), obs=0.0)
        mean = jnp.sum(b) + effects[0]
        if likelihood == "rows":
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        else:
            numpyro.factor("y", jnp.sum(dist.Normal(mean, 1.0).log_prob(y)))

    y = jax.random.normal(jax.random.key(0), (num_rows,))
    program = numpyro_logdensity(model, size, y)
    x = {"b": jnp.array([0.1, -0.2, 0.15]), "effects": jnp.linspace(-1, 1, num_rows)}
    norm = jax.scipy.stats.norm.logpdf
    exact = norm(x["b"], 0, 10).sum() + norm(x["effects"]).sum()
    exact += -5 * jnp.sum(x["b"] ** 2) + norm(jnp.sum(x["b"]), 0, 0.05)
    for rows in (y, y[:10]):
        loglikelihood = size * norm(rows, jnp.sum(x["b"]) + x["effects"][0], 1).mean()
        found = program.logdensity_fn(x, rows)
        np.testing.assert_allclose(found, exact + loglikelihood, rtol=1e-5)


def assert_estimate_is_unbiased(model, rows, size):
    """The mean over minibatches is the density of all rows, whose first ones were the example."""
    from numpyro.infer.util import potential_energy

    from blackjax_smile.interop import numpyro_logdensity

    parts = [slice(first, first + size) for first in range(0, len(rows[0]), size)]
    batches = [jax.tree.map(operator.itemgetter(part), rows) for part in parts]
    program = numpyro_logdensity(model, len(rows[0]), batches[0])
    for key in jax.random.split(jax.random.key(1), 3):
        position = program.init_fn(key)
        exact = -potential_energy(model, (rows,), {}, position)
        found = np.mean([program.logdensity_fn(position, batch) for batch in batches])
        np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_numpyro_rows_of_a_kind_that_the_example_lacks():
    """Sorted by status, as censored times often are: the sum of the others is zero there."""
    numpyro = pytest.importorskip("numpyro")
    t = jnp.asarray(np.random.default_rng(1).exponential(size=320), jnp.float32)
    event = jnp.arange(320) < 64

    def model(rows):
        t, event = rows
        rate = numpyro.sample("rate", numpyro.distributions.LogNormal(0.0, 1.0))
        numpyro.factor("events", jnp.sum(jnp.where(event, jnp.log(rate) - rate * t, 0.0)))
        numpyro.factor("censored", jnp.sum(jnp.where(event, 0.0, -rate * t)))

    assert_estimate_is_unbiased(model, (t, event), 64)


def test_numpyro_prior_of_the_rows_shape_or_variance():
    """Neither makes a factor of the parameters one of the rows."""
    numpyro = pytest.importorskip("numpyro")
    from blackjax_smile.interop import numpyro_logdensity

    dist = numpyro.distributions

    def model(rows):
        (y,) = rows
        b = numpyro.sample("b", dist.Normal(0, jnp.std(y) / len(y)))
        numpyro.factor("ridge", -5 * jnp.mean(jnp.full_like(y, 3.0)) * b**2)
        numpyro.sample("y", dist.Normal(b, 1.0), obs=y)

    y = jnp.asarray(np.random.default_rng(3).normal(size=100), jnp.float32)
    program = numpyro_logdensity(model, 1000, (y,))
    norm = jax.scipy.stats.norm.logpdf
    exact = norm(0.3, 0, jnp.std(y) / 100) - 15 * 0.3**2 + 10 * jnp.sum(norm(y, 0.3))
    np.testing.assert_allclose(program.logdensity_fn({"b": 0.3}, (y,)), exact, rtol=1e-5)


def test_numpyro_means_over_the_rows_are_not_scaled():
    """Of 100 rows: twice over, their mean differs in its last digit."""
    numpyro = pytest.importorskip("numpyro")
    dist = numpyro.distributions

    def model(rows):
        y, other = rows
        b = numpyro.sample("b", dist.Normal(0, 1))
        numpyro.factor("mean", 1000 * jnp.mean(dist.Normal(b, 1.0).log_prob(other)))
        numpyro.sample("y", dist.Normal(b, 1.0), obs=y)

    rows = jnp.asarray(np.random.default_rng(2).normal(size=(2, 1000)), jnp.float32)
    assert_estimate_is_unbiased(model, tuple(rows), 100)


def test_numpyro_supports_that_depend_on_another_site():
    """The density is NumPyro's own, at every start that the prior gives."""
    numpyro = pytest.importorskip("numpyro")
    from blackjax_smile.interop import numpyro_logdensity

    dist = numpyro.distributions

    def model(y):
        a = numpyro.sample("a", dist.HalfNormal(1.0))
        b = numpyro.sample("b", dist.Uniform(0, a))
        c = numpyro.sample("c", dist.TruncatedNormal(0.0, 1.0, low=b))
        numpyro.sample("y", dist.Normal(b + c, 1.0), obs=y)

    y = jax.random.normal(jax.random.key(0), (40,))
    program = numpyro_logdensity(model, 40, y[:8])
    for key in jax.random.split(jax.random.key(1), 20):
        x = program.init_fn(key)
        exact = -numpyro.infer.util.potential_energy(model, (y,), {}, x)
        assert jnp.isfinite(exact)
        np.testing.assert_allclose(program.logdensity_fn(x, y), exact, rtol=1e-5)
        values = program.constrain_fn(x)
        assert 0 < values["b"] < values["a"]
        assert values["c"] > values["b"]


def test_numpyro_programs_that_cannot_be_sampled():
    numpyro = pytest.importorskip("numpyro")
    from blackjax_smile.interop import numpyro_logdensity

    dist = numpyro.distributions

    def discrete(y):
        label = numpyro.sample("label", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(label, 1.0), obs=y)

    def local(y):
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Normal(0, 1))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def constraint(y):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("near_one", dist.Normal(z, 0.1), obs=1.0)

    def support_of_rows(y):
        low = numpyro.sample("low", dist.Uniform(-5.0, jnp.min(y)))
        numpyro.sample("y", dist.Uniform(low, 10.0), obs=y)

    def prior_with_some_rows(y):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.factor("both", jnp.sum(jnp.where(y > 99, z, 0.0)) - z**2)
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def subsampled(y):
        z = numpyro.sample("z", dist.Normal(0, 1))
        with numpyro.plate("rows", 100, subsample_size=len(y)):
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    for model, message in (
        (subsampled, r"plates \['rows'\] have a subsample_size"),
        (prior_with_some_rows, r"\['both'\] are computed from the rows, but have one value"),
        (support_of_rows, r"supports of the sites \['low'\] depend on the rows"),
        (discrete, "Discrete sites"),
        (local, "a variable for each row"),
        (lambda y: numpyro.sample("z", dist.Normal(0, 1)), "observes no row"),
        (constraint, "observes no row"),
    ):
        with pytest.raises(ValueError, match=message):
            numpyro_logdensity(model, 100, jnp.arange(7.0))


@pytest.mark.parametrize("label", [-1, 3, 100])
def test_a_label_that_is_no_class_is_no_number(label):
    """JAX would take the last class for it."""
    from blackjax_smile import bnn

    network = bnn.classification_network(2, 3)
    position = network.init(jax.random.key(0))
    assert jnp.isnan(network.loglikelihood(position, (jnp.ones(2), label)))
    values = [network.loglikelihood(position, (jnp.ones(2), c)) for c in range(3)]
    np.testing.assert_allclose(jnp.sum(jnp.exp(jnp.stack(values))), 1, rtol=1e-5)
