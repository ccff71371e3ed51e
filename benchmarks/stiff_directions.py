"""Directions that something other than the data holds: hyperparameters in any units, tight priors.

    python benchmarks/stiff_directions.py

`slopes`: three coefficients that vary over 30 groups, 10 000 rows; their means and the logarithms
of their deviations are unknown, each of the two one vector; the columns in units of 1, ``--units``
and its inverse. `one vector`: the same, all parameters in one leaf. The reference is full-batch
NUTS with everything in units of 1. `coefficient`: a linear regression of 30 coefficients, one of
prior deviation 1e-3; its start is 1000 of these away, and the reference exact.

shift        largest difference of a mean, in posterior deviations
deviations   range of the deviations over those of the reference
smallest ess of any parameter, of the draws that are kept
rhat         largest of any parameter
"""

import argparse

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from full_batch_nuts import nuts_chain
from jax.flatten_util import ravel_pytree
from posterior_scores import differences, flat
from tables import report

import blackjax_smile

NUM_ROWS, NUM_GROUPS, NUM_COEFFICIENTS = 10_000, 30, 30
MAPS = ("dense", "diagonal", "low_rank", "kronecker")


def make_slopes():
    """Return rows in units of 1."""
    rng = np.random.default_rng(16)
    group = rng.integers(0, NUM_GROUPS, NUM_ROWS)
    x = rng.normal(size=(NUM_ROWS, 3))
    x[:, 0] = 1
    slopes = np.array([1, 0.5, -0.3]) + rng.normal(size=(NUM_GROUPS, 3)) * [0.8, 0.4, 0.2]
    y = np.sum(x * slopes[group], axis=1) + rng.normal(size=NUM_ROWS)
    return jnp.asarray(x, jnp.float32), jnp.asarray(group), jnp.asarray(y, jnp.float32)


def slopes_start():
    zeros = jnp.zeros(3)
    return {
        "slopes": jnp.zeros((NUM_GROUPS, 3)),
        "mean": zeros,
        "log_scale": zeros,
        "log_noise": jnp.zeros(()),
    }


def slopes_logprior(p, units):
    """On a column in units of u a coefficient is 1 / u times as large; log-scales are relative."""
    scaled = (p["slopes"] - p["mean"]) * units * jnp.exp(-p["log_scale"])
    logprior = -0.5 * jnp.sum(scaled**2) - NUM_GROUPS * jnp.sum(p["log_scale"])
    logprior -= 0.5 * jnp.sum((p["mean"] * units / 2) ** 2) + 0.5 * jnp.sum(p["log_scale"] ** 2)
    return logprior - 0.5 * p["log_noise"] ** 2


def slopes_loglikelihood(p, row):
    x, group, y = row
    residual = (y - x @ p["slopes"][group]) * jnp.exp(-p["log_noise"])
    return -0.5 * residual**2 - p["log_noise"]


def in_units_of_one(p, units):
    return {**p, "slopes": p["slopes"] * units, "mean": p["mean"] * units}


def reference(rows):
    def logdensity(p):
        loglikelihood = jax.vmap(slopes_loglikelihood, (None, 0))(p, rows)
        return slopes_logprior(p, jnp.ones(3)) + jnp.sum(loglikelihood)

    @jax.jit
    def chain(key):
        return nuts_chain(key, slopes_start(), logdensity, 800, 1000, lambda s, _: s.position)

    chains = [chain(key) for key in jax.random.split(jax.random.key(2), 4)]
    draws = flat(jax.tree.map(lambda *x: jnp.stack(x), *chains))
    return draws.mean((0, 1)), draws.std((0, 1))


def compare(draws: np.ndarray, mean, deviation) -> dict:
    scaled = (draws - mean) / deviation
    return {
        **differences(draws, mean, deviation),
        "smallest ess": float(np.min(blackjax.ess(scaled))),
        "rhat": float(np.max(blackjax.rhat(scaled))),
    }


def run(logdensity_fn, start, rows, preconditioner, args):
    result = blackjax_smile.sample(
        jax.random.key(7),
        logdensity_fn,
        jax.tree.map(lambda x: jnp.broadcast_to(x, (4, *x.shape)), start),
        blackjax_smile.minibatch_sampler(rows, 200),
        num_warmup=args.num_warmup,
        num_samples=args.num_steps // 20,
        thinning=20,
        preconditioner=preconditioner,
        progress_bar=False,
    )
    return result.positions


def run_slopes(rows, units, preconditioner, in_one_vector: bool, args) -> np.ndarray:
    x, group, y = rows
    start = slopes_start()
    vector, unravel = ravel_pytree(start)
    as_tree = unravel if in_one_vector else (lambda p: p)
    logdensity_fn = blackjax.sgmcmc.gradients.logdensity_estimator(
        lambda p: slopes_logprior(as_tree(p), units),
        lambda p, row: slopes_loglikelihood(as_tree(p), row),
        NUM_ROWS,
    )
    start = vector if in_one_vector else start
    draws = run(logdensity_fn, start, (x * units, group, y), preconditioner, args)
    return flat(jax.vmap(jax.vmap(lambda p: in_units_of_one(as_tree(p), units)))(draws))


def run_coefficient(preconditioner, args) -> dict:
    rng = np.random.default_rng(0)
    d = NUM_COEFFICIENTS
    precision = np.ones(d)
    precision[3] = 1e6
    X = rng.normal(size=(NUM_ROWS, d)).astype(np.float32)
    y = (X @ (rng.normal(size=d) * (precision == 1)) + rng.normal(size=NUM_ROWS)).astype(np.float32)
    logdensity_fn = blackjax.sgmcmc.gradients.logdensity_estimator(
        lambda w: -0.5 * jnp.sum(jnp.asarray(precision, jnp.float32) * w**2),
        lambda w, row: -0.5 * (row[1] - row[0] @ w) ** 2,
        NUM_ROWS,
    )
    covariance = np.linalg.inv(X.T.astype(np.float64) @ X + np.diag(precision))
    mean = covariance @ (X.T.astype(np.float64) @ y)
    start = jnp.zeros(d).at[3].set(1.0)
    draws = run(logdensity_fn, start, (jnp.asarray(X), jnp.asarray(y)), preconditioner, args)
    return compare(np.asarray(draws, np.float64), mean, np.sqrt(np.diag(covariance)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", nargs="+", type=float, default=[1.0, 30.0, 1000.0])
    parser.add_argument("--preconditioners", nargs="+", default=list(MAPS), choices=MAPS)
    parser.add_argument("--num-warmup", type=int, default=4000)
    parser.add_argument("--num-steps", type=int, default=20_000, help="after the warmup")
    parser.add_argument("--output", help="CSV file")
    args = parser.parse_args()
    rows, table = make_slopes(), []
    mean, deviation = reference(rows)
    cases = [(unit, False) for unit in args.units] + [(1.0, True)]
    for preconditioner in args.preconditioners:
        for unit, in_one_vector in cases:
            units = jnp.asarray([1.0, unit, 1 / unit])
            draws = run_slopes(rows, units, preconditioner, in_one_vector, args)
            name = "slopes, one vector" if in_one_vector else f"slopes, units of {unit:g}"
            row = compare(draws, mean, deviation)
            table.append({"model": name, "map": preconditioner, **row})
        row = run_coefficient(preconditioner, args)
        table.append({"model": "coefficient", "map": preconditioner, **row})
    report(table, args.output)


if __name__ == "__main__":
    main()
