"""BlackJAX's NUTS with its window adaptation: the full-batch reference of the networks."""

from collections.abc import Callable

import blackjax
import jax


def nuts_chain(rng_key, start, logdensity_fn: Callable, num_warmup: int, num_samples: int, look_at):
    """Run one chain of at most 127 leapfrogs a draw; return ``look_at(state, info)`` of each."""
    warmup_key, rng_key = jax.random.split(rng_key)
    warmup = blackjax.window_adaptation(blackjax.nuts, logdensity_fn, max_num_doublings=7)
    (state, parameters), _ = warmup.run(warmup_key, start, num_warmup)
    algorithm = blackjax.nuts(logdensity_fn, **parameters)

    def body(state, key):
        state, info = algorithm.step(key, state)
        return state, look_at(state, info)

    return jax.lax.scan(body, state, jax.random.split(rng_key, num_samples))[1]
