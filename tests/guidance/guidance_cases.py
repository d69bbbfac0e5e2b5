"""What the guidance tests share: closed forms with classes, and what guidance makes of Gaussians."""

import math

import torch
from scipy.integrate import quad
from torch import Tensor

from sde_diffusion import SDE, ClassifierGuidance, Denoiser, GaussianDenoiser, GaussianMixtureDenoiser, Prediction
from sde_diffusion.denoiser.exact import ExactPrediction


class Classes(Denoiser):
    """Exact beliefs of several distributions, of which each sample's label chooses one; the last is the null class."""

    def __init__(self, *beliefs: Denoiser) -> None:
        super().__init__()
        self.beliefs, self.sde = torch.nn.ModuleList(beliefs), beliefs[0].sde
        self.rows: list[int] = []

    def forward(self, x_t: Tensor, t, label: Tensor) -> Prediction:
        self.rows.append(len(x_t))
        answers = [belief(x_t, t) for belief in self.beliefs]
        each = torch.arange(len(x_t))
        x0, score = (torch.stack([getattr(a, name) for a in answers])[label, each] for name in ("x0", "score"))
        return ExactPrediction(self.sde, x_t, t, x0, score)


M, S_C, S_U = 1.0, 0.5, 1.0


def gaussians(sde: SDE, size: int = 1) -> Classes:
    """Class 0 is N(1, 0.5^2) in each dimension, the null class N(0, 1)."""
    ones = torch.ones(size, dtype=torch.float64)
    return Classes(GaussianDenoiser(sde, M * ones, S_C), GaussianDenoiser(sde, 0 * ones, S_U))


def by_classifier(sde: SDE) -> ClassifierGuidance:
    """The same from N(0, 1) and p(c | x_t) = q_c(x_t) / 5 q_u(x_t), at most 2 e^(2/3) / 5 < 1, with scale 3.

    Such a class exists: N(0, 1) is a mixture of 1/5 of N(1, 0.5^2) and of the rest.
    """
    conditional, unconditional = gaussians(sde).beliefs

    def logits(x_t: Tensor, t: Tensor) -> Tensor:
        log_p = conditional.log_prob(x_t, t) - unconditional.log_prob(x_t, t) - math.log(5)
        return torch.stack([log_p, torch.log(-torch.expm1(log_p))], 1)

    return ClassifierGuidance(unconditional, logits, 3.0)


def classes_of(mixture: GaussianMixtureDenoiser) -> Classes:
    """Each component of a mixture is a class, the mixture the null class."""
    own = (GaussianDenoiser(mixture.sde, m, s) for m, s in zip(mixture.means, mixture.stds, strict=True))
    return Classes(*own, mixture)


def guided_gaussian(sde: SDE, w: float, eta: int, t_end: float | None = None) -> tuple[float, float]:
    """Mean and std of what a walk (eta 0: flow, 1: reverse SDE) with guidance w leaves, x0 taken at its end.

    In z = x / alpha and r = sigma / alpha the guided score is b(r) - a(r) z with a = w / (s_c^2 + r^2) + (1 - w) /
    (s_u^2 + r^2) and b = w m / (s_c^2 + r^2), and both walks are linear: dz/dr = k r (a z - b), k = 1 + eta, with noise
    of variance 2 eta r. So z(0) = Phi^k z(R) + k int Phi^k r b dr, with Phi = exp(-int_0^r r a), and the noise adds
    2 eta int r Phi^2k dr. Up to r_end the same with Phi(r) / Phi(r_end).
    """
    start = math.exp(-0.5 * float(sde.log_snr(sde.t_max)))
    end = math.exp(-0.5 * float(sde.log_snr(sde.t_min if t_end is None else t_end)))
    k = 1 + eta

    def a(r: float) -> float:
        return w / (S_C**2 + r**2) + (1 - w) / (S_U**2 + r**2)

    def b(r: float) -> float:
        return w * M / (S_C**2 + r**2)

    def phi(r: float) -> float:
        ratios = ((S**2 + end**2) / (S**2 + r**2) for S in (S_C, S_U))
        return math.prod(ratio ** (k * power / 2) for ratio, power in zip(ratios, (w, 1 - w), strict=True))

    def integral(f) -> float:  # in log r, over many octaves
        low = math.log(max(end, 1e-9))
        return quad(lambda v: math.exp(2 * v) * f(math.exp(v)), low, math.log(start), limit=500, epsabs=1e-12)[0]

    mean = k * integral(lambda r: phi(r) * b(r))
    variance = (start * phi(start)) ** 2 + 2 * eta * integral(lambda r: phi(r) ** 2)
    shrink = 1 - end**2 * a(end)
    return mean * shrink + end**2 * b(end), math.sqrt(variance) * abs(shrink)


def tilt(w: float) -> tuple[float, float]:
    """Mean and std of p_c^w p_u^(1-w), normalised."""
    variance = 1 / (w / S_C**2 + (1 - w) / S_U**2)
    return variance * w * M / S_C**2, math.sqrt(variance)
