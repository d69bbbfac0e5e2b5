"""Two-dimensional densities whose log-density is known exactly."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Unpack

import torch
from scipy.special import roots_legendre
from torch import Tensor

from sde_diffusion.checks import as_number, as_positive, check_count
from sde_diffusion.data.common import Common
from sde_diffusion.data.module import SPLITS, DataModule
from sde_diffusion.data.seeding import generator
from sde_diffusion.data.split import Split

_ROWS = 2**22  # entries of a [rows, components] table computed at a time


def _log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Logarithm of N(x; mean, diag(std^2)) over the last axis."""
    z = (x - mean) / std
    return -0.5 * z.square().sum(-1) - std.log().sum(-1) - 0.5 * x.shape[-1] * math.log(2 * math.pi)


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate points [..., 2] anticlockwise by an angle [...]."""
    c, s = angle.cos(), angle.sin()
    return torch.stack((c * x[..., 0] - s * x[..., 1], s * x[..., 0] + c * x[..., 1]), -1)


class Sizes(Common, total=False):
    """The arguments that every density passes to `Density`."""

    n_train: int
    n_val: int
    n_test: int
    split_seed: int


class Density(DataModule):
    """Base class of data sets that are drawn once from a density, which lies in [-1, 1] except for its tails.

    A new one is a subclass with `name`, `sample` and, if it is known, `log_prob`. Those in this module have points [2].

    Args:
        n_train: Number of items of the training split, at least 2.
        n_val: Number of items of the validation split, at least 1.
        n_test: Number of items of the test split, at least 1.
        split_seed: Seed of the items, at least 0; each split has its own stream.
        **common: See `DataModule`.

    Raises:
        ValueError: If n_train is below 2, another split empty, or split_seed negative.
    """

    bounded = False
    fingerprint = None  # the items follow from the arguments, up to rounding on another processor

    def __init__(
        self,
        n_train: int = 50_000,
        n_val: int = 5_000,
        n_test: int = 10_000,
        split_seed: int = 0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        self.n_train, self.n_val = check_count("n_train", n_train, least=2), check_count("n_val", n_val)
        self.n_test, self.split_seed = check_count("n_test", n_test), check_count("split_seed", split_seed, least=0)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n independent items, float64 [n, *shape]."""
        raise NotImplementedError

    def log_prob(self, x: Tensor) -> Tensor:
        """The normalised log-density at x [B, *shape] in nats, float64 [B]."""
        raise NotImplementedError

    def load(self) -> dict[str, Split]:
        """Draw the three splits."""
        sizes = zip(SPLITS, (self.n_train, self.n_val, self.n_test), strict=True)
        return {
            name: Split(self.sample(n, generator(self.split_seed, part)).float())
            for part, (name, n) in enumerate(sizes)
        }


class Ring(Density):
    """Equal isotropic Gaussians, evenly spaced on a circle: p(x) = 1/K sum_k N(x; R (cos a_k, sin a_k), s^2 I).

    a_k = 2 pi k/K.

    Args:
        components: K, at least 1.
        radius: R, positive.
        noise: s, positive.
        **sizes: See `Density` and `DataModule`.
    """

    name = "ring"

    def __init__(self, components: int = 8, radius: float = 0.75, noise: float = 0.06, **sizes: Unpack[Sizes]) -> None:
        super().__init__(**sizes)
        self.components = check_count("components", components)
        self.radius, self.noise = as_positive("radius", radius), as_positive("noise", noise)

    @property
    def means(self) -> Tensor:
        """Centres, float64 [K, 2]."""
        angle = torch.arange(self.components, dtype=torch.float64) * (2 * math.pi / self.components)
        return self.radius * torch.stack((angle.cos(), angle.sin()), -1)

    @property
    def stds(self) -> Tensor:
        """Standard deviations, float64 [K, 2]."""
        return torch.full((self.components, 2), self.noise, dtype=torch.float64)

    @property
    def weights(self) -> Tensor:
        """Weights, float64 [K]."""
        return torch.full((self.components,), 1 / self.components, dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw points, float64 [n, 2]."""
        k = torch.randint(self.components, (n,), generator=generator)
        return self.means[k] + self.noise * torch.randn(n, 2, generator=generator, dtype=torch.float64)

    def log_prob(self, x: Tensor) -> Tensor:
        """Closed form, float64 [B]."""
        x = x.double()
        parts = _log_normal(x[:, None], self.means.to(x), self.stds.to(x))
        return parts.logsumexp(-1) - math.log(self.components)


class Checkerboard(Density):
    """Uniform on the dark squares of a board on [-1, 1]^2: p(x) = 1/2 there and 0 elsewhere.

    The square at column i and row j, counted from the lower left, is dark where i + j is even.

    Args:
        cells: Number of squares per side; even, at least 2.
        **sizes: See `Density` and `DataModule`.
    """

    name = "checkerboard"

    def __init__(self, cells: int = 4, **sizes: Unpack[Sizes]) -> None:
        super().__init__(**sizes)
        self.cells = check_count("cells", cells, least=2)
        if self.cells % 2:
            raise ValueError(f"cells must be even and at least 2; got {cells!r}")

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw points, float64 [n, 2]."""
        column = torch.randint(self.cells, (n,), generator=generator)
        row = 2 * torch.randint(self.cells // 2, (n,), generator=generator) + column % 2
        inside = torch.rand(n, 2, generator=generator, dtype=torch.float64)
        return (torch.stack((column, row), -1) + inside) * (2 / self.cells) - 1

    def log_prob(self, x: Tensor) -> Tensor:
        """Closed form, float64 [B]: log 1/2 or minus infinity."""
        x = x.double()
        cell = ((x + 1) * (self.cells / 2)).floor()
        dark = (cell.sum(-1) % 2 == 0) & (x.abs() <= 1).all(-1)
        return torch.where(dark, x.new_tensor(-math.log(2.0)), -math.inf)


class Curves(Density):
    """Points on K curves, plus isotropic Gaussian noise: p(x) = 1/K sum_k int_0^1 N(x; c_k(u), s^2 I) du.

    The integral is computed by Gauss-Legendre quadrature with about pi nodes per standard deviation along the curve (at
    least 64), with no error above rounding: the integrand is a Gaussian in u to first order, and the error of the
    quadrature decreases as exp(-2 pi^2 (s / spacing)^2).

    Args:
        noise: s, positive.
        **sizes: See `Density` and `DataModule`.
    """

    def __init__(self, noise: float, **sizes: Unpack[Sizes]) -> None:
        super().__init__(**sizes)
        self.noise = as_positive("noise", noise)

    def curves(self, u: Tensor) -> Tensor:
        """Points of each curve at u [M] in [0, 1], float64 [K, M, 2]."""
        raise NotImplementedError

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw points, float64 [n, 2]."""
        lines = self.curves(torch.rand(n, generator=generator, dtype=torch.float64))
        k = torch.randint(len(lines), (n,), generator=generator)
        noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        return lines[k, torch.arange(n)] + self.noise * noise

    @cached_property
    def _quadrature(self) -> tuple[Tensor, Tensor]:
        """The centres [M, 2] of the quadrature's Gaussians, and the logarithms of their weights [M]."""
        u = torch.linspace(0, 1, 4097, dtype=torch.float64)
        speed = self.curves(u).diff(dim=1).norm(dim=-1).max().item() * 4096
        nodes, weights = roots_legendre(max(64, math.ceil(math.pi * speed / self.noise)))
        lines = self.curves(torch.from_numpy((nodes + 1) / 2))
        return lines.flatten(0, 1), torch.from_numpy(weights / 2 / len(lines)).log().repeat(len(lines))

    def log_prob(self, x: Tensor) -> Tensor:
        """By quadrature, exact up to rounding, float64 [B]."""
        x = x.double()
        centres, log_weights = (table.to(x) for table in self._quadrature)
        std = torch.full_like(centres[0], self.noise)
        rows = torch.tensor_split(x, 1 + len(x) * len(centres) // _ROWS)
        return torch.cat([(_log_normal(part[:, None], centres, std) + log_weights).logsumexp(-1) for part in rows])


class Moons(Curves):
    """Two interleaved half circles with noise: those of scikit-learn, centred and scaled by 0.6."""

    name = "moons"

    def __init__(self, noise: float = 0.05, **sizes: Unpack[Sizes]) -> None:
        super().__init__(noise, **sizes)

    def curves(self, u: Tensor) -> Tensor:
        """(cos pi u, sin pi u) and (1 - cos pi u, 1/2 - sin pi u), less (1/2, 1/4), times 0.6."""
        c, s = (math.pi * u).cos(), (math.pi * u).sin()
        upper, lower = torch.stack((c - 0.5, s - 0.25), -1), torch.stack((0.5 - c, 0.25 - s), -1)
        return 0.6 * torch.stack((upper, lower))


class SwissRoll(Curves):
    """A spiral a (cos a, sin a) / 15, a = 3 pi/2 (1 + 2u), with noise: scikit-learn's roll seen from its end."""

    name = "swiss_roll"

    def __init__(self, noise: float = 0.03, **sizes: Unpack[Sizes]) -> None:
        super().__init__(noise, **sizes)

    def curves(self, u: Tensor) -> Tensor:
        """The spiral from a = 3 pi/2 to 9 pi/2."""
        a = 1.5 * math.pi * (1 + 2 * u)
        return (a[:, None] * torch.stack((a.cos(), a.sin()), -1) / 15)[None]


class Pinwheel(Density):
    """Bent arms: w ~ N((1, 0), diag(radial^2, tangential^2)), rotated by 2 pi k/K + twist exp(|w|), and halved.

    In the usual pinwheel, the rotation depends on the first coordinate of w. Here it depends on the radius |w|, which a
    rotation does not change, so that the map is one-to-one and preserves area, and the density is known:
    p(x) = 4/K sum_k N(R(-2 pi k/K - twist exp(|2x|)) 2x; (1, 0), diag(radial^2, tangential^2)).

    Args:
        arms: K, at least 1.
        radial: Standard deviation along an arm, positive.
        tangential: Standard deviation across an arm, positive.
        twist: Bend of the arms, in radians.
        **sizes: See `Density` and `DataModule`.
    """

    name = "pinwheel"

    def __init__(
        self, arms: int = 5, radial: float = 0.3, tangential: float = 0.1, twist: float = 0.25, **sizes: Unpack[Sizes]
    ) -> None:
        super().__init__(**sizes)
        self.arms, self.twist = check_count("arms", arms), as_number("twist", twist)
        self.radial, self.tangential = as_positive("radial", radial), as_positive("tangential", tangential)

    @property
    def _std(self) -> Tensor:
        return torch.tensor((self.radial, self.tangential), dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw points, float64 [n, 2]."""
        arm = torch.randint(self.arms, (n,), generator=generator)
        w = self._std * torch.randn(n, 2, generator=generator, dtype=torch.float64)
        w[:, 0] += 1
        return _rotate(w, arm * (2 * math.pi / self.arms) + self.twist * w.norm(dim=-1).exp()) / 2

    def log_prob(self, x: Tensor) -> Tensor:
        """Closed form, float64 [B]."""
        y = 2 * x.double()[:, None]
        arm = torch.arange(self.arms).to(y) * (2 * math.pi / self.arms)
        w = _rotate(y, -arm - self.twist * y.norm(dim=-1).exp())
        mean = torch.tensor((1.0, 0.0)).to(w)
        return _log_normal(w, mean, self._std.to(w)).logsumexp(-1) + math.log(4 / self.arms)
