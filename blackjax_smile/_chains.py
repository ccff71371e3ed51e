"""The starts of several chains, checked."""

from typing import Any

import jax
import jax.numpy as jnp
from blackjax.types import ArrayTree
from blackjax.util import pytree_size

from blackjax_smile import _tree
from blackjax_smile._sharding import automatic
from blackjax_smile.minibatch import data_size

__all__ = ["check_positions"]

#: Where the positions are in what this package returns.
POSITIONS = {
    "TrainedEnsemble": "positions",
    "EnsembleAdaptation": "state.position",
    "SampleResult": "states.position",
    "SmileState": "position",
}


def check_positions(positions: Any) -> tuple[ArrayTree, int]:
    """Return the positions as arrays, and the number of chains, their leading axis."""
    # By name: the results are made in layers above.
    if (name := type(positions).__name__) in POSITIONS:
        raise ValueError(
            f"positions must be the positions alone, got {name}: pass its {POSITIONS[name]}."
        )
    positions = automatic(_tree.as_float_tree(positions))
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(positions)]
    single = "For a single chain: jax.tree.map(lambda x: x[None], position)."
    try:
        num_chains = data_size(positions)
    except ValueError as error:
        raise ValueError(
            "Every leaf of positions needs one leading axis, the chains; got the shapes "
            f"{shapes}. {single}"
        ) from error
    if pytree_size(positions) == num_chains:
        raise ValueError(
            f"The leading axis of positions is that of the chains, so the shapes {shapes} are "
            f"{num_chains} chains of a single parameter; smile needs at least 2. {single}"
        )
    return positions, num_chains
