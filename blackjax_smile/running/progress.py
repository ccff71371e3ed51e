"""One progress bar for all chains, and the R-hat that it shows."""

import math
import time
from typing import Any

import numpy as np

from blackjax_smile._extras import require

__all__ = ["Pace", "Progress", "RunningRhat"]

#: Seconds that a piece of the run takes, between two looks at it.
SECONDS_PER_PIECE = 1.0


class Pace:
    """How many gradients to take before looking up: about a second's worth."""

    def __init__(self) -> None:
        self.num_gradients = 16
        self.before: float | None = None

    def restart(self) -> None:
        """Do not count the time since the last piece (the program was compiled)."""
        self.before = time.monotonic()

    def took(self, num_gradients: int) -> None:
        """Take in that so many gradients were done by now."""
        now = time.monotonic()
        if self.before is not None:
            seconds = max(now - self.before, 1e-4)
            ratio = SECONDS_PER_PIECE / seconds * num_gradients / self.num_gradients
            # The first call compiles: it tells nothing, and must not shrink the piece for good.
            self.num_gradients = int(
                min(max(self.num_gradients * min(max(ratio, 0.5), 8), 1), 2**20)
            )
        self.before = now


class RunningRhat:
    """Split R-hat of one number per draw, from the means of at most 64 stretches of draws.

    Each stretch keeps count, mean and summed squared deviations of every chain;
    when there are too many, neighbours are merged. The halves that are compared
    are those of the stretches.
    """

    MAX_STRETCHES = 64

    def __init__(self) -> None:
        self.stretches: list[tuple[int, np.ndarray, np.ndarray]] = []

    def add(self, values: np.ndarray) -> None:
        """Add draws, ``(chain, draw)``."""
        values = np.asarray(values, np.float64)
        if values.shape[1] == 0:
            return
        # A chain that never moved has no log-density: -inf.
        with np.errstate(invalid="ignore"):
            mean = values.mean(axis=1)
            squares = ((values - mean[:, None]) ** 2).sum(axis=1)
        self.stretches.append((values.shape[1], mean, squares))
        if len(self.stretches) > self.MAX_STRETCHES:
            pairs = zip(self.stretches[::2], self.stretches[1::2], strict=False)
            odd = self.stretches[-1:] if len(self.stretches) % 2 else []
            self.stretches = [_merge(a, b) for a, b in pairs] + odd

    def value(self) -> float:
        """Return R-hat, NaN before there are two stretches."""
        if len(self.stretches) < 2:
            return math.nan
        ends = np.cumsum([n for n, _, _ in self.stretches])
        half = 1 + int(np.argmin(np.abs(ends[:-1] - ends[-1] / 2)))
        halves = []
        for part in (self.stretches[:half], self.stretches[half:]):
            merged = part[0]
            for stretch in part[1:]:
                merged = _merge(merged, stretch)
            halves.append(merged)
        count = min(n for n, _, _ in halves)
        if count < 2:
            return math.nan
        with np.errstate(invalid="ignore"):
            return self._rhat(halves, count)

    @staticmethod
    def _rhat(halves: list, count: int) -> float:
        means = np.concatenate([mean for _, mean, _ in halves])
        within = np.mean(np.concatenate([squares / (n - 1) for n, _, squares in halves]))
        if not within > 0:
            return math.nan
        return float(np.sqrt((count - 1) / count + np.var(means, ddof=1) / within))


@np.errstate(invalid="ignore")
def _merge(a, b):
    (n, mean, squares), (m, other, more) = a, b
    delta = other - mean
    total = n + m
    return total, mean + delta * m / total, squares + more + delta**2 * n * m / total


class Progress:
    """A bar over the gradients of a run (of one chain; all chains move together).

    Parameters
    ----------
    show
        True: on a terminal, if tqdm is installed. ``"force"``: in any case. False:
        never.
    num_gradients, done
        Length of the bar, and where it starts.
    """

    def __init__(self, show: bool | str, num_gradients: int, done: int = 0):
        if show not in (True, False, "force"):
            raise ValueError(f'progress_bar must be True, False or "force", got {show!r}.')
        self.bar: Any = None
        self.rate: tuple[float, int] | None = None
        if not show:
            return
        try:
            tqdm = require("tqdm", 'progress_bar="force"').tqdm
        except ModuleNotFoundError:
            if show == "force":
                raise
            return
        # disable=None: silent where the output is no terminal.
        self.bar = tqdm(
            total=num_gradients,
            initial=done,
            unit="step",
            unit_scale=True,
            dynamic_ncols=True,
            disable=False if show == "force" else None,
        )

    @property
    def is_shown(self) -> bool:
        return self.bar is not None and not self.bar.disable

    def update(
        self,
        phase: str,
        done: int,
        draws: int = 0,
        step_size: Any = None,
        deflection: Any = None,
        rejected: Any = None,
        rhat: float = math.nan,
    ) -> None:
        """Show where the run is; arrays have one entry per chain."""
        if not self.is_shown:
            return
        now = time.monotonic()
        if self.rate is None:
            self.rate = (now, draws)
        parts = {}
        since, before = self.rate
        if draws > before and now > since:
            parts["draws/s"] = f"{(draws - before) / (now - since):.3g}"
        if step_size is not None:
            parts["step size"] = f"{np.median(step_size):.3g}"
        if deflection is not None:
            parts["deflection"] = f"{np.mean(deflection):.2f}"
        if rejected is not None:
            parts["rejected"] = str(int(np.sum(rejected)))
        if not math.isnan(rhat):
            parts["R-hat(lp)"] = f"{rhat:.3f}"
        self.bar.set_description(phase, refresh=False)
        self.bar.set_postfix(parts, refresh=False)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
