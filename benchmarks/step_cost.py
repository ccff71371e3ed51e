"""Time of a `smile` step beside that of the gradient it takes, and of an SGLD step.

    python benchmarks/step_cost.py
    python benchmarks/step_cost.py --preconditioner kronecker

A network of 1e6 parameters, 256 of 20 000 rows a step, inside a jitted scan; one
chain, and four side by side. `smile` has a diagonal preconditioner, and all its
parameters as the warmup leaves them. With the Kronecker preconditioner: a network of
layers 784-512-512-10, one chain, for every side limit in ``--side-limits``.

The three are timed in turn, several rounds; columns:

ms         median time of a step of all chains
/ gradient median over the rounds of the time over that of ``jax.grad`` alone on the
           same minibatches
/ sgld     likewise over BlackJAX's SGLD
"""

import argparse
import time

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.util import pytree_size
from network import LAYERS, grad_fn, init_parameters, logdensity_fn, random_minibatch_fn
from tables import report, verdict

import blackjax_smile
from blackjax_smile.preconditioners.kronecker import SIDE_LIMIT, kronecker_estimator
from blackjax_smile.sgmcmc.dynamics import refresh_schedule

#: Largest ratios to the gradient, by number of chains; and to SGLD.
GRADIENT_BARS = {1: 1.3, 4: 1.6}
SGLD_BAR = 0.75
KRONECKER_LAYERS = (784, 512, 512, 10)
KRONECKER_BAR = 2.0
SGLD_STEP_SIZE = 1e-8


def adapt(minibatch_fn, num_warmup: int, preconditioner="diagonal", layers=LAYERS):
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile, logdensity_fn, minibatch_fn, preconditioner=preconditioner
    )
    position = init_parameters(jax.random.key(0), layers)
    (state, parameters), info = warmup.run(jax.random.key(1), position, num_warmup)
    L, step_size = parameters["L"], parameters["step_size"]
    _, interval = refresh_schedule(
        state.clock,
        pytree_size(position),
        parameters["inverse_mass_matrix"],
        step_size,
        L,
    )
    print(
        f"{pytree_size(position)} parameters; adapted: L / step_size = {L / step_size:.3g}, "
        f"a refresh every {interval} steps, anisotropy {info.windows.anisotropy[-1]:.3g}"
    )
    return state, parameters


def steps(parameters, minibatch_fn, state):
    """Return ``{name: (step(rng_key, carry), carry)}``."""
    smile = blackjax_smile.with_minibatches(
        blackjax_smile.smile(logdensity_fn, **parameters), minibatch_fn
    )
    sgld = blackjax_smile.with_minibatches(blackjax.sgld(grad_fn), minibatch_fn, SGLD_STEP_SIZE)

    def gradient(rng_key, carry):
        position, _ = carry
        batch_key, _ = jax.random.split(rng_key)
        # Carried, so that no part of it is dead code.
        return position, jax.grad(logdensity_fn)(position, minibatch_fn(batch_key))

    def smile_step(rng_key, state):
        return smile.step(rng_key, state)[0]

    return {
        "gradient": (gradient, (state.position, state.position)),
        "sgld": (lambda rng_key, position: sgld.step(rng_key, position)[0], state.position),
        "smile": (smile_step, state),
    }


def compiled(step, carry, num_chains: int, num_steps: int):
    """Return a function of no arguments that runs the scan."""
    keys = jax.random.split(jax.random.key(2), (num_steps, num_chains))
    if num_chains == 1:
        keys = keys[:, 0]
    else:
        step = jax.vmap(step)
        carry = jax.tree.map(lambda x: jnp.stack([x] * num_chains), carry)

    @jax.jit
    def run(carry, keys):
        return jax.lax.scan(lambda carry, key: (step(key, carry), None), carry, keys)[0]

    jax.block_until_ready(run(carry, keys))
    return lambda: jax.block_until_ready(run(carry, keys))


def timed(run, num_steps: int) -> float:
    began = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - began) / num_steps


def measure(parameters, minibatch_fn, state, num_chains: int, args) -> list[dict]:
    num_steps = max(args.num_steps // num_chains, 1)
    runs = {
        name: compiled(step, carry, num_chains, num_steps)
        for name, (step, carry) in steps(parameters, minibatch_fn, state).items()
    }
    # In turn, so that another load on the machine falls on all alike.
    rounds = [
        {name: timed(run, num_steps) for name, run in runs.items()} for _ in range(args.rounds)
    ]
    times = {name: np.array([r[name] for r in rounds]) for name in runs}
    rows = []
    for name, ms in times.items():
        to_gradient = float(np.median(ms / times["gradient"]))
        to_sgld = float(np.median(ms / times["sgld"]))
        bar = ""
        if name == "smile":
            bar = judge(args.preconditioner, num_chains, to_gradient, to_sgld)
        rows.append(
            {
                "chains": num_chains,
                "step": name,
                "ms": float(np.median(ms)),
                "/ gradient": to_gradient,
                "/ sgld": to_sgld,
                "bar": bar,
            }
        )
    return rows


def judge(preconditioner: str, num_chains: int, to_gradient: float, to_sgld: float) -> str:
    if preconditioner == "kronecker":
        return f"{verdict(to_gradient <= KRONECKER_BAR)} ({KRONECKER_BAR})"
    is_met = to_gradient <= GRADIENT_BARS[num_chains] and to_sgld <= SGLD_BAR
    return f"{verdict(is_met)} ({GRADIENT_BARS[num_chains]}, {SGLD_BAR})"


def measure_kronecker(args) -> list[dict]:
    rows = []
    minibatch_fn = random_minibatch_fn(jax.random.key(3), KRONECKER_LAYERS)
    for side_limit in args.side_limits:
        estimator = kronecker_estimator(side_limit)
        state, parameters = adapt(minibatch_fn, args.num_warmup, estimator, KRONECKER_LAYERS)
        for row in measure(parameters, minibatch_fn, state, 1, args):
            rows.append({"side limit": side_limit, **row})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-warmup", type=int, default=400)
    parser.add_argument("--preconditioner", choices=("diagonal", "kronecker"), default="diagonal")
    parser.add_argument("--side-limits", type=int, nargs="+", default=[SIDE_LIMIT])
    parser.add_argument("--num-steps", type=int, default=96, help="chain steps in a timed run")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", help="CSV file")
    args = parser.parse_args()

    rows = []
    if args.preconditioner == "kronecker":
        rows = measure_kronecker(args)
    else:
        minibatch_fn = random_minibatch_fn(jax.random.key(3))
        state, parameters = adapt(minibatch_fn, args.num_warmup)
        for num_chains in GRADIENT_BARS:
            rows += measure(parameters, minibatch_fn, state, num_chains, args)
    report(rows, args.output)


if __name__ == "__main__":
    main()
