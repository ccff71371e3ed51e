"""SMILE: stochastic microcanonical Langevin ensembles for BlackJAX."""

import blackjax as _blackjax

from blackjax_smile import evaluation, function_space, prediction
from blackjax_smile.adaptation.smile_adaptation import SmileAdaptationInfo, smile_adaptation
from blackjax_smile.arviz_export import to_arviz
from blackjax_smile.control_variates import control_variates
from blackjax_smile.ensemble import (
    EnsembleAdaptation,
    adapt_ensemble,
    drop_failed,
    sample_ensemble,
)
from blackjax_smile.minibatch import minibatch_sampler, with_minibatches
from blackjax_smile.noise_diagnostics import GradientNoise, gradient_noise
from blackjax_smile.running.result import SampleResult
from blackjax_smile.running.sample import sample
from blackjax_smile.sequential_gradient import sequential_gradient
from blackjax_smile.sgmcmc import online_smile as _online_smile
from blackjax_smile.sgmcmc import smile as _smile
from blackjax_smile.sgmcmc.online_smile import OnlineSmileInfo, OnlineSmileState
from blackjax_smile.sgmcmc.smile import SmileInfo, SmileState
from blackjax_smile.warm_start import TrainedEnsemble, train_ensemble

smile = _blackjax.GenerateSamplingAPI(_smile.as_top_level_api, _smile.init, _smile.build_kernel)
online_smile = _blackjax.GenerateSamplingAPI(
    _online_smile.as_top_level_api, _online_smile.init, _online_smile.build_kernel
)

__all__ = [
    "EnsembleAdaptation",
    "GradientNoise",
    "OnlineSmileInfo",
    "OnlineSmileState",
    "SampleResult",
    "SmileAdaptationInfo",
    "SmileInfo",
    "SmileState",
    "TrainedEnsemble",
    "adapt_ensemble",
    "control_variates",
    "drop_failed",
    "evaluation",
    "function_space",
    "gradient_noise",
    "minibatch_sampler",
    "online_smile",
    "prediction",
    "sample",
    "sample_ensemble",
    "sequential_gradient",
    "smile",
    "smile_adaptation",
    "to_arviz",
    "train_ensemble",
    "with_minibatches",
]
__version__ = "0.1.0"
