"""What cures what: preconditioner, tuner and guardrail of the paper's SMILE, each on and off.

    python benchmarks/ablation.py gaussian
    python benchmarks/ablation.py network --data FOLDER

All eight settings of `online_smile` and, below them, `smile` with nothing set, at equal
numbers of gradients. `gaussian`: the rotated normal target of `analytic_targets.py` under
anisotropic noise, chains from exact draws. `network`: the airfoil network of
`uci_networks.py`, chains from trained networks. Step size: the best of a grid, by the error
on the target and by the validation LPPD on the network; with the tuner on it is the first
step's. The first third of a run is left out. Columns:

b2, LPPD      error of the second moments (`analytic_suite.py`); test LPPD
rejected      share of rejected steps
step ratio    last step size / first, geometric mean over the chains
ESS / 1e5     effective draws per 1e5 gradients of one chain: of the slowest coordinate, or
              the median over the predictions of the test rows; within a chain, mean over
              chains. An ESS counts how fast a chain moves, not whether it is right.
ESS / s       the same per second of processor time that a chain takes, side by side with the
              others
"""

import argparse
import functools
import itertools
import time

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import uci_data
import uci_model
import uci_samplers
from analytic_methods import L_PAPER
from analytic_targets import gaussian, noise_model
from tables import print_table, report
from uci_networks import lppd

import blackjax_smile

NUM_DRAWS = 2000
BURN_IN = NUM_DRAWS // 3
WARMUP_SHARE = 1 / 3

GRIDS = {"gaussian": np.geomspace(2e-3, 0.5, 9), "network": np.geomspace(1e-4, 0.1, 7)}


def settings():
    """Yield the columns that say what is on, and the arguments of `online_smile`."""
    for preconditioner, tuner, guardrail in itertools.product((False, True), repeat=3):
        shown = {"preconditioner": preconditioner, "tuner": tuner, "guardrail": guardrail}
        yield (
            {name: "on" if on else "off" for name, on in shown.items()},
            {
                "preconditioning": preconditioner,
                "adaption_prob": 0.1 if tuner else 0.0,
                "reset_prob": 0.98 if guardrail else 1.0,
            },
        )


def thinned(bound, state, rng_key, thinning: int, look_at):
    """Run an algorithm with its minibatches; return the last state and what is seen."""

    def step(state, key):
        state, info = bound.step(key, state)
        return state, info.is_divergent

    def draw(state, key):
        state, rejected = jax.lax.scan(step, state, jax.random.split(key, thinning))
        return state, (look_at(state.position), jnp.mean(rejected))

    return jax.lax.scan(draw, state, jax.random.split(rng_key, NUM_DRAWS))


def online_chain(rng_key, start, step_size, problem, options):
    """Two gradients a step; return what is seen, rejections and the change of the step size."""
    logdensity_fn, minibatch_fn, look_at, num_gradients = problem
    algorithm = blackjax_smile.online_smile(logdensity_fn, step_size, L=L_PAPER, **options)
    bound = blackjax_smile.with_minibatches(algorithm, minibatch_fn)

    init_key, run_key = jax.random.split(rng_key)
    state = algorithm.init(start, init_key)
    thinning = num_gradients // (2 * NUM_DRAWS)
    state, (seen, rejected) = thinned(bound, state, run_key, thinning, look_at)
    return seen, rejected, state.tuner.step_size / step_size


def smile_chain(rng_key, start, problem, preconditioner):
    """One gradient a step, the first third of them the warmup's."""
    logdensity_fn, minibatch_fn, look_at, num_gradients = problem
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile, logdensity_fn, minibatch_fn, preconditioner=preconditioner
    )
    warmup_key, run_key = jax.random.split(rng_key)
    num_warmup = int(WARMUP_SHARE * num_gradients)
    (state, parameters), _ = warmup.run(warmup_key, start, num_steps=num_warmup)
    bound = blackjax_smile.with_minibatches(
        blackjax_smile.smile(logdensity_fn, **parameters), minibatch_fn
    )

    thinning = (num_gradients - num_warmup) // NUM_DRAWS
    _, (seen, rejected) = thinned(bound, state, run_key, thinning, look_at)
    return seen, rejected, jnp.ones(())


def timed(function, *args):
    """Return the results and the processor seconds of a call that is compiled before."""
    compiled = jax.jit(function).lower(*args).compile()
    began = time.process_time()
    results = jax.block_until_ready(compiled(*args))
    return results, time.process_time() - began


def effective_size(draws: np.ndarray) -> np.ndarray:
    """Return the ESS of each quantity within a chain, mean over chains ``(chain, draw, ...)``."""
    moving = np.asarray(draws, np.float64)
    each = [np.asarray(blackjax.ess(jnp.asarray(chain[None]))) for chain in moving]
    # A chain that does not move has no ESS.
    return np.nan_to_num(np.mean(each, axis=0), nan=0.0)


def columns(results, seconds, num_gradients, ess, num_chains) -> dict:
    """Return the cells that both problems share."""
    _, rejected, ratio = results
    return {
        "rejected": float(np.mean(rejected)),
        "step ratio": float(np.exp(np.mean(np.log(ratio)))),
        "ESS / 1e5": float(ess * 1e5 / num_gradients),
        "ESS / s": float(ess * num_chains / seconds),
    }


def on_gaussian(args) -> list[dict]:
    target = gaussian()
    seeds = jax.vmap(jax.random.key)(jnp.arange(args.seeds))
    logdensity_fn, minibatch_fn = noise_model(target, args.noise)
    starts = jax.vmap(target.draw)(jax.vmap(functools.partial(jax.random.fold_in, data=7))(seeds))

    def side_by_side(function, minibatch_fn, *grid):
        problem = (logdensity_fn, minibatch_fn, lambda x: x, args.num_gradients)
        return jax.vmap(lambda key, x, *e: function(key, x, *e, problem=problem), (0, 0, *grid))

    def errors(draws, burn_in):
        draws = np.asarray(draws, np.float64)[:, burn_in:]
        return [target.b2(np.mean(chain**2, axis=0)) for chain in draws]

    rows = []
    for shown, options in settings():
        chains = side_by_side(functools.partial(online_chain, options=options), minibatch_fn, None)
        grid = jax.vmap(chains, (None, None, 0))
        results, seconds = timed(grid, seeds, starts, jnp.asarray(GRIDS["gaussian"]))
        b2 = np.array([np.mean(errors(draws, BURN_IN)) for draws in results[0]])
        best = int(np.argmin(np.where(np.isfinite(b2), b2, np.inf)))
        chosen = jax.tree.map(lambda x, best=best: x[best], results)
        ess = effective_size(chosen[0][:, BURN_IN:]).min() / (1 - BURN_IN / NUM_DRAWS)
        share = seconds / len(b2)
        cells = columns(chosen, share, args.num_gradients, ess, args.seeds)
        rows.append({**shown, "step size": GRIDS["gaussian"][best], "b2": b2[best], **cells})
    chains = side_by_side(
        functools.partial(smile_chain, preconditioner="dense"),
        functools.partial(minibatch_fn, num_rows=4),
    )
    # As many chains as a grid has: side by side, they share the fixed cost of a step.
    num_chains = args.seeds * len(GRIDS["gaussian"])
    keys = jax.vmap(jax.random.key)(jnp.arange(num_chains))
    results, seconds = timed(chains, keys, jnp.tile(starts, (len(GRIDS["gaussian"]), 1)))
    ess = effective_size(results[0]).min()
    cells = columns(results, seconds, args.num_gradients, ess, num_chains)
    blank = {"preconditioner": "dense", "tuner": "warmup", "guardrail": "frozen"}
    b2 = float(np.mean(errors(results[0], 0)))
    rows.append({**blank, "step size": "none set", "b2": b2, **cells})
    return rows


def on_network(args) -> list[dict]:
    data = uci_data.load("airfoil", args.seed, args.data)
    starts = uci_model.warm_starts(jax.random.key(args.seed), data, args.chains)
    problem_of_table = uci_samplers.Problem(data, starts, args.num_gradients, jax.random.key(0))
    keys = jax.random.split(jax.random.key(100 + args.seed), args.chains)

    def look_at(position):
        return (
            uci_model.row_logdensities(position, data.validation),
            uci_model.row_logdensities(position, data.test),
            uci_model.predict(position, data.test[0]),
        )

    problem = (
        problem_of_table.logdensity_fn,
        problem_of_table.minibatch_fn,
        look_at,
        args.num_gradients,
    )

    def cells_of(results, seconds, burn_in):
        validation, test, predictions = (np.asarray(x)[:, burn_in:] for x in results[0])
        ess = np.median(effective_size(predictions)) * NUM_DRAWS / predictions.shape[1]
        shared = columns(results, seconds, args.num_gradients, ess, args.chains)
        return lppd(validation), {"LPPD": lppd(test), **shared}

    rows = []
    for shown, options in settings():
        chains = jax.vmap(
            functools.partial(online_chain, problem=problem, options=options), (0, 0, None)
        )
        best = None
        # One step size after the other: predictions of all would not fit in memory.
        for step_size in GRIDS["network"]:
            results, seconds = timed(chains, keys, starts, jnp.float32(step_size))
            score, cells = cells_of(results, seconds, BURN_IN)
            if np.isfinite(score) and (best is None or score > best[0]):
                best = (score, {**shown, "step size": step_size, **cells})
        assert best is not None, f"no step size gives a finite LPPD: {shown}"
        rows.append(best[1])
        print_table(rows[-1:])
    chains = jax.vmap(functools.partial(smile_chain, problem=problem, preconditioner="kronecker"))
    results, seconds = timed(chains, keys, starts)
    blank = {"preconditioner": "kronecker", "tuner": "warmup", "guardrail": "frozen"}
    rows.append({**blank, "step size": "none set", **cells_of(results, seconds, 0)[1]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem", choices=("gaussian", "network"))
    parser.add_argument("--noise", default="anisotropic", help="of the Gaussian target")
    parser.add_argument("--num-gradients", type=int, help="default: 400 000; network: 60 000")
    parser.add_argument("--seeds", type=int, default=7, help="chains on the Gaussian target")
    parser.add_argument("--data", help=f"folder of the tables; default ${uci_data.ENVIRONMENT}")
    parser.add_argument("--seed", type=int, default=1, help="of the network's table")
    parser.add_argument("--chains", type=int, default=4, help="of the network")
    parser.add_argument("--output", help="CSV file")
    args = parser.parse_args()
    args.num_gradients = (
        args.num_gradients or {"gaussian": 400_000, "network": 60_000}[args.problem]
    )
    rows = on_gaussian(args) if args.problem == "gaussian" else on_network(args)
    report(rows, args.output)


if __name__ == "__main__":
    main()
