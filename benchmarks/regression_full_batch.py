"""Passes over the data that full-batch samplers need for a given accuracy."""

import math

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from regression_variants import Variant, chain_keys, mean_errors

#: Warmup lengths tried; the one that needs the fewest passes in all counts.
NUTS_WARMUPS = (100, 200, 400, 1000)
NUTS_DRAWS = 4000
MCLMC_TUNINGS = (1000, 3000, 10_000)
MCLMC_STEPS = 60_000


def full_batch_logdensity(variant: Variant):
    data = jax.tree.map(jnp.asarray, variant.problem.data)
    logdensity_fn = variant.problem.logdensity_fn
    return lambda position: logdensity_fn(position, data)


def run_nuts(variant: Variant, num_warmup: int, num_seeds: int):
    """Return draws, and the gradients until each of them."""
    logdensity_fn, start = full_batch_logdensity(variant), variant.start
    warmup = blackjax.window_adaptation(blackjax.nuts, logdensity_fn, is_mass_matrix_diagonal=False)

    @jax.jit
    @jax.vmap
    def chain(key):
        warmup_key, sample_key = jax.random.split(key)
        (state, parameters), info = warmup.run(warmup_key, start, num_warmup)
        _, (draws, gradients) = blackjax.util.run_inference_algorithm(
            sample_key,
            blackjax.nuts(logdensity_fn, **parameters),
            NUTS_DRAWS,
            initial_state=state,
            transform=lambda state, info: (state.position, info.num_integration_steps),
        )
        return draws, jnp.sum(info.info.num_integration_steps) + jnp.cumsum(gradients)

    return chain(chain_keys(num_seeds))


def run_mclmc(variant: Variant, num_tuning: int, num_seeds: int):
    """Return draws, and the gradients until each of them (two a step)."""
    logdensity_fn, start = full_batch_logdensity(variant), variant.start

    @jax.jit
    @jax.vmap
    def chain(key):
        init_key, tune_key, sample_key = jax.random.split(key, 3)
        state, tuned, taken = blackjax.mclmc_find_L_and_step_size(
            blackjax.mclmc.build_kernel(),
            num_tuning,
            blackjax.mclmc.init(start, logdensity_fn, init_key),
            tune_key,
            logdensity_fn=logdensity_fn,
        )
        _, draws = blackjax.util.run_inference_algorithm(
            sample_key,
            blackjax.mclmc(logdensity_fn, **tuned._asdict()),
            MCLMC_STEPS,
            initial_state=state,
            transform=lambda state, info: state.position,
        )
        return draws, 2 * (taken + jnp.arange(1, MCLMC_STEPS + 1))

    return chain(chain_keys(num_seeds))


def passes_needed(draws, gradients, reference, target: dict) -> tuple[float, dict]:
    """Return the first length, on a grid of ratio sqrt(2), that meets both errors."""
    longest = draws.shape[1]
    lengths = [round(50 * 2 ** (k / 2)) for k in range(40)]
    for length in [n for n in lengths if n < longest] + [longest]:
        found = mean_errors(draws[:, :length], reference)
        if found["b2mean"] <= target["b2mean"] and found["b2var"] <= target["b2var"]:
            return float(np.mean(gradients[:, length - 1])), found
    return math.inf, found


def cheapest(name: str, variant: Variant, targets: list[dict], num_seeds: int) -> list[dict]:
    """Return, for each target, the row of the warmup that needs the fewest passes."""
    run, warmups = {
        "nuts": (run_nuts, NUTS_WARMUPS),
        "mclmc": (run_mclmc, MCLMC_TUNINGS),
    }[name]
    found: list[list[dict]] = [[] for _ in targets]
    for num_warmup in warmups:
        draws, gradients = run(variant, num_warmup, num_seeds)
        draws, gradients = np.asarray(draws), np.asarray(gradients)
        for rows, target in zip(found, targets, strict=True):
            reference = variant.problem.reference
            passes, reached = passes_needed(draws, gradients, reference, target)
            rows.append({**reached, "warmup": num_warmup, "passes": passes})

    # Where no warmup gets there, the row of the one that comes closest.
    def rank(row: dict):
        return row["passes"], row["b2mean"] + row["b2var"]

    return [min(rows, key=rank) for rows in found]
