"""A hierarchy from zero: `smile`, group effects centred and not, beside full-batch NUTS.

    python benchmarks/hierarchy.py

Poisson counts of 50 000 rows in 40 groups with four slopes. Everything starts at zero;
nothing is set by hand. `smile`: four chains, batch 500, 4000 gradients of warmup and
20 000 of sampling, one draw kept in 20. NUTS: two chains, effects not centred, of 800 and 1500.

mean, deviation   of the logarithm of the groups' scale
ess, rhat         of the same, all chains
slopes ess        smallest of the slopes
anisotropy        of the whitened noise in the last window of the warmup, mean
seconds           compilation included
"""

import argparse
import time

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from full_batch_nuts import nuts_chain
from tables import report

import blackjax_smile

NUM_ROWS, NUM_GROUPS, NUM_SLOPES = 50_000, 40, 4
SLOPES = jnp.array([0.5, -0.3, 0.2, 0.0])


def make_data():
    keys = jax.random.split(jax.random.key(0), 4)
    x = 0.5 * jax.random.normal(keys[0], (NUM_ROWS, NUM_SLOPES))
    group = jax.random.randint(keys[1], (NUM_ROWS,), 0, NUM_GROUPS)
    effects = 0.3 * jax.random.normal(keys[2], (NUM_GROUPS,)) - 1
    return x, group, jax.random.poisson(keys[3], jnp.exp(effects[group] + x @ SLOPES))


def logprior(position, is_centred: bool):
    effects, log_scale = position["effects"], position["log_scale"]
    if is_centred:
        effects = (effects - position["mean"]) * jnp.exp(-log_scale)
    hyper = position["mean"] ** 2 + log_scale**2 + jnp.sum(position["slopes"] ** 2)
    jacobian = NUM_GROUPS * log_scale if is_centred else 0.0
    return -0.5 * (jnp.sum(effects**2) + hyper) - jacobian


def loglikelihood(position, row, is_centred: bool):
    x, group, count = row
    effect = position["effects"][group]
    if not is_centred:
        effect = position["mean"] + jnp.exp(position["log_scale"]) * effect
    log_rate = effect + x @ position["slopes"]
    return count * log_rate - jnp.exp(log_rate)


def start():
    return {
        "effects": jnp.zeros(NUM_GROUPS),
        "slopes": jnp.zeros(NUM_SLOPES),
        "mean": jnp.zeros(()),
        "log_scale": jnp.zeros(()),
    }


def summary(draws, seconds: float) -> dict:
    scale = draws["log_scale"]
    return {
        "mean": float(jnp.mean(scale)),
        "deviation": float(jnp.std(scale)),
        "ess": float(blackjax.ess(scale)),
        "rhat": float(blackjax.rhat(scale)),
        "slopes ess": float(jnp.min(blackjax.ess(draws["slopes"]))),
        "anisotropy": "",
        "seconds": seconds,
    }


def run_smile(data, is_centred: bool, args) -> dict:
    logdensity_fn = blackjax.sgmcmc.gradients.logdensity_estimator(
        lambda position: logprior(position, is_centred),
        lambda position, row: loglikelihood(position, row, is_centred),
        NUM_ROWS,
    )
    began = time.perf_counter()
    result = blackjax_smile.sample(
        jax.random.key(1),
        logdensity_fn,
        jax.tree.map(lambda x: jnp.zeros((4, *x.shape)), start()),
        blackjax_smile.minibatch_sampler(data, 500),
        num_warmup=args.num_warmup,
        num_samples=args.num_steps // 20,
        thinning=20,
        progress_bar=False,
    )
    row = summary(result.positions, time.perf_counter() - began)
    return {**row, "anisotropy": float(np.mean(result.adaptation.windows.anisotropy[:, -1]))}


def run_nuts(data) -> dict:
    def logdensity(position):
        rows = jax.vmap(loglikelihood, (None, 0, None))(position, data, False)
        return logprior(position, False) + jnp.sum(rows)

    @jax.jit
    def chain(key):
        return nuts_chain(key, start(), logdensity, 800, 1500, lambda state, _: state.position)

    began = time.perf_counter()
    chains = [chain(key) for key in jax.random.split(jax.random.key(2), 2)]
    draws = jax.tree.map(lambda *x: jnp.stack(x), *chains)
    return summary(draws, time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-warmup", type=int, default=4000)
    parser.add_argument("--num-steps", type=int, default=20_000, help="after the warmup")
    parser.add_argument("--output", help="CSV file")
    args = parser.parse_args()
    data = make_data()
    rows = [
        {"sampler": "smile", "effects": "centred", **run_smile(data, True, args)},
        {"sampler": "smile", "effects": "not centred", **run_smile(data, False, args)},
        {"sampler": "nuts", "effects": "not centred", **run_nuts(data)},
    ]
    report(rows, args.output)


if __name__ == "__main__":
    main()
