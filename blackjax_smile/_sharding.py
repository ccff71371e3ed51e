"""Meshes whose axes are the partitioner's, and arrays on them."""

from typing import Any

import jax
from blackjax.types import ArrayLikeTree
from jax.sharding import AxisType, Mesh, NamedSharding

__all__ = ["automatic", "automatic_mesh"]


def automatic_mesh(mesh: Mesh) -> Mesh:
    """Return the mesh with automatic axes: the partitioner decides on every layout."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def automatic(tree: ArrayLikeTree) -> Any:
    """Return the tree with its arrays where they are, on meshes with automatic axes.

    Those of `jax.make_mesh` are explicit: an array's layout is part of its type, and each gather
    and each axis that is mapped has to say what becomes of it. What takes many chains or rows
    here is written for one of them.
    """

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
            return leaf
        sharding = leaf.sharding
        if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
            return leaf
        if not sharding.mesh.explicit_axes:
            return leaf
        return jax.device_put(leaf, NamedSharding(automatic_mesh(sharding.mesh), sharding.spec))

    return jax.tree.map(convert, tree)
