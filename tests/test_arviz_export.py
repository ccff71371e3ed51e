from typing import NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.util import run_inference_algorithm, thin_algorithm

import blackjax_smile
from blackjax_smile.arviz_export import import_arviz, to_arviz

NUM_CHAINS, NUM_DRAWS = 3, 40
STATISTICS = {
    "lp": "logdensity",
    "diverging": "is_divergent",
    "energy_error": "energy_change",
    "kinetic_change": "kinetic_change",
    "deflection": "deflection",
    "alignment": "alignment",
}


class Layer(NamedTuple):
    weights: jax.Array
    bias: jax.Array


POSITIONS = {
    "array": (jnp.ones(4), {"x": (4,)}),
    "dict": ({"weights": jnp.ones((3, 2)), "bias": jnp.ones(2)}, {"weights": (3, 2), "bias": (2,)}),
    "nested dict": (
        {"layer": {"weights": jnp.ones((3, 2))}, "scale": jnp.ones(())},
        {"layer.weights": (3, 2), "scale": ()},
    ),
    "tuple": ((jnp.ones(3), {"b": jnp.ones(2)}), {"x.0": (3,), "x.1.b": (2,)}),
    "list in dict": ({"w": [jnp.ones(3), jnp.ones(())]}, {"w.0": (3,), "w.1": ()}),
    "namedtuple": (Layer(jnp.ones((3, 2)), jnp.ones(2)), {"weights": (3, 2), "bias": (2,)}),
    "named by slashes": ({"mlp/w": jnp.ones(3)}, {"mlp.w": (3,)}),
    "a variable called position": ({"position": jnp.ones(3)}, {"position": (3,)}),
}


@pytest.fixture(scope="module")
def az():
    return import_arviz()


def logdensity_fn(position):
    return -0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(position))


def chains_of(algorithm, chains, draws, position):
    """Return the history of one chain, or of several vmapped ones."""

    def chain(key):
        return run_inference_algorithm(key, algorithm, draws, initial_position=position)[1]

    key = jax.random.key(0)
    return chain(key) if chains is None else jax.vmap(chain)(jax.random.split(key, chains))


@pytest.fixture(scope="module")
def history():
    algorithm = blackjax_smile.smile(logdensity_fn, L=2.0, step_size=0.5)
    return chains_of(algorithm, NUM_CHAINS, NUM_DRAWS, POSITIONS["dict"][0])


def made_up(position, chains=NUM_CHAINS, draws=NUM_DRAWS):
    """Return a history of random numbers: what is exported does not depend on the run."""
    rng = np.random.default_rng(0)
    leading = (draws,) if chains is None else (chains, draws)

    def random(like=None):
        shape, dtype = ((), jnp.float32) if like is None else (like.shape, like.dtype)
        return jnp.asarray(rng.normal(size=leading + shape), dtype)

    position = jax.tree.map(random, position)
    state, info = blackjax_smile.SmileState, blackjax_smile.SmileInfo
    states = state(**dict.fromkeys(state._fields))._replace(position=position, logdensity=random())
    statistics = {field: random() for field in STATISTICS.values()}
    return states, info(**dict.fromkeys(info._fields))._replace(**statistics)


def group_names(data):
    groups = data.groups() if callable(data.groups) else data.groups
    return {name.strip("/") for name in groups} - {""}


@pytest.mark.parametrize("chains", [None, NUM_CHAINS], ids=["one chain", "several chains"])
@pytest.mark.parametrize("kind", POSITIONS)
def test_positions_become_named_variables(kind, chains):
    position, shapes = POSITIONS[kind]
    states, infos = made_up(position, chains)
    data = to_arviz(states, infos)
    posterior = data["posterior"]
    assert set(posterior.data_vars) == set(shapes)
    # ArviZ keeps the order of the variables, which is the tree's.
    leaves = jax.tree.leaves(states.position)
    for name, leaf in zip(posterior.data_vars, leaves, strict=True):
        assert posterior[name].dims[:2] == ("chain", "draw")
        assert posterior[name].shape == (chains or 1, NUM_DRAWS, *shapes[name])
        np.testing.assert_array_equal(posterior[name].values, leaf if chains else leaf[None])


def test_statistics_equal_the_infos(history):
    stats = to_arviz(*history)["sample_stats"]
    assert set(stats.data_vars) == set(STATISTICS)
    for name, field in STATISTICS.items():
        assert stats[name].dims == ("chain", "draw")
        np.testing.assert_array_equal(stats[name].values, getattr(history[1], field))
    assert stats["diverging"].dtype == bool
    assert "minibatch" in stats["lp"].attrs["comment"]


def test_counts_of_rejected_steps_are_flags_and_counts(history):
    states, infos = history
    counts = jnp.zeros(infos.is_divergent.shape, jnp.int32).at[0, 3].set(2)
    stats = to_arviz(states, infos._replace(is_divergent=counts))["sample_stats"]
    np.testing.assert_array_equal(stats["num_rejected"].values, counts)
    assert stats["diverging"].dtype == bool
    np.testing.assert_array_equal(stats["diverging"].values, np.asarray(counts) > 0)


def test_an_infinite_energy_error_is_kept(history):
    states, infos = history
    infos = infos._replace(energy_change=infos.energy_change.at[0, 3].set(jnp.inf))
    stats = to_arviz(states, infos)["sample_stats"]
    assert stats["energy_error"].values[0, 3] == np.inf


def test_without_infos_the_log_density_comes_from_the_states(history):
    data = to_arviz(history[0])
    assert set(data["sample_stats"].data_vars) == {"lp"}
    np.testing.assert_array_equal(data["sample_stats"]["lp"].values, history[0].logdensity)


def test_attributes_name_the_library(history):
    data = to_arviz(*history, attrs={"model": "normal"})
    for holder in (data, data["posterior"], data["sample_stats"]):
        assert holder.attrs["inference_library"] == "blackjax_smile"
        assert holder.attrs["inference_library_version"] == blackjax_smile.__version__
        assert holder.attrs["model"] == "normal"


def test_dims_and_coords():
    states, infos = made_up(POSITIONS["nested dict"][0])
    data = to_arviz(
        states,
        infos,
        dims={"layer.weights": ("feature", "output")},
        coords={"feature": ["a", "b", "c"]},
    )
    weights = data["posterior"]["layer.weights"]
    assert weights.dims == ("chain", "draw", "feature", "output")
    assert list(weights.coords["feature"].values) == ["a", "b", "c"]
    chosen = weights.sel(feature="b").values
    np.testing.assert_array_equal(chosen, states.position["layer"]["weights"][..., 1, :])


def test_var_name():
    states, infos = made_up(POSITIONS["array"][0])
    assert set(to_arviz(states, infos, var_name="theta")["posterior"].data_vars) == {"theta"}
    states, infos = made_up(POSITIONS["tuple"][0])
    names = to_arviz(states, infos, var_name="theta")["posterior"].data_vars
    assert set(names) == {"theta.0", "theta.1.b"}


def test_a_history_of_positions_alone(history):
    states, infos = history
    data = to_arviz(states.position, infos)
    np.testing.assert_array_equal(data["posterior"]["bias"].values, states.position["bias"])
    assert set(data["sample_stats"].data_vars) == set(STATISTICS)


def test_gradients_in_the_infos_are_left_out(history):
    states, infos = history
    infos = infos._replace(gradient=(states.position, states.position))
    assert set(to_arviz(states, infos)["sample_stats"].data_vars) == set(STATISTICS)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_becomes_single(dtype):
    states, infos = made_up({"w": jnp.ones(3, dtype), "b": jnp.ones(2)})
    posterior = to_arviz(states, infos)["posterior"]
    assert posterior["w"].dtype == np.float32
    np.testing.assert_array_equal(posterior["w"].values, states.position["w"].astype(jnp.float32))


def test_double_precision_is_kept(x64):
    states, infos = made_up(jnp.ones(3, jnp.float64))
    data = to_arviz(states, infos)
    assert data["posterior"]["x"].dtype == np.float64


@pytest.mark.parametrize("kind", ["dict", "nested dict"])
def test_netcdf_round_trip(az, tmp_path, kind):
    states, infos = made_up(POSITIONS[kind][0])
    infos = infos._replace(energy_change=infos.energy_change.at[0, 0].set(jnp.inf))
    data = to_arviz(states, infos)
    path = tmp_path / "posterior.nc"
    data.to_netcdf(str(path))
    loaded = az.from_netcdf(str(path))
    for group in ("posterior", "sample_stats"):
        for name in data[group].data_vars:
            np.testing.assert_array_equal(loaded[group][name].values, data[group][name].values)
    assert loaded["posterior"].attrs["inference_library"] == "blackjax_smile"
    assert "minibatch" in loaded["sample_stats"]["lp"].attrs["comment"]


def test_arviz_summarises(az, history):
    data = to_arviz(*history)
    summary = az.summary(data)
    assert "bias[0]" in summary.index
    assert len(summary) == 8
    ess = az.ess(data)
    ess = ess if hasattr(ess, "data_vars") else ess["posterior"]
    assert np.all(np.asarray(ess["bias"]) > 0)


@pytest.mark.parametrize("chains", [None, NUM_CHAINS], ids=["one chain", "several chains"])
def test_loo_and_further_groups(az, chains):
    observed = jax.random.normal(jax.random.key(1), (20,))
    states, infos = made_up(jnp.zeros(2), chains, draws=200)
    mean = 0.1 * np.asarray(states.position)[..., :1]
    observed = np.asarray(observed)
    pointwise = -0.5 * (observed - mean) ** 2
    data = to_arviz(
        states,
        infos,
        log_likelihood={"y": pointwise},
        posterior_predictive={"y": mean + 0 * observed},
        observed_data={"y": observed},
        dims={"y": ["row"]},
    )
    wanted = {"posterior", "sample_stats", "log_likelihood", "posterior_predictive"}
    assert group_names(data) == wanted | {"observed_data"}
    assert data["observed_data"]["y"].dims == ("row",)
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "row")
    loo = az.loo(data)
    estimate = loo.elpd_loo if hasattr(loo, "elpd_loo") else loo.elpd
    log_mean = jax.nn.logsumexp(pointwise.reshape(-1, 20), axis=0) - np.log(pointwise.size / 20)
    # The mean moves by 0.1 standard errors: leaving a row out changes next to nothing.
    assert float(estimate) == pytest.approx(float(log_mean.sum()), abs=0.3)


def sgld_history(chains, schedule=False):
    data = jax.random.normal(jax.random.key(0), (100, 2))
    algorithm = blackjax_smile.with_minibatches(
        blackjax.sgld(lambda position, batch: 50.0 * (jnp.mean(batch, axis=0) - position)),
        blackjax_smile.minibatch_sampler(data, 10),
        (lambda count: 1e-3 / (1 + count)) if schedule else 1e-3,
    )
    return chains_of(algorithm, chains, NUM_DRAWS, jnp.zeros(2))


@pytest.mark.parametrize("chains", [None, NUM_CHAINS], ids=["one chain", "several chains"])
def test_a_history_without_scalars_needs_to_be_told(chains):
    states, infos = sgld_history(chains)
    with pytest.raises(ValueError, match="chain_axis"):
        to_arviz(states, infos)
    data = to_arviz(states, infos, chain_axis=chains is not None)
    assert data["posterior"]["x"].shape == (chains or 1, NUM_DRAWS, 2)
    assert group_names(data) == {"posterior"}


@pytest.mark.parametrize("chains", [None, NUM_CHAINS], ids=["one chain", "several chains"])
def test_a_scheduled_state_shows_its_axes(chains):
    states, infos = sgld_history(chains, schedule=True)
    data = to_arviz(states, infos)
    assert data["posterior"]["x"].shape == (chains or 1, NUM_DRAWS, 2)
    np.testing.assert_array_equal(np.squeeze(data["posterior"]["x"].values), states.state)


@pytest.mark.parametrize("name", ["mclmc", "nuts"])
def test_other_algorithms_of_blackjax(name):
    parameters = {"mclmc": {"L": 2.0}, "nuts": {"inverse_mass_matrix": jnp.ones(3)}}[name]
    algorithm = getattr(blackjax, name)(logdensity_fn, step_size=0.5, **parameters)
    _, (states, infos) = run_inference_algorithm(
        jax.random.key(0), algorithm, NUM_DRAWS, initial_position=jnp.ones(3)
    )
    stats = to_arviz(states, infos)["sample_stats"]
    np.testing.assert_array_equal(stats["lp"].values[0], states.logdensity)
    assert ("energy_error" in stats) == (name == "mclmc")
    assert ("diverging" in stats) == (name == "nuts")
    assert "energy" not in stats


def thinned(info_transform):
    algorithm = blackjax_smile.smile(logdensity_fn, L=2.0, step_size=0.5)
    algorithm = thin_algorithm(algorithm, 5, info_transform)
    return run_inference_algorithm(
        jax.random.key(0), algorithm, NUM_DRAWS, initial_position=jnp.ones(3)
    )[1]


def test_a_thinned_run():
    data = to_arviz(*thinned(lambda info: jax.tree.map(lambda leaf: leaf[-1], info)))
    assert data["posterior"]["x"].shape == (1, NUM_DRAWS, 3)
    with pytest.raises(ValueError, match="info_transform"):
        to_arviz(*thinned(lambda info: info))


def test_mismatches_are_errors(history):
    states, infos = history
    short = jax.tree.map(lambda leaf: leaf[:, :-1], infos)
    with pytest.raises(ValueError, match=r"shape \(3, 39\).*\(3, 40\)"):
        to_arviz(states, short)
    with pytest.raises(ValueError, match=r"log_likelihood.*\(chain, draw\)"):
        to_arviz(states, infos, log_likelihood={"y": np.zeros((NUM_DRAWS, 7))})
    with pytest.raises(ValueError, match="single step"):
        to_arviz(jax.tree.map(lambda leaf: leaf[0, 0], states))
    with pytest.raises(ValueError, match="no array"):
        to_arviz(states._replace(position={}), infos)


@pytest.mark.parametrize("group", ["log_likelihood", "posterior_predictive", "observed_data"])
def test_a_group_that_is_no_dict(history, group):
    with pytest.raises(ValueError, match=rf"{group} must be a dict .*\{{'y': array\}}"):
        to_arviz(*history, **{group: np.zeros((NUM_CHAINS, NUM_DRAWS, 7))})


def test_a_result_has_a_method_of_its_own():
    result = blackjax_smile.SampleResult(*[None] * len(blackjax_smile.SampleResult._fields))
    with pytest.raises(ValueError, match=r"got a SampleResult.*result\.to_arviz\(\)"):
        to_arviz(result)


@pytest.mark.parametrize("kind", ["ensemble", "dict", "swapped"])
def test_infos_that_are_none(history, kind):
    states, infos = history
    given = {
        # Of sample_ensemble's result, without taking it apart.
        "ensemble": (jax.tree.map(lambda leaf: leaf[:, 0], states), (states.position, infos)),
        "dict": (states.position, infos._asdict()),
        "swapped": (infos, states),
    }
    with pytest.raises(ValueError, match=r"it is to_arviz\(positions, infos\)"):
        to_arviz(*given[kind], chain_axis=None if kind == "ensemble" else True)


def test_bad_names_are_errors(history):
    states, infos = history
    with pytest.raises(ValueError, match=r"\['weigths'\].*'weights'"):
        to_arviz(states, infos, dims={"weigths": ["feature"]})
    with pytest.raises(ValueError, match=r"dims\['bias'\] must be a list such as \['unit'\]"):
        to_arviz(states, infos, dims={"bias": "unit"})
    with pytest.raises(ValueError, match=r"coords names \['unit'\], but no variable"):
        to_arviz(states, infos, coords={"unit": [1, 2]})
    with pytest.raises(ValueError, match="chain_axis must be True, False or None, got 'chain'"):
        to_arviz(states, infos, chain_axis="chain")
    leaf = states.position["bias"]
    with pytest.raises(ValueError, match=r"'a\.b'"):
        to_arviz(states._replace(position={"a": {"b": leaf}, "a/b": leaf}), infos)
    with pytest.raises(ValueError, match="'draw'"):
        to_arviz(states._replace(position={"draw": leaf}), infos)
