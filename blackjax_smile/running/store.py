"""Draws on disk, as Zarr: appended to while xarray and ArviZ read.

Groups ``posterior`` and ``sample_stats``, dimensions (chain, draw, ...). Readers
see the consolidated metadata in the root's one file, which is replaced last: they
find all variables of the same length, and every draw in it written.
"""

import contextlib
import os
import pathlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from blackjax_smile._extras import require
from blackjax_smile.running.devices import Placement

__all__ = ["DrawStore", "Rows", "axis_names", "import_zarr", "run_folders"]

#: Draws of one chain, by group and variable.
Rows = dict[str, dict[str, np.ndarray]]

#: Entries of a chunk of the coordinate of the draws.
COORDINATE_CHUNK = 2**16


def axis_names(name: str, row: Any, dims: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the names of a variable's axes after chain and draw."""
    return list(dims.get(name, ())) or [f"{name}_dim_{axis}" for axis in range(len(row.shape))]


def import_zarr() -> Any:
    """Import Zarr, or say what to install."""
    return require("zarr", "store=")


def _local_folder(name: str, path: str | os.PathLike) -> pathlib.Path:
    """Return a folder independent of the working directory; raise for what is none."""
    text = os.fsdecode(path)
    if "://" in text:
        raise ValueError(
            f"{name} must be a folder of this machine, got {text!r}. Mount that place, or copy the "
            "folder there after the run."
        )
    folder = pathlib.Path(text).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{name} must be a folder, but {text!r} is a file.")
    return folder


def run_folders(
    store: str | os.PathLike | None, checkpoint: str | os.PathLike | None
) -> tuple[pathlib.Path | None, pathlib.Path | None]:
    """Return the folders of draws and checkpoints, by default one next to the other."""
    if store is None:
        if checkpoint is None:
            return None, None
        raise ValueError("A checkpoint needs a store: the draws up to it must be kept somewhere.")
    draws = _local_folder("store", store)
    folder = _local_folder("checkpoint", checkpoint or f"{draws}.checkpoint")
    if draws == folder or draws in folder.parents or folder in draws.parents:
        raise ValueError(
            f"store and checkpoint must be two folders, one outside the other, got {store!r} and "
            f"{checkpoint!r}."
        )
    return draws, folder


class DrawStore:
    """A Zarr store of one run.

    Parameters
    ----------
    path
        Its folder.
    rows
        Shapes and dtypes of one draw of one chain, by group and variable.
    chunk_size
        Draws in a chunk; a chunk holds one chain.
    placement
        Which chains this process writes.
    """

    def __init__(
        self, path: pathlib.Path, rows: Mapping[str, Any], chunk_size: int, placement: Placement
    ):
        self.path, self.rows = path, rows
        self.chunk_size, self.placement = chunk_size, placement
        self.zarr = import_zarr()

    @property
    def run_id(self) -> str | None:
        """The run that the store belongs to; None if there is nothing at the path."""
        if not self.path.exists() or not any(self.path.iterdir()):
            return None
        try:
            return str(self._open("r").attrs["run_id"])
        except (FileNotFoundError, KeyError, ValueError):
            return "unknown"

    def create(
        self, run_id: str, dims: Mapping[str, Sequence[str]], coords: Mapping[str, Any]
    ) -> None:
        """Make an empty store in place of what is there."""
        if self.placement.is_main:
            with self._explained():
                self._create(run_id, dims, coords)
        self.placement.barrier("store created")

    def _create(self, run_id, dims, coords) -> None:
        from blackjax_smile import __version__  # not at the top: the package imports this module

        common = {
            "inference_library": "blackjax_smile",
            "inference_library_version": __version__,
        }
        root = self.zarr.create_group(
            self.path, overwrite=True, zarr_format=3, attributes={**common, "run_id": run_id}
        )
        chains = np.arange(self.placement.num_chains)
        for group_name, variables in self.rows.items():
            group = root.create_group(group_name, attributes=common)
            used: dict[str, int] = {}
            for name, row in variables.items():
                names = axis_names(name, row, dims)
                used |= dict(zip(names, row.shape, strict=True))
                attributes = {"comment": LP_COMMENT} if name == "lp" else {}
                group.create_array(
                    name,
                    shape=(len(chains), 0, *row.shape),
                    # An empty axis needs a chunk, too.
                    chunks=(1, self.chunk_size, *(max(n, 1) for n in row.shape)),
                    dtype=row.dtype,
                    dimension_names=("chain", "draw", *names),
                    # No compression: the bits of draws are random. A checksum instead.
                    compressors=[self.zarr.codecs.Crc32cCodec()],
                    attributes=attributes,
                )
            for name, values in {"chain": chains, **coords}.items():
                if name == "chain" or name in used:
                    group.create_array(name, data=np.asarray(values), dimension_names=(name,))
            group.create_array(
                "draw",
                shape=(0,),
                chunks=(COORDINATE_CHUNK,),
                dtype="int64",
                dimension_names=("draw",),
            )
        self._publish()

    @property
    def dims(self) -> dict[str, list[str]]:
        """Names of the axes of what is kept, after chain and draw."""
        group = self._open("r")["posterior"]
        return {
            name: list(group[name].metadata.dimension_names[2:]) for name in self.rows["posterior"]
        }

    @property
    def coords(self) -> dict[str, np.ndarray]:
        """Values along the axes that have some."""
        group = self._open("r")["posterior"]
        names = dict.fromkeys(name for names in self.dims.values() for name in names)
        return {name: group[name][...] for name in names if name in group}

    @property
    def num_draws(self) -> int:
        """Draws that every variable holds; none if the making of the store was cut short."""
        group = self._open("r")
        names = [f"{name}/{inner}" for name, variables in self.rows.items() for inner in variables]
        return min(group[name].shape[1] if name in group else 0 for name in names)

    def append(self, first: int, rows: Rows) -> None:
        """Write this process's chains' draws from ``first`` on, which end the store then."""
        count = len(next(iter(rows["sample_stats"].values()))[0])
        with self._explained(), self.zarr.config.set({"array.write_empty_chunks": True}):
            if self.placement.is_main:
                if (found := self.num_draws) < first:
                    raise RuntimeError(
                        f"{self.path} holds {found} draws of the {first} that were written: "
                        "something else has changed it."
                    )
                self._resize(first + count)
            self.placement.barrier("store resized")
            group = self._open("r+")
            for group_name, variables in rows.items():
                for name, values in variables.items():
                    region = (self.placement.local_chains, slice(first, first + count))
                    group[f"{group_name}/{name}"][region] = values
            self.placement.barrier("draws written")
            if self.placement.is_main:
                self._publish()

    def truncate(self, num_draws: int) -> None:
        """Forget the draws after the first ``num_draws``."""
        if self.placement.is_main:
            with self._explained():
                self._resize(num_draws)
                self._publish()
        self.placement.barrier("store truncated")

    def check(self, first: int, stop: int) -> None:
        """Raise a ValueError if some of the draws are missing or damaged."""
        if self.num_draws < stop:
            raise ValueError(f"the store holds {self.num_draws} draws of {stop}")
        if missing := self.missing_chunks(first, stop):
            raise ValueError(f"files of draws are missing, {missing[0]} for one")
        group = self._open("r")
        for group_name, variables in self.rows.items():
            for name in variables:
                array = group[f"{group_name}/{name}"]
                for draw in range(first, stop, array.chunks[1]):
                    array[:, draw]
                if stop > first:
                    array[:, stop - 1]

    def missing_chunks(self, first: int, stop: int) -> list[pathlib.Path]:
        """Return the files of draws that are not there: Zarr reads zeros in their place."""
        group, missing = self._open("r"), []
        for group_name, variables in self.rows.items():
            for name, row in variables.items():
                if 0 in row.shape:
                    continue
                array = group[f"{group_name}/{name}"]
                # The store's own, which may have been made with another chunk_size.
                chunks = range(first // array.chunks[1], -(-stop // array.chunks[1]))
                folder = self.path / group_name / name
                inner = (0,) * len(row.shape)
                files = [
                    folder / array.metadata.encode_chunk_key((chain, chunk, *inner))
                    for chain in range(self.placement.num_chains)
                    for chunk in chunks
                ]
                missing += [file for file in files if not file.exists()]
        return missing

    def read(self, group_name: str, name: str) -> Any:
        """Return a variable as a lazy Zarr array."""
        return self._open("r")[f"{group_name}/{name}"]

    def _resize(self, num_draws: int) -> None:
        group = self._open("r+")
        for group_name, variables in self.rows.items():
            for name in variables:
                array = group[f"{group_name}/{name}"]
                array.resize((array.shape[0], num_draws, *array.shape[2:]))
            draws = group[f"{group_name}/draw"]
            before = min(draws.shape[0], num_draws)
            draws.resize((num_draws,))
            draws[before:] = np.arange(before, num_draws)

    def _publish(self) -> None:
        """Show readers the new length."""
        self.zarr.consolidate_metadata(str(self.path), zarr_format=3)

    def _open(self, mode: str) -> Any:
        return self.zarr.open_group(self.path, mode=mode, zarr_format=3, use_consolidated=False)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            with warnings.catch_warnings():
                # Consolidated metadata and text are not yet in the specification of format 3.
                warnings.simplefilter("ignore")
                yield
        except OSError as error:
            raise OSError(
                error.errno,
                f"The draws cannot be written to the store ({error.strerror or error}). What was "
                "sampled up to the last checkpoint is safe: make room or restore access, then "
                "start the same command again to resume",
                str(self.path),
            ) from error


LP_COMMENT = (
    "Log-density that the state holds: an estimate from the step's minibatch, not comparable "
    "between draws."
)
