"""What a run leaves behind: draws and checkpoints, and where to go on from them."""

import pathlib
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from blackjax.types import ArrayTree

from blackjax_smile.errors import UserInputError
from blackjax_smile.running.checkpoint import Checkpoints
from blackjax_smile.running.devices import Placement
from blackjax_smile.running.drawing import Chains
from blackjax_smile.running.fingerprint import FIRST_MINIBATCH, differences, run_id
from blackjax_smile.running.lock import RunLock
from blackjax_smile.running.store import DrawStore, Rows
from blackjax_smile.running.warming import WarmupState, adapted_parameters

__all__ = ["Adapted", "Journal", "MemoryDraws", "Resume"]


#: Chunks at the end of the store that are read before it is relied upon.
CHECKED_CHUNKS = 3

OTHER_MINIBATCHES = (
    "The iterable's first minibatch is not the one that this run began with. If its data are "
    "others, the draws will be of two posteriors: choose new paths for store and checkpoint. If "
    "it shuffles the same data, give it a seed: a resumed run is then the run that was stopped."
)


class Adapted(NamedTuple):
    """What the warmup hands on: every leaf leads with the chain."""

    states: Any
    parameters: dict[str, Any]
    num_finite_probes: Any
    windows: Any
    steps: Any

    @classmethod
    def of(cls, warmup: WarmupState) -> "Adapted":
        return cls(
            warmup.adaptation.sampler,
            adapted_parameters(warmup),
            warmup.num_finite_probes,
            warmup.windows,
            warmup.steps,
        )


class Resume(NamedTuple):
    """Where a run goes on.

    gradient
        The next gradient; 0 for a run that starts.
    warmup, adapted, chains
        States, as far as the run had come: in mid-warmup the first, afterwards the
        others (``chains`` None before the first draw's checkpoint).
    loader
        Position of the minibatches.
    num_draws
        Draws in the store.
    """

    gradient: int = 0
    warmup: WarmupState | None = None
    adapted: Adapted | None = None
    chains: Chains | None = None
    loader: dict | None = None
    num_draws: int = 0


class MemoryDraws:
    """Draws in memory, for runs without a store."""

    path: pathlib.Path | None = None

    def __init__(self) -> None:
        self.parts: list[Rows] = []

    def append(self, first: int, rows: Rows) -> None:
        del first
        self.parts.append(rows)

    def read(self, group: str, name: str) -> np.ndarray:
        # Put together once; then each variable is a single part.
        if len(self.parts) > 1:
            self.parts = [
                jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *self.parts),
            ]
        return self.parts[0][group][name]


class Journal:
    """Keeps the store and the checkpoints of a run in step.

    Draws are written first, then the checkpoint that says how many there are:
    draws beyond it are forgotten when the run is resumed.
    """

    def __init__(
        self,
        draws: DrawStore | MemoryDraws,
        folder: pathlib.Path | None,
        description: dict[str, Any],
        every: float,
        placement: Placement,
    ):
        self.draws, self.description, self.every = draws, description, every
        self.steps = self.adapted = None
        self.lock: RunLock | None = None
        if folder is not None:
            # First of all: opening the checkpoints removes what is half written.
            self.lock = RunLock(folder) if placement.is_main else None
            self.steps = Checkpoints(folder / "steps", placement)
            self.adapted = Checkpoints(folder / "adapted", placement)
        self.last_save = time.monotonic()
        self.folder = folder

    @property
    def is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return self.steps is not None and time.monotonic() - self.last_save >= self.every

    def save(self, gradient: int, tree: ArrayTree, phase: str, num_draws: int, loader: Any) -> None:
        """Write a checkpoint, after the draws."""
        if self.steps is not None:
            self.steps.save(gradient, tree, self._record(phase, num_draws, loader))
        self.last_save = time.monotonic()

    def save_adapted(self, gradient: int, adapted: Adapted, loader: Any) -> None:
        """Write what the warmup found, once."""
        if self.adapted is not None:
            self.adapted.save(gradient, adapted, self._record("adapted", 0, loader))
        self.last_save = time.monotonic()

    def _record(self, phase: str, num_draws: int, loader: Any) -> dict[str, Any]:
        return {
            "phase": phase,
            "num_draws": num_draws,
            "loader": loader,
            "run": self.description,
        }

    def resume(self, warmup_like: WarmupState, chains_like: Callable, num_samples: int) -> Resume:
        """Return where to go on, from the newest checkpoint that is good.

        Raises
        ------
        ValueError
            If the checkpoints are another run's, or none of them is good.
        """
        steps, adapted = self.steps, self.adapted
        if steps is None or adapted is None:
            return Resume()
        if not adapted.steps():
            found = self._newest(
                steps,
                lambda step, record: Resume(
                    step, steps.restore(step, warmup_like), loader=record["loader"]
                ),
            )
            return found or Resume()

        adapted_like = jax.eval_shape(Adapted.of, warmup_like)
        start = self._newest(
            adapted,
            lambda step, record: Resume(
                step,
                adapted=adapted.restore(step, adapted_like),
                loader=record["loader"],
            ),
        )
        assert start is not None
        shapes = chains_like(adapted_like.states)

        def load(step, record):
            if record["phase"] != "sampling":
                return None
            self._check_draws(record["num_draws"])
            chains = steps.restore(step, shapes)
            return start._replace(
                gradient=step,
                chains=chains,
                loader=record["loader"],
                num_draws=record["num_draws"],
            )

        found = self._newest(steps, load, or_none=True) or start
        if found.num_draws > num_samples:
            raise UserInputError(
                f"The run holds {found.num_draws} draws of each chain already, more than "
                f"num_samples={num_samples}. Ask for at least as many, or choose new paths."
            )
        return found

    def _newest(self, checkpoints: Checkpoints, load: Callable, or_none: bool = False) -> Any:
        """Return what ``load`` makes of the newest good checkpoint; delete the bad ones."""
        bad: dict[int, Any] = {}
        found = None
        for step, record in checkpoints.good_steps():
            if record is None:
                bad[step] = "its record cannot be read"
                continue
            changed = differences(record["run"], self.description)
            other_minibatches = changed.pop(FIRST_MINIBATCH, None)
            if changed:
                raise UserInputError(
                    f"The checkpoint in {self.folder} is of another run:\n  "
                    + "\n  ".join(changed.values())
                    + "\nPass what it was started with, or choose new paths for store and "
                    "checkpoint."
                )
            if other_minibatches:
                warnings.warn(OTHER_MINIBATCHES, stacklevel=2)
            if record["num_draws"] and isinstance(self.draws, DrawStore):
                self._check_store(self.draws, record["num_draws"])
            try:
                found = load(step, record)
            except Exception as error:
                bad[step] = error
                continue
            if found is not None:
                break
        if found is None and bad and not or_none:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in bad.items())
            raise UserInputError(
                f"None of the checkpoints in {self.folder} can be used ({reasons}). Remove the "
                "folder and the store to start anew."
            )
        for step in bad:
            checkpoints.delete(step)
        return found

    def _check_draws(self, num_draws: int) -> None:
        """Raise if the draws that were written last are not there."""
        if isinstance(self.draws, DrawStore):
            self.draws.check(self._checked_from(self.draws, num_draws), num_draws)

    def _checked_from(self, draws: DrawStore, num_draws: int) -> int:
        return max(0, num_draws - CHECKED_CHUNKS * draws.chunk_size)

    def _check_store(self, draws: DrawStore, num_draws: int) -> None:
        if draws.run_id != run_id(self.description):
            raise UserInputError(
                f"The checkpoint in {self.folder} belongs to draws that are not in {draws.path}. "
                "Pass the store that the run was started with, or a new path for both."
            )
        # Later ones are sampled again.
        if missing := draws.missing_chunks(0, self._checked_from(draws, num_draws)):
            raise UserInputError(
                f"{len(missing)} files of draws are missing in {draws.path}, {missing[0]} for one. "
                f"Restore them, or remove the store and {self.folder} to sample again."
            )

    def prepare_draws(self, resume: Resume, dims: Mapping, coords: Mapping) -> None:
        """Make the store, or cut it to the draws that the checkpoint knows of."""
        draws = self.draws
        if not isinstance(draws, DrawStore):
            return
        name = run_id(self.description)
        if resume.num_draws:
            for variable, names in dims.items():
                if (stored := draws.dims[variable]) != list(names):
                    raise UserInputError(
                        f"dims names the axes of {variable} {list(names)}, but {draws.path} has "
                        f"them as {stored}. Pass these, or none."
                    )
            if draws.num_draws > resume.num_draws:
                draws.truncate(resume.num_draws)
        elif (found := draws.run_id) == name and draws.num_draws and resume.adapted is None:
            raise UserInputError(
                f"{draws.path} holds draws of this run, but its checkpoints in {self.folder} are "
                "gone, so it can neither be returned nor go on. Read it with xarray or ArviZ; to "
                "sample again, choose a new path, or remove it."
            )
        elif found in (None, name):
            draws.create(name, dims, coords)
        else:
            raise UserInputError(
                f"{draws.path} is not empty, and what is there is not of this run (or its "
                "checkpoints are gone). Choose a new path, or remove it."
            )

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: Any) -> None:
        for checkpoints in (self.steps, self.adapted):
            if checkpoints is not None:
                checkpoints.close()
        if self.lock is not None:
            self.lock.release()
