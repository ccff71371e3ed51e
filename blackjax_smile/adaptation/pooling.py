r"""What chains that adapt together share.

Chains under `jax.vmap` with an axis name see each other through collectives.
Two kinds of quantity are pooled:

- moments of the gradient noise by their sum, so that one preconditioner is fitted
  to the noise of all chains: K times the draws in a window of the same length;
- scalars (step size, natural length, energy threshold) by their median, on the
  logarithmic scale: a geometric mean would do as well among sound chains, but a
  chain that is stuck shows a step size or a length next to zero, and neither a
  geometric nor a harmonic mean survives it.

A chain takes in accepted steps alone, so one that fails adds nothing to the sums.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree

__all__ = ["CHAIN_AXIS", "SEPARATE", "Pool", "check_axis"]

#: Name of the axis of the chains in `jax.vmap`.
CHAIN_AXIS = "chain"


@dataclasses.dataclass(frozen=True)
class Pool:
    """Collectives over the chains, or nothing at all for a chain by itself.

    axis
        The axis name, or None.
    """

    axis: str | None = None

    def sums(self, moments: ArrayTree, empty: ArrayTree) -> ArrayTree:
        """Return the moments of all chains' draws; what is no sum is in ``empty`` as well."""
        if self.axis is None:
            return moments
        return jax.tree.map(lambda m, e: e + jax.lax.psum(m - e, self.axis), moments, empty)

    def median(self, value: Array) -> Array:
        """Return the median over the chains, geometric between the two in the middle."""
        if self.axis is None:
            return value
        values = jax.lax.all_gather(jnp.log(value), self.axis)
        return jnp.exp(jnp.nanmedian(values)).astype(value.dtype)

    def replace_medians(self, tree: Any, *names: str) -> Any:
        """Return a NamedTuple with the medians of some of its fields."""
        if self.axis is None:
            return tree
        return tree._replace(**{name: self.median(getattr(tree, name)) for name in names})


#: Chains that share nothing.
SEPARATE = Pool()


def check_axis(axis: str | None) -> None:
    """Raise unless the chains' axis is there.

    Raises
    ------
    ValueError
        Outside `jax.vmap` with that axis name.
    """
    if axis is None:
        return
    try:
        jax.lax.axis_index(axis)
    except NameError:
        raise ValueError(
            "A pooled warmup runs all chains at once: call adapt_ensemble(rng_key, warmup, "
            f"positions), or jax.vmap(..., axis_name={axis!r}) around warmup.run."
        ) from None
