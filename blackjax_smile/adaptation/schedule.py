"""The schedule of the warmup: probes, slow windows of doubling length, a fast one."""

import dataclasses
import math
import operator
from typing import Any

import jax

__all__ = ["MIN_NUM_STEPS", "Schedule", "build_schedule"]

#: Fewer steps cannot tell noise from signal.
MIN_NUM_STEPS = 100

#: Length of the first slow window; each next one is twice as long.
FIRST_WINDOW = 100

#: The fast window's statistics set what is frozen, so it is no shorter if possible.
MIN_FAST_WINDOW = 50

#: From this share of rejected steps in the last window on a chain is stuck.
STUCK = 0.9

#: Gradients at the initial position for the first estimate of the noise.
MAX_PROBES = 200


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Schedule:
    """Numbers of gradients, which sum to ``num_steps``; plain numbers under `jax.vmap`, too.

    num_probes
        Gradients at the initial position.
    slow_windows
        Lengths of the windows after which the preconditioner is refitted.
    fast_window
        Length of the last window, with the final preconditioner.
    """

    num_probes: int
    slow_windows: tuple[int, ...]
    fast_window: int

    @property
    def windows(self) -> tuple[int, ...]:
        return (*self.slow_windows, self.fast_window)

    def is_stuck(self, num_rejected: Any) -> Any:
        """Return whether nearly all steps of the last window were rejected."""
        return num_rejected >= math.ceil(STUCK * self.fast_window)


def build_schedule(num_steps: int) -> Schedule:
    """Split a number of steps into probes, slow windows and a fast one.

    Raises
    ------
    ValueError
        If there are fewer than `MIN_NUM_STEPS`, or their number is no integer.

    Examples
    --------
    >>> build_schedule(2000)
    Schedule(num_probes=200, slow_windows=(100, 200, 400, 900), fast_window=200)
    """
    if not hasattr(num_steps, "__index__"):
        raise ValueError(f"num_steps must be an integer, got {num_steps!r}.")
    num_steps = operator.index(num_steps)
    if num_steps < MIN_NUM_STEPS:
        raise ValueError(f"The adaptation needs num_steps >= {MIN_NUM_STEPS}, got {num_steps}.")
    num_probes = min(num_steps // 10, MAX_PROBES)
    fast_window = max(num_steps // 10, min(num_steps // 4, MIN_FAST_WINDOW))
    remaining = num_steps - num_probes - fast_window
    slow_windows, length = [], FIRST_WINDOW
    # A window is taken only if one twice as long still fits behind it.
    while remaining >= 3 * length:
        slow_windows.append(length)
        remaining -= length
        length *= 2
    return Schedule(num_probes, (*slow_windows, remaining), fast_window)
