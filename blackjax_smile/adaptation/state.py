"""What the adaptation carries from step to step, and what it reports of a window."""

from typing import Any, NamedTuple

from blackjax.types import Array, ArrayTree

from blackjax_smile.adaptation.energy import EnergyMoments
from blackjax_smile.adaptation.refresh_length import WhitenedPath
from blackjax_smile.adaptation.restraint import GradientMoments
from blackjax_smile.minibatch_gradient import Isotropy
from blackjax_smile.preconditioners.moments import NoiseMoments
from blackjax_smile.sgmcmc.smile import SmileState

__all__ = ["AdaptationState", "Probe", "WindowInfo", "WindowStatistics"]


class Probe(NamedTuple):
    """What the gradients at the initial position have told so far.

    moments
        Variances of the gradient noise.
    grad
        The last finite gradient.
    num_finite
        Number of finite gradients.
    """

    moments: NoiseMoments
    grad: ArrayTree
    num_finite: Array


class WindowStatistics(NamedTuple):
    """Statistics of one window; rejected steps count in ``num_rejected`` alone."""

    noise: Any
    isotropy: Isotropy
    path: WhitenedPath
    energy: EnergyMoments
    gradient: GradientMoments
    deflection: Array
    alignment: Array
    num_rejected: Array


class AdaptationState(NamedTuple):
    """State of the adaptation between two steps.

    sampler
        State of the chain.
    preconditioner
        The map in use.
    step_size
        Step-size statistic, with the step size in use.
    natural_steps, L_steps
        The natural length of the last slow window, and the refresh length, in
        steps: as a number of steps, a length survives a change of the map's scale.
        ``L_steps`` is 0 until a window has been seen.
    target_deflection
        Target of the window under way, in radians.
    grad
        The last accepted gradient.
    grad_squares
        Its squares, whitened by the map in use, see `restraint.products`.
    window
        Statistics of the window under way.
    """

    sampler: SmileState
    preconditioner: Any
    step_size: Any
    natural_steps: Array
    L_steps: Array
    target_deflection: Array
    grad: ArrayTree
    grad_squares: ArrayTree
    window: WindowStatistics


class WindowInfo(NamedTuple):
    """What a window found; with a leading axis, one entry per window.

    step_size
        Step size after the window, under the preconditioner used in it.
    L
        Refresh length that follows from the window.
    deflection
        Mean deflection of the accepted steps, in radians.
    alignment
        Mean cosine of the angle between momentum and gradient in the accepted steps: about 0
        in the stationary law. Well above, the chain was on its way there.
    target_deflection
        Target of the deflection in the window. In the last one it is lower where the noise
        alone turns the momentum more often than the chain needs.
    num_rejected
        Number of rejected steps.
    anisotropy
        Relative standard deviation of the eigenvalues of the whitened noise's
        covariance, under the preconditioner used in the window: 0 for white
        noise. Well above 1, the preconditioner does not hold and the result
        leans on the refresh alone.
    noise_variance
        Mean of those eigenvalues.
    smallest_eigenvalue, largest_eigenvalue
        The smallest and the largest, complementary noise included. Sampling
        alone spreads them to about ``(1 -+ sqrt(d / steps))**2``. 0 and infinity
        where they are not known: in models too large for it, under kronecker and low_rank.
    natural_length, noise_length
        The two lengths that bound ``L``.
    diffusive_length
        What ``natural_length`` would be of a path that nothing confines and nothing draws: the
        natural one is smaller in the posterior, larger on the way to it. (The last window is too
        short to tell, and keeps the natural length of the one before.)
    energy_threshold
        Energy threshold that follows from the window.
    """

    step_size: Array
    L: Array
    deflection: Array
    alignment: Array
    target_deflection: Array
    num_rejected: Array
    anisotropy: Array
    noise_variance: Array
    smallest_eigenvalue: Array
    largest_eigenvalue: Array
    natural_length: Array
    noise_length: Array
    diffusive_length: Array
    energy_threshold: Array
