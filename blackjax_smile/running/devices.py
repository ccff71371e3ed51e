"""Where a run's arrays live: one device, a mesh of them, or a mesh across hosts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.types import ArrayTree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from blackjax_smile._sharding import automatic_mesh

__all__ = ["Placement"]


@dataclasses.dataclass(frozen=True)
class Placement:
    """Lays chains (and, if asked, the rows of minibatches) out over a mesh.

    Parameters
    ----------
    mesh
        None: the default device. Else the first axis holds the chains, a second
        one, if there is, the rows of each minibatch.
    num_chains
        A multiple of the first axis' size.
    """

    mesh: Mesh | None
    num_chains: int
    #: The default device, which a thread that reads minibatches does not know.
    device: Any = dataclasses.field(init=False, default=None)

    def __post_init__(self) -> None:
        mesh, num_chains = self.mesh, self.num_chains
        if mesh is None:
            if jax.process_count() > 1:
                raise ValueError(
                    f"jax.distributed runs {jax.process_count()} processes: pass a mesh over "
                    "their devices, jax.make_mesh((jax.device_count(),), ('chains',))."
                )
            (device,) = jnp.zeros(()).devices()
            object.__setattr__(self, "device", device)
            return
        if not isinstance(mesh, Mesh):
            raise ValueError(
                "mesh must be a mesh of devices, such as jax.make_mesh((jax.device_count(),), "
                f"('chains',)), got {mesh!r}."
            )
        if len(mesh.axis_names) > 2:
            raise ValueError(
                "mesh needs one axis (chains) or two (chains, rows of a minibatch), got "
                f"{mesh.axis_names}."
            )
        # The kernels are written for one chain: the partitioner does the rest.
        mesh = automatic_mesh(mesh)
        object.__setattr__(self, "mesh", mesh)
        size = mesh.shape[mesh.axis_names[0]]
        if num_chains % size:
            raise ValueError(
                f"{num_chains} chains cannot be divided among the {size} devices of the mesh's "
                f"axis {mesh.axis_names[0]!r}: the number of chains must be a multiple of it."
            )

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return jax.process_index() == 0

    @property
    def is_distributed(self) -> bool:
        return self.mesh is not None and jax.process_count() > 1

    def spec(self, leading: int = 0) -> PartitionSpec:
        """Return the layout of arrays whose chain axis follows ``leading`` others."""
        assert self.mesh is not None
        return PartitionSpec(*(None,) * leading, self.mesh.axis_names[0])

    def sharding(self, leading: int = 0, shared: bool = False) -> Any:
        """Return where arrays with a chain axis go (or, shared, without one)."""
        if self.mesh is None:
            return jax.sharding.SingleDeviceSharding(self.device)
        return NamedSharding(self.mesh, PartitionSpec() if shared else self.spec(leading))

    def put(self, tree: ArrayTree, leading: int = 0, shared: bool = False) -> ArrayTree:
        """Put host arrays, the same on every process, on the devices."""
        sharding = self.sharding(leading, shared)
        return jax.tree.map(lambda x: jax.device_put(np.asarray(x), sharding), tree)

    def replicate(self, tree: ArrayTree) -> ArrayTree:
        """Put arrays of the default device, the same on every process, on every device."""
        if self.is_distributed:
            return self.put(tree, shared=True)
        return jax.device_put(tree, self.sharding(shared=True))

    def put_local(self, tree: ArrayTree, leading: int, shared: bool) -> ArrayTree:
        """Put host arrays of this process's chains alone on its devices."""
        sharding = self.sharding(leading, shared)
        if not self.is_distributed:
            return jax.device_put(tree, sharding)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
        )

    @property
    def local_chains(self) -> slice:
        """The chains of this process."""
        if not self.is_distributed:
            return slice(0, self.num_chains)
        indices = self.sharding().addressable_devices_indices_map((self.num_chains,)).values()
        spans = [index[0].indices(self.num_chains) for index in indices]
        return slice(min(span[0] for span in spans), max(span[1] for span in spans))

    def fetch(self, tree: ArrayTree) -> ArrayTree:
        """Return the local chains' part of arrays that lead with the chain, on the host."""
        if not self.is_distributed:
            return jax.device_get(tree)

        def local(leaf):
            parts = {s.index[0].indices(self.num_chains)[0]: s for s in leaf.addressable_shards}
            return np.concatenate([np.asarray(parts[start].data) for start in sorted(parts)])

        return jax.tree.map(local, tree)

    def compile(
        self, function: Callable, specs: str, donate: tuple[int, ...] = (), num_outputs: int = 1
    ) -> Callable:
        """Compile a function of chains so that every device runs its own, without talk.

        Parameters
        ----------
        function
            Of positional arguments.
        specs
            One letter per argument: ``c`` leads with the chain, ``r`` is the same on
            every device, ``b`` is minibatches with the chain as second axis.
        donate
            Arguments whose memory the result may take.
        num_outputs
            Number of values returned, which all lead with the chain.
        """
        if self.mesh is None:
            return jax.jit(function, donate_argnums=donate)
        kinds = {"c": self.spec(), "r": PartitionSpec(), "b": self.spec(1)}
        outputs = self.spec() if num_outputs == 1 else (self.spec(),) * num_outputs
        sharded = jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=tuple(kinds[kind] for kind in specs),
            out_specs=outputs,
            axis_names={self.mesh.axis_names[0]},
            check_vma=False,
        )
        return jax.jit(sharded, donate_argnums=donate)

    def spread(self, leading: int) -> "SpreadRows":
        """Return a function that spreads minibatches over the mesh's second axis.

        Inside `compile`; the rows follow ``leading`` axes.
        """
        return SpreadRows(self.mesh, leading)

    def agree(self, *numbers: int) -> tuple[int, ...]:
        """Return the main process's numbers on every process."""
        if not self.is_distributed:
            return numbers
        from jax.experimental import multihost_utils

        values = multihost_utils.broadcast_one_to_all(np.asarray(numbers, np.int32))
        return tuple(int(value) for value in values)

    def barrier(self, name: str) -> None:
        """Wait for the other processes."""
        if self.is_distributed:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices(name)


@dataclasses.dataclass(frozen=True)
class SpreadRows:
    """See `Placement.spread`."""

    mesh: Mesh | None
    leading: int

    def __call__(self, minibatches: ArrayTree) -> ArrayTree:
        if self.mesh is None or len(self.mesh.axis_names) < 2:
            return minibatches
        spec = PartitionSpec(*(None,) * self.leading, self.mesh.axis_names[1])
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, spec), minibatches)
