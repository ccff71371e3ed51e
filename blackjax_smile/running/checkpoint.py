"""Checkpoints by orbax: the last good one is found, a half-written one is not used."""

import errno
import hashlib
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from blackjax.types import ArrayTree

from blackjax_smile._extras import require
from blackjax_smile.running.devices import Placement

__all__ = ["Checkpoints"]

#: Checkpoints kept, so that a damaged last one is not the end.
NUM_KEPT = 3


class Checkpoints:
    """The checkpoints of a run in a folder.

    A checkpoint is a tree of arrays that lead with the chain, and a JSON record
    that holds a digest of them.
    """

    def __init__(self, path: pathlib.Path, placement: Placement):
        self.orbax = require("orbax.checkpoint", "checkpoint=")
        # It reports every save at level INFO or WARNING to the root's handlers.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.path, self.placement = path.absolute(), placement
        options = self.orbax.CheckpointManagerOptions(
            max_to_keep=NUM_KEPT,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
        )
        with self._explained():
            self.manager = self.orbax.CheckpointManager(self.path, options=options)

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, newest first."""
        return sorted(self.manager.all_steps(read=True), reverse=True)

    def save(self, step: int, tree: ArrayTree, record: dict[str, Any]) -> None:
        """Write a checkpoint, in place of one of the same step."""
        args = self.orbax.args
        record = {**record, "digest": self._digest(tree)}
        with self._explained():
            if step in self.manager.all_steps():
                self.manager.delete(step)
            self.manager.save(
                step,
                args=args.Composite(
                    arrays=args.StandardSave(_numbered(tree)), record=args.JsonSave(record)
                ),
                force=True,
            )
            self.manager.wait_until_finished()

    def record(self, step: int) -> dict[str, Any]:
        """Return a checkpoint's record."""
        args = self.orbax.args
        return self.manager.restore(step, args=args.Composite(record=args.JsonRestore()))["record"]

    def restore(self, step: int, like: ArrayTree) -> ArrayTree:
        """Return a checkpoint's arrays in the structure, and on the devices, of the run.

        Raises
        ------
        ValueError
            If they are not what was written.
        """
        args, sharding = self.orbax.args, self.placement.sharding()
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
        )
        restored = self.manager.restore(
            step, args=args.Composite(arrays=args.StandardRestore(_numbered(abstract)))
        )["arrays"]
        leaves = [restored[name] for name in sorted(restored)]
        tree = jax.tree.unflatten(jax.tree.structure(like), leaves)
        digest, expected = self._digest(tree), self.record(step)["digest"]
        if digest and expected and digest != expected:
            raise ValueError("its contents have changed since it was written")
        return tree

    def delete(self, step: int) -> None:
        """Remove a checkpoint that is not good."""
        self.manager.delete(step)

    def good_steps(self) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Yield each step with its record, newest first; None where it cannot be read."""
        for step in self.steps():
            try:
                yield step, self.record(step)
            except Exception:
                yield step, None

    def close(self) -> None:
        self.manager.close()

    def _digest(self, tree: ArrayTree) -> str | None:
        """Return a digest of the arrays; on several hosts nobody holds them all."""
        if self.placement.is_distributed:
            return None
        digest = hashlib.blake2b(digest_size=16)
        for leaf in jax.tree.leaves(jax.device_get(tree)):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()

    def _explained(self) -> "_Explained":
        return _Explained(self.path)


class _Explained:
    """Turns what a full disk becomes on its way through orbax into an OSError."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        signs = ("No space left", "File too large", "Read-only", "Permission denied", "quota")
        chain, cause = [], error
        while cause is not None:
            chain.append(cause)
            cause = cause.__cause__ or cause.__context__
        known = [e for e in chain if isinstance(e, OSError) or any(s in str(e) for s in signs)]
        if not known:
            return
        number = getattr(known[-1], "errno", None) or errno.EIO
        raise OSError(
            number,
            f"The checkpoint cannot be written ({known[-1]}). The one before is safe: make room "
            "or restore access, then start the same command again to resume",
            str(self.path),
        ) from error


def _numbered(tree: ArrayTree) -> dict[str, Any]:
    """Return the leaves by number: a structure that orbax takes whatever the tree's is."""
    return {f"{i:06d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}
