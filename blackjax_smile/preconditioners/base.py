r"""What every preconditioner is: a linear map :math:`F` with a complement.

With mini-batch gradients the dynamics samples the posterior only if the noise
that turns the momentum is isotropic. A preconditioner is a map :math:`F` such
that :math:`F^T (V + R) F \propto I`, where :math:`V` is the covariance of the
gradient noise and :math:`R` a floor under it, whose noise is injected.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from blackjax.types import Array, ArrayTree, PRNGKey
from jax.flatten_util import ravel_pytree

__all__ = [
    "CurvatureStep",
    "Preconditioner",
    "PreconditionerEstimator",
    "curvature_step",
    "raveled",
]

#: Draws unit-variance noise in the shapes of a tree.
Draw = Callable[[PRNGKey, ArrayTree], ArrayTree]


@runtime_checkable
class Preconditioner(Protocol):
    r"""A linear map :math:`F` on trees, as a pytree of arrays.

    ``complement_trace`` is :math:`\mathrm{tr}(F^T R F)`, the variance that the
    complementary noise adds to a whitened gradient, summed over the parameters.
    """

    @property
    def complement_trace(self) -> Array: ...

    def to_position(self, momentum: ArrayTree) -> ArrayTree:
        r"""Return :math:`F u`, the velocity of the position."""
        ...

    def whiten(self, grad: ArrayTree) -> ArrayTree:
        r"""Return :math:`F^T g`, the gradient in whitened coordinates."""
        ...

    def refresh_noise(
        self,
        rng_key: PRNGKey,
        momentum: ArrayTree,
        isotropic: Array,
        complementary: Array,
        draw: Draw,
    ) -> ArrayTree:
        r"""Return a draw of covariance :math:`a^2 I + b^2 F^T R F`.

        :math:`a` is ``isotropic``, :math:`b` is ``complementary``; ``momentum``
        gives the shapes, ``draw`` the unit noise.
        """
        ...


class CurvatureStep(NamedTuple):
    r"""What a step says of the curvature, as it is and in whitened coordinates.

    change, whitened_change
        By what the gradient differs from that of the last step.
    displacement, whitened_displacement
        By what the positions of the two gradients differ.
    whitened_gradient
        The gradient.
    """

    change: ArrayTree
    displacement: ArrayTree
    whitened_change: ArrayTree
    whitened_displacement: ArrayTree
    whitened_gradient: ArrayTree


def curvature_step(
    preconditioner: Preconditioner,
    change: ArrayTree,
    whitened_displacement: ArrayTree,
    whitened_gradient: ArrayTree,
) -> CurvatureStep:
    """Return the step, of which what a statistic does not use costs nothing under `jax.jit`."""
    return CurvatureStep(
        change=change,
        displacement=preconditioner.to_position(whitened_displacement),
        whitened_change=preconditioner.whiten(change),
        whitened_displacement=whitened_displacement,
        whitened_gradient=whitened_gradient,
    )


def raveled(step: CurvatureStep) -> CurvatureStep:
    """Return the step with each of its trees as one vector."""
    return CurvatureStep(*(ravel_pytree(tree)[0] for tree in step))


class PreconditionerEstimator(NamedTuple):
    r"""How the adaptation estimates one kind of preconditioner, as pure functions.

    init
        ``variance -> preconditioner``: from the variance of the gradient noise
        of each parameter (a tree) alone.
    init_statistics
        ``preconditioner -> statistics``: the empty statistics of a window in
        which that preconditioner is used. What ``update`` changes in them must be
        sums over draws: several chains' are added up where they are pooled.
    update
        ``(statistics, noise, whitened_noise) -> statistics``: add one draw of
        the gradient noise.
    fit
        ``(statistics, preconditioner) -> preconditioner``: from a window's
        statistics and the preconditioner used in it. Without any noise in the
        window the old one is returned.
    noise_eigenvalues
        ``(statistics, preconditioner) -> (smallest, largest)``: of the whitened
        noise's covariance, complement included; 0 and infinity where they are not known.
    restrain
        ``(preconditioner, scale) -> preconditioner``: the map :math:`D F` with the floor
        :math:`D^{-1} R D^{-1}`, where the tree ``scale`` is the diagonal of :math:`D`; it
        differs from 1 only where there is no noise. By default the map as it is.
    update_gradient
        ``(statistics, gradient, step) -> statistics``: add the gradient of one step, noise and all,
        and what it says of the curvature, a `CurvatureStep`; a sum over steps, as ``update``. By
        default nothing is added.
    vector_limit
        Vectors of up to so many numbers are restrained number by number, where a whitened number
        is the parameter's alone, other leaves as a whole.
    many_draws
        Whether three draws of the noise per minibatch, from its quarters, are worth
        their cost: where correlations of many parameters are estimated.
    """

    init: Callable[[ArrayTree], Any]
    init_statistics: Callable[[Any], Any]
    update: Callable[[Any, ArrayTree, ArrayTree], Any]
    fit: Callable[[Any, Any], Any]
    noise_eigenvalues: Callable[[Any, Any], tuple[Array, Array]]
    restrain: Callable[[Any, ArrayTree], Any] = lambda preconditioner, scale: preconditioner
    update_gradient: Callable[[Any, ArrayTree, CurvatureStep], Any] = lambda statistics, *_: (
        statistics
    )
    vector_limit: int = 0
    many_draws: bool = False
