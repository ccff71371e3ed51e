"""What `blackjax_smile.sample` returns."""

import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from blackjax.types import ArrayTree

from blackjax_smile._extras import require
from blackjax_smile.adaptation.smile_adaptation import SmileAdaptationInfo

__all__ = ["SampleResult"]


class SampleResult(NamedTuple):
    """A finished run; see the methods for its draws.

    states, parameters
        `SmileState` of every chain after the last step, and what the warmup found, as
        `smile` takes it; leaves lead with the chain.
    adaptation
        `SmileAdaptationInfo`; arrays lead with the chain.
    draws
        What was kept of each draw, by variable: arrays ``(chain, draw, ...)``,
        NumPy's, or with a store Zarr's, which are read when they are indexed.
    statistics
        Numbers of each draw, likewise: ``lp``, ``diverging`` (whether a step since
        the last draw was rejected), ``num_rejected``, and means over the accepted
        steps since the last draw of ``energy_error``, ``kinetic_change``,
        ``deflection`` and ``alignment``.
    store
        Folder of the store, or None.
    treedef
        Structure of what was kept of each draw.
    dims, coords
        As given to `sample`.
    thinning
        Steps from one draw to the next.
    """

    states: Any
    parameters: dict[str, Any]
    adaptation: SmileAdaptationInfo
    draws: dict[str, Any]
    statistics: dict[str, Any]
    store: pathlib.Path | None
    treedef: Any
    dims: Mapping[str, Sequence[str]]
    coords: Mapping[str, Any]
    thinning: int

    def __repr__(self) -> str:
        shapes = {name: tuple(array.shape) for name, array in self.draws.items()}
        variables = ", ".join(f"{name} {shape[2:]}" for name, shape in shapes.items())
        num_chains, num_draws = next(iter(shapes.values()))[:2]
        where = "in memory" if self.store is None else f"in {self.store}"
        return f"SampleResult({num_chains} chains of {num_draws} draws {where}: {variables})"

    @property
    def positions(self) -> ArrayTree:
        """The draws in the structure of the position (or what ``collect`` returned).

        Reads all of them into memory.
        """
        leaves = [np.asarray(array[...]) for array in self.draws.values()]
        return jax.tree.unflatten(self.treedef, leaves)

    def to_arviz(self, **groups: Any) -> Any:
        """Return the draws for ArviZ: ``InferenceData`` on 0.x, ``DataTree`` on 1.x.

        With a store nothing is read before it is needed.

        Parameters
        ----------
        groups
            ``log_likelihood``, ``posterior_predictive``, ``observed_data`` and
            ``attrs`` of `blackjax_smile.to_arviz`. With any of them, all draws are read.
        """
        from blackjax_smile.arviz_export import STATISTICS, import_arviz, to_arviz

        if self.store is None or groups:
            fields = {STATISTICS[name]: array[...] for name, array in self.statistics.items()}
            return to_arviz(
                {name: array[...] for name, array in self.draws.items()},
                types.SimpleNamespace(**fields),
                chain_axis=True,
                dims=self.dims,
                coords=self.coords,
                **groups,
            )
        xarray = require("xarray", "to_arviz() of a store")
        tree = xarray.open_datatree(self.store, engine="zarr", chunks=None)
        arviz = import_arviz()
        # ArviZ 1 works on xarray's trees.
        return arviz.from_datatree(tree) if hasattr(arviz, "from_datatree") else tree
