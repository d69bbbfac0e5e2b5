"""How do we walk back to data? Samplers, reverse processes and per-sample noise.

Each choice of `sampler=` is a file in `conf/sampler/` that names a class, and each class has a module here:

    ddpm, ddim      AncestralSampler     ancestral
    pc              PredictorCorrector   predictor_corrector (predictors), correctors
    langevin        AnnealedLangevin     langevin
    heun            HeunSampler          heun
    dpm, unipc      DPMSolver, UniPC     dpm_solver
    deis            DEISSampler          deis
    ode             ODESampler           ode; its solver ode_methods, ode_kinds, ode_adams
    sde             SDESampler           sde; its methods sde_methods, its Brownian motion brownian

Samplers of posteriors take a `guidance.PosteriorDenoiser`, and y=: `Replacement`, `RePaint`, `TwistedSMC`. Others take
it too, as any denoiser.

Calling a sampler (`base.Sampler.__call__`) draws x_T and hands a `walk.Walk` to the sampler's own `walk` method, which
takes the steps. The solvers of `ode` and `sde` solve a `reverse.ReverseProcess`, as likelihoods do. Samplers of your
own are subclasses of `Sampler` with a method `walk`, or of `MultistepSampler` with a method `coefficients`.

`tuning.tune_grid` finds the grid on which a sampler's few steps come nearest to many.

Methods, predictors, correctors, coordinates and grids are given by name or as instances of classes of your own
(`ODEMethod`, `SDEMethod`, `Predictor`, `Corrector`, `Coordinate`, `sde_diffusion.sde.Grid`).
"""

from sde_diffusion.sampling.ancestral import AncestralSampler
from sde_diffusion.sampling.base import Sampler, Samples
from sde_diffusion.sampling.coordinates import COORDINATES, Coordinate, NoiseToSignal, State, UnitVariance
from sde_diffusion.sampling.correctors import CORRECTORS, Corrector
from sde_diffusion.sampling.deis import DEISSampler
from sde_diffusion.sampling.dpm_solver import DPMSolver, UniPC
from sde_diffusion.sampling.heun import HeunSampler
from sde_diffusion.sampling.langevin import AnnealedLangevin
from sde_diffusion.sampling.measured import PosteriorSampler
from sde_diffusion.sampling.multistep import Coefficients, MultistepSampler
from sde_diffusion.sampling.noise import Noise
from sde_diffusion.sampling.ode import ODESampler
from sde_diffusion.sampling.ode_kinds import ODEMethod
from sde_diffusion.sampling.predictor_corrector import PREDICTORS, Predictor, PredictorCorrector
from sde_diffusion.sampling.reference import noised, start_time
from sde_diffusion.sampling.repaint import RePaint
from sde_diffusion.sampling.replacement import Replacement
from sde_diffusion.sampling.reverse import ReverseProcess
from sde_diffusion.sampling.sde import SDESampler
from sde_diffusion.sampling.sde_methods import SDEMethod
from sde_diffusion.sampling.tuning import Tuned, tune_grid
from sde_diffusion.sampling.twisted import TwistedSMC
from sde_diffusion.sampling.walk import Callback, Walk

__all__ = [
    "COORDINATES",
    "CORRECTORS",
    "PREDICTORS",
    "AncestralSampler",
    "AnnealedLangevin",
    "Callback",
    "Coefficients",
    "Coordinate",
    "Corrector",
    "DEISSampler",
    "DPMSolver",
    "HeunSampler",
    "MultistepSampler",
    "Noise",
    "NoiseToSignal",
    "ODEMethod",
    "ODESampler",
    "PosteriorSampler",
    "Predictor",
    "PredictorCorrector",
    "RePaint",
    "Replacement",
    "ReverseProcess",
    "SDEMethod",
    "SDESampler",
    "Sampler",
    "Samples",
    "State",
    "Tuned",
    "TwistedSMC",
    "UniPC",
    "UnitVariance",
    "Walk",
    "noised",
    "start_time",
    "tune_grid",
]
