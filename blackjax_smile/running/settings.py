"""What a run was asked to do, checked, and the numbers that follow from it."""

import dataclasses

from blackjax_smile._checks import positive_integer
from blackjax_smile.adaptation.schedule import Schedule, build_schedule

__all__ = ["Settings"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Numbers of a run; see `blackjax_smile.sample`."""

    num_chains: int
    num_warmup: int
    num_samples: int
    thinning: int = 1
    chunk_size: int | None = None
    checkpoint_every: float = 30.0
    share_minibatches: bool = False

    def __post_init__(self) -> None:
        for name in ("num_warmup", "num_samples", "thinning", "chunk_size"):
            value = getattr(self, name)
            if value is None and name == "chunk_size":
                continue
            # NumPy's integers would not be the same run on resuming.
            object.__setattr__(self, name, positive_integer(name, value))
        object.__setattr__(self, "share_minibatches", bool(self.share_minibatches))
        if self.checkpoint_every < 0:
            raise ValueError(f"checkpoint_every must be >= 0 s, got {self.checkpoint_every}.")
        if self.num_gradients >= 2**31:
            raise ValueError(
                f"num_warmup + num_samples * thinning must be below 2**31, got "
                f"{self.num_gradients}."
            )
        build_schedule(self.num_warmup)

    @property
    def schedule(self) -> Schedule:
        return build_schedule(self.num_warmup)

    @property
    def num_gradients(self) -> int:
        """Gradients per chain, the clock of the run: probes, windows, then draws."""
        return self.num_warmup + self.num_samples * self.thinning
