"""Thousands of group effects: where they start, crossed effects, hyperparameters in any units.

    python benchmarks/large_hierarchies.py

Effects centred, sizes of the groups by Zipf's law, four chains, batch 500, nothing set by hand.

intercepts   3000 groups, 100 000 binary rows; the effects start at zero, or spread as their prior
             is at a scale of 1
crossed      2000 times 500 groups, 100 000 rows; as one writes it, or with the second family's
             mean subtracted in the likelihood; both start spread around the mean
slopes       three coefficients that vary over 800 groups, 40 000 rows, columns in units of 1 or
             of 1, 30 and 1 / 30; their means are one vector, and so are the logarithms of their
             deviations

shift, deviations   largest difference of a mean, in deviations, and range of the deviations over
                    those of full-batch NUTS (two chains from the mean of the draws, diagonal
                    metric in their deviations): hyperparameters and slopes
smallest ess, rhat  smallest and largest of all parameters; of the second family, where its mean
                    is subtracted, of what is left
median ess          of the same
nuts ess            smallest of those that are compared
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from full_batch_nuts import nuts_chain
from jax.flatten_util import ravel_pytree
from posterior_scores import differences, flat
from tables import report

import blackjax_smile

NUM_CHAINS, BATCH_SIZE = 4, 500


class Model(NamedTuple):
    """``start`` has a leading axis of chains; NUTS is asked for what ``compared`` names."""

    rows: tuple
    logprior_fn: Callable
    loglikelihood_fn: Callable
    start: dict
    compared: tuple[str, ...]
    look_at: Callable = lambda p: p


def zipf_groups(rng, num_groups: int, num_rows: int):
    """Half of the rows by Zipf's law, half evenly."""
    weights = 1 / np.arange(1, num_groups + 1) ** 1.1
    weights = 0.5 * weights / weights.sum() + 0.5 / num_groups
    return rng.choice(num_groups, size=num_rows, p=weights).astype(np.int32)


def normal(x, log_scale=0.0):
    """Log-density of independent normal numbers of mean zero, up to a constant."""
    scaled = x * jnp.exp(-log_scale)
    return jnp.sum(-0.5 * scaled**2 - log_scale)


def intercepts(is_spread: bool) -> Model:
    rng, num_groups, num_rows = np.random.default_rng(32), 3000, 100_000
    group, x = zipf_groups(rng, num_groups, num_rows), rng.normal(size=(num_rows, 3))
    eta = -1 + 0.7 * rng.normal(size=num_groups)[group] + x @ [0.5, -0.3, 0]
    y = (rng.random(num_rows) < 1 / (1 + np.exp(-eta))).astype(np.float32)

    def logprior_fn(p):
        effects = normal(p["effects"] - p["mean"], p["log_scale"])
        return effects + normal(p["mean"] / 2) + normal(p["log_scale"]) + normal(p["slopes"] / 2)

    def loglikelihood_fn(p, row):
        x, group, y = row
        eta = p["effects"][group] + x @ p["slopes"]
        return y * eta - jnp.logaddexp(0.0, eta)

    effects = jax.random.normal(jax.random.key(1), (NUM_CHAINS, num_groups))
    start = {
        "effects": effects if is_spread else jnp.zeros_like(effects),
        "slopes": jnp.zeros((NUM_CHAINS, 3)),
        "mean": jnp.zeros(NUM_CHAINS),
        "log_scale": jnp.zeros(NUM_CHAINS),
    }
    rows = (x.astype(np.float32), group, y)
    return Model(rows, logprior_fn, loglikelihood_fn, start, ("slopes", "mean", "log_scale"))


def crossed(is_subtracted: bool) -> Model:
    rng, sizes, num_rows = np.random.default_rng(33), (2000, 500), 100_000
    users, items = (zipf_groups(rng, size, num_rows) for size in sizes)
    x = rng.normal(size=(num_rows, 2))
    y = 2 + 0.6 * rng.normal(size=sizes[0])[users] + 0.4 * rng.normal(size=sizes[1])[items]
    y += x @ [0.3, -0.2] + rng.normal(size=num_rows)

    def items_of(p):
        return p["items"] - jnp.mean(p["items"]) if is_subtracted else p["items"]

    def logprior_fn(p):
        users = normal(p["users"] - p["mean"], p["log_users"])
        effects = users + normal(p["items"], p["log_items"])
        scales = normal(jnp.stack([p["log_users"], p["log_items"], p["log_noise"]]))
        return effects + scales + normal(p["mean"] / 5) + normal(p["slopes"] / 2)

    def loglikelihood_fn(p, row):
        x, user, item, y = row
        eta = p["users"][user] + items_of(p)[item] + x @ p["slopes"]
        return normal(y - eta, p["log_noise"])

    keys = jax.random.split(jax.random.key(1))
    zeros = jnp.zeros(NUM_CHAINS)
    start = {
        "users": 2 + jax.random.normal(keys[0], (NUM_CHAINS, sizes[0])),
        "items": jax.random.normal(keys[1], (NUM_CHAINS, sizes[1])),
        "slopes": jnp.zeros((NUM_CHAINS, 2)),
        "mean": zeros + 2,
        "log_users": zeros,
        "log_items": zeros,
        "log_noise": zeros,
    }
    rows = tuple(a.astype(np.float32) if a.dtype == np.float64 else a for a in (x, users, items, y))
    compared = ("slopes", "log_users", "log_items", "log_noise")

    return Model(
        *(rows, logprior_fn, loglikelihood_fn, start, compared),
        look_at=lambda p: {**p, "items": items_of(p)},
    )


def slopes(unit: float) -> Model:
    """On a column in units of u a coefficient is 1 / u times as large; log-scales are relative."""
    rng, num_groups, num_rows = np.random.default_rng(31), 800, 40_000
    units = np.array([1, unit, 1 / unit], np.float32)
    group, x = zipf_groups(rng, num_groups, num_rows), rng.normal(size=(num_rows, 3))
    x[:, 0] = 1
    coefficients = np.array([1, 0.5, -0.3]) + rng.normal(size=(num_groups, 3)) * [0.8, 0.4, 0.2]
    y = np.sum(x * coefficients[group], axis=1) + rng.normal(size=num_rows)

    def logprior_fn(p):
        effects = normal((p["slopes"] - p["mean"]) * units, p["log_scale"])
        return effects + normal(p["mean"] * units / 2) + normal(p["log_scale"]) + normal(p["noise"])

    def loglikelihood_fn(p, row):
        x, group, y = row
        return normal(y - x @ p["slopes"][group], p["noise"])

    spread = jax.random.normal(jax.random.key(1), (NUM_CHAINS, num_groups, 3)) / units
    zeros = jnp.zeros((NUM_CHAINS, 3))
    start = {"slopes": spread, "mean": zeros, "log_scale": zeros, "noise": zeros[:, 0]}
    rows = ((x * units).astype(np.float32), group, y.astype(np.float32))
    return Model(rows, logprior_fn, loglikelihood_fn, start, ("mean", "log_scale", "noise"))


MODELS = {
    "intercepts, from zero": (lambda: intercepts(False), ("diagonal",)),
    "intercepts, spread": (lambda: intercepts(True), ("diagonal",)),
    "crossed": (lambda: crossed(False), ("diagonal",)),
    "crossed, mean subtracted": (lambda: crossed(True), ("diagonal",)),
    "slopes, units of 1": (lambda: slopes(1.0), ("kronecker", "diagonal")),
    "slopes, units of 30": (lambda: slopes(30.0), ("kronecker", "diagonal")),
}


def reference(model: Model, draws: np.ndarray, unravel, args) -> np.ndarray:
    """Full-batch NUTS in units of the draws' deviations."""
    mean = jnp.asarray(draws.mean((0, 1)), jnp.float32)
    deviation = jnp.asarray(draws.std((0, 1)), jnp.float32)
    rows = jax.tree.map(jnp.asarray, model.rows)

    def logdensity_fn(scaled):
        p = unravel(mean + deviation * scaled)
        loglikelihood = jax.vmap(model.loglikelihood_fn, (None, 0))(p, rows)
        return model.logprior_fn(p) + jnp.sum(loglikelihood)

    def look_at(state, info):
        p = unravel(mean + deviation * state.position)
        return {name: p[name] for name in model.compared}

    @jax.jit
    def chain(key):
        start = jax.random.normal(key, mean.shape)
        return nuts_chain(key, start, logdensity_fn, args.nuts_warmup, args.nuts_samples, look_at)

    chains = [chain(key) for key in jax.random.split(jax.random.key(2))]
    return flat(jax.tree.map(lambda *x: jnp.stack(x), *chains))


def sample(model: Model, start: dict, preconditioner: str, args) -> dict:
    """Return the draws of chains from ``start``."""
    num_rows = len(model.rows[0])
    return blackjax_smile.sample(
        jax.random.key(7),
        blackjax.sgmcmc.gradients.logdensity_estimator(
            model.logprior_fn, model.loglikelihood_fn, num_rows
        ),
        start,
        blackjax_smile.minibatch_sampler(model.rows, min(BATCH_SIZE, num_rows // 20)),
        num_warmup=args.num_warmup,
        num_samples=args.num_steps // 20,
        thinning=20,
        preconditioner=preconditioner,
        progress_bar=False,
    ).positions


def run(
    model: Model, preconditioner: str, nuts: np.ndarray | None, args
) -> tuple[dict, np.ndarray]:
    positions = sample(model, model.start, preconditioner, args)
    draws = flat(positions)
    seen = flat(jax.vmap(jax.vmap(model.look_at))(positions))
    scaled = (seen - seen.mean((0, 1))) / seen.std((0, 1))
    if nuts is None:
        _, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], model.start))
        nuts = reference(model, draws, unravel, args)
    deviation = nuts.std((0, 1))
    ours = flat({name: positions[name] for name in model.compared})
    ess = np.asarray(blackjax.ess(scaled))
    row = {
        **differences(ours, nuts.mean((0, 1)), deviation),
        "smallest ess": float(ess.min()),
        "median ess": float(np.median(ess)),
        "rhat": float(np.max(blackjax.rhat(scaled))),
        "nuts ess": float(np.min(blackjax.ess((nuts - nuts.mean((0, 1))) / deviation))),
    }
    return row, nuts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--num-warmup", type=int, default=4000)
    parser.add_argument("--num-steps", type=int, default=20_000, help="after the warmup")
    parser.add_argument("--nuts-warmup", type=int, default=500)
    parser.add_argument("--nuts-samples", type=int, default=1000)
    parser.add_argument("--output", help="CSV file")
    args = parser.parse_args()
    table = []
    for name in args.models:
        build, maps = MODELS[name]
        model, nuts = build(), None
        for preconditioner in maps:
            row, nuts = run(model, preconditioner, nuts, args)
            table.append({"model": name, "map": preconditioner, **row})
    report(table, args.output)


if __name__ == "__main__":
    main()
