"""What is looked at after the warmup and at the end: chains that do not move, or not well."""

import warnings

import jax
import numpy as np
from blackjax.util import pytree_size

from blackjax_smile._epochs import IN_EPOCHS
from blackjax_smile.running.engine import Engine
from blackjax_smile.running.journal import Adapted

__all__ = ["check_moved", "warn_of_chains_on_the_way", "warn_of_epochs", "warn_of_rejections"]

#: A share of rejected steps above this biases the draws.
MANY_REJECTED = 0.05

#: A mean alignment of momentum and gradient above this in the last window is that of a chain on
#: its way,
ON_THE_WAY = 0.1

#: if it is as many standard errors above 0: of d coordinates and n steps 1 / sqrt(n d) each.
MIN_STANDARD_ERRORS = 5.0

#: A path of the last long window this many times as wide as diffusion makes it, too: a drift that
#: is slow, as its pull comes with few minibatches (a row with an absurd value), aligns nothing.
#: Of free walks in two dimensions one in a hundred is: fewer than above the `TRANSIT` at which the
#: warmup itself takes a path for a way, for a warning is to be rarer.
WIDE_PATH = 1.75


def check_moved(engine: Engine, adapted: Adapted) -> np.ndarray:
    """Return which chains did not move in the warmup; warn of them, raise if all did not."""
    fetch, chains = engine.placement.fetch, engine.placement.local_chains
    step_size = fetch(adapted.parameters["step_size"])
    rejected = fetch(adapted.windows.num_rejected)[:, -1]
    failed = ~np.isfinite(step_size) | engine.settings.schedule.is_stuck(rejected)
    failed |= fetch(adapted.num_finite_probes) == 0
    moved = np.zeros_like(failed)
    end = fetch(adapted.states.position)
    for before, after in zip(jax.tree.leaves(engine.positions), jax.tree.leaves(end), strict=True):
        different = np.asarray(before)[chains] != after
        moved |= different.reshape(len(moved), -1).any(axis=1)
    failed |= ~moved
    if failed.all():
        raise ValueError(
            "The adaptation failed, no chain moved: the log-density or its gradient was not "
            "finite at the initial positions, next to them, or on most minibatches (rows with "
            "missing values?), or does not depend on the position. Evaluate "
            "logdensity_fn(position, minibatch) and its gradient there."
        )
    if failed.any():
        warnings.warn(
            f"The adaptation of the chains {(np.flatnonzero(failed) + chains.start).tolist()} "
            "failed: they did not move, or rejected nearly every step. The others go on.",
            stacklevel=4,
        )
    return failed


def warn_of_rejections(num_rejected: np.ndarray, num_steps: int, when: str) -> None:
    """Warn of many rejected steps: the draws are of the posterior where steps are accepted."""
    share = np.asarray(num_rejected) / num_steps
    # The last window may have 50 steps only: three standard errors above.
    error = np.sqrt(MANY_REJECTED * (1 - MANY_REJECTED) / num_steps)
    if np.any(share > MANY_REJECTED + 3 * error):
        warnings.warn(
            f"Of the steps {when}, chains rejected up to {np.max(share):.0%} (mean "
            f"{np.mean(share):.0%}); 5 % are many. Minibatches on which the log-density or its "
            "gradient is not finite, or far from what others say, are passed over: look for rows "
            "with missing or absurd values. See `diverging` in the statistics of the draws.",
            stacklevel=4,
        )


def warn_of_epochs(engine: Engine) -> bool:
    """Warn of minibatches without replacement, and return whether; an epoch may be longer."""
    narrows = engine.feed is not None and getattr(engine.feed.source, "narrows", False)
    if narrows:
        warnings.warn(
            f"{IN_EPOCHS} Or let four chains and more take turns from one loader.", stacklevel=4
        )
    return narrows


def warn_of_chains_on_the_way(engine: Engine, adapted: Adapted) -> None:
    """Warn of chains whose momentum still ran along the gradient when the warmup ended."""
    windows, num_chains = engine.placement.fetch(adapted.windows), engine.settings.num_chains
    num_accepted = engine.settings.schedule.fast_window - windows.num_rejected[:, -1]
    d = pytree_size(engine.positions) / num_chains
    alignment = windows.alignment[:, -1]
    significant = MIN_STANDARD_ERRORS / np.sqrt(np.maximum(num_accepted, 1) * d)
    aligned = alignment > np.maximum(ON_THE_WAY, significant)
    width = windows.natural_length[:, -2] / windows.diffusive_length[:, -2]
    wide = ~aligned & (width > WIDE_PATH)
    if (on_the_way := aligned | wide).any():
        indices = np.flatnonzero(on_the_way) + engine.placement.local_chains.start
        signs = []
        if aligned.any():
            mean = np.mean(alignment[aligned])
            signs.append(f"mean alignment {mean:.2f} of momentum and gradient, about 0 there")
        if wide.any():
            signs.append(
                f"paths up to {np.max(width[wide]):.1f} times as wide as diffusion makes them, at "
                "most 1 there; if a longer warmup does not help, look for rows with absurd values"
            )
        warnings.warn(
            f"The chains {indices.tolist()} were still on their way to the posterior when the "
            f"warmup ended ({'; '.join(signs)}), so their first draws show the way. Use a longer "
            "warmup (num_warmup), or start nearer, for example at an optimum.",
            stacklevel=4,
        )
