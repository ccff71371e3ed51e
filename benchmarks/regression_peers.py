"""BlackJAX's SGLD and SGHMC on a variant, each at its best step size."""

import math

import blackjax
import jax
import numpy as np
from regression_variants import Variant, chain_keys, mean_errors

from blackjax_smile import with_minibatches

NUM_INTEGRATION_STEPS = 10

#: Powers of the grid's ratio, around a first guess.
GRID = range(-1, 8)
MAX_GRID = 15


def first_guess(variant: Variant) -> float:
    """Return the SGLD step size where gradient noise doubles the smallest variance.

    The noise of a minibatch gradient has about N/B times the covariance of a
    gradient at a draw from the posterior, so a step size h inflates the variance
    along an axis of precision p by the factor 1 + h p N / (2 B).
    """
    problem = variant.problem
    largest = np.linalg.eigvalsh(problem.precision(problem.mode))[-1]
    return 2 * variant.batch_size / (problem.data_size * largest)


def search(name: str, variant: Variant, num_gradients: int, num_seeds: int) -> dict:
    """Return the row of the best step size by b2mean + b2var.

    Nine step sizes, a factor of 2 apart (SGHMC, which moves by the square of its
    step size: the root of 2), below and above the guess; the grid grows until the
    best is interior.
    """
    grad_fn = variant.problem.grad_fn
    guess = first_guess(variant)
    if name == "sgld":
        algorithm, cost, ratio = blackjax.sgld(grad_fn), 1, 2.0
    else:
        algorithm = blackjax.sghmc(grad_fn, NUM_INTEGRATION_STEPS)
        cost, ratio = NUM_INTEGRATION_STEPS, math.sqrt(2)
        # Ten steps of e move as far as one of SGLD with h = (10 e)^2 / 2.
        guess = math.sqrt(2 * guess) / NUM_INTEGRATION_STEPS
    start, minibatch_fn = variant.start, variant.minibatch_fn

    @jax.jit
    def chains(keys, step_size):
        def chain(key):
            bound = with_minibatches(algorithm, minibatch_fn, step_size)
            _, positions = blackjax.util.run_inference_algorithm(
                key,
                bound,
                num_gradients // cost,
                initial_position=start,
                transform=lambda state, info: state,
            )
            return positions

        return jax.vmap(chain)(keys)

    def evaluate(power: int) -> dict:
        step_size = guess * ratio**power
        found = mean_errors(chains(chain_keys(num_seeds), step_size), variant.problem.reference)
        return {**found, "step_size": step_size}

    def total(power: int) -> float:
        error = rows[power]["b2mean"] + rows[power]["b2var"]
        return error if math.isfinite(error) else math.inf

    rows = {power: evaluate(power) for power in GRID}
    while True:
        best = min(rows, key=total)
        edges = {min(rows): min(rows) - 1, max(rows): max(rows) + 1}
        if best not in edges or len(rows) == MAX_GRID:
            break
        rows[edges[best]] = evaluate(edges[best])
    position = f"{sorted(rows).index(best) + 1} of {len(rows)}"
    return {**rows[best], "grid": position}
