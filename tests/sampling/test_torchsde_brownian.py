"""The Brownian motions: covariances of (W, U) exactly, additivity, one path whatever is asked, streams of samples.

Every increment is a linear function of the normals it is given. Given unit vectors in their place it shows its
coefficients, whose products are the covariances: no Monte Carlo error. They are held against the definition,

    W[a, b] = int_a^b dW(s),      U[a, b] = int_a^b (W(s) - W(a)) ds = int_a^b (b - s) dW(s),

whose covariances are integrals of products of these kernels.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from sde_diffusion.sampling import Noise
from sde_diffusion.sampling.brownian import StepBrownian, TreeBrownian, join, rest, split

N = 200


def unit(number):
    """Draw number k is the k-th unit vector: sample i's normal is 1 if i = k."""
    out = torch.zeros(N, 1, dtype=torch.float64)
    out[number] = 1
    return out


LIKE = torch.zeros(N, 1, dtype=torch.float64)


def kernels(interval):
    a, b = interval
    return (lambda s: ((s >= a) & (s < b)) * 1.0), (lambda s: ((s >= a) & (s < b)) * (b - s))


def exact_covariance(first, second):
    """int k(s) l(s) ds of all kernels of all intervals, by Gauss and Legendre between the breaks."""
    breaks = sorted({*itertools.chain(*first, *second)})
    points, weights = np.polynomial.legendre.leggauss(4)
    out = 0.0
    for left, right in itertools.pairwise(breaks):
        s = 0.5 * (left + right) + 0.5 * (right - left) * points
        rows, columns = (np.array([k(s) for pair in map(kernels, group) for k in pair]) for group in (first, second))
        out = out + 0.5 * (right - left) * (rows * weights) @ columns.T
    return torch.as_tensor(out)


def coefficients(brownian, intervals):
    """Of W and U for each interval, [2 len, N]."""
    return torch.cat([torch.cat(brownian(a, b, return_U=True), 1).T for a, b in intervals])


def assert_covariance(rows, intervals):
    assert (rows @ rows.T - exact_covariance(intervals, intervals)).abs().max() < 1e-12


def test_steps():
    intervals = [(-3.0, -2.0), (-1.0, 0.0), (-2.0, -1.0)]
    assert_covariance(coefficients(StepBrownian(unit, LIKE, -3.0, "space-time"), intervals), intervals)
    plain = torch.cat([StepBrownian(unit, LIKE, -3.0)(a, b) for a, b in intervals], 1)
    assert torch.equal(plain.T @ plain, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("length", [1.0, 7.0])
@pytest.mark.parametrize("depth", [0, 3, 5])
def test_tree_on_its_leaves(length, depth):
    """All intervals between multiples of the smallest leaf, overlapping or not, have their exact joint law."""
    leaf = length * 0.5**depth
    tree = TreeBrownian(unit, LIKE, -length, depth=depth)
    places = np.unique(np.linspace(0, 2**depth, 9).astype(int))
    intervals = [(a * leaf - length, b * leaf - length) for a, b in itertools.combinations(places.tolist(), 2)]
    assert_covariance(coefficients(tree, intervals), intervals)


def test_tree_between_leaves():
    """Ends anywhere, in different leaves: exact too."""
    tree = TreeBrownian(unit, LIKE, -2.0, depth=4)  # leaves of length 1/8
    ends = [-1.97, -1.6, -1.5, -0.93, -0.4, -0.33 + 0.125, -0.01]
    intervals = list(itertools.combinations(ends, 2))
    assert_covariance(coefficients(tree, intervals), intervals)


def test_within_one_leaf():
    """One end within a leaf: exact. Two: W and U still add up, and the whole's share is right."""
    tree = TreeBrownian(unit, LIKE, -1.0, depth=0)
    for t in (-0.999, -0.7, -0.5, -0.1):
        assert_covariance(coefficients(tree, [(-1.0, t)]), [(-1.0, t)])
        assert_covariance(coefficients(tree, [(t, 0.0)]), [(t, 0.0)])
        assert_covariance(coefficients(tree, [(-1.0, t), (-1.0, 0.0), (t, 0.0)]), [(-1.0, t), (-1.0, 0.0), (t, 0.0)])


@pytest.mark.parametrize("depth", [0, 2, 14])
def test_increments_add_up_in_any_order(depth):
    """W[a, c] = W[a, b] + W[b, c] and U[a, c] = U[a, b] + U[b, c] + (c - b) W[a, b], asked for in another order, and
    of another object: one path.
    """
    generator = torch.Generator().manual_seed(3)
    noise = Noise(range(5), (2,), dtype=torch.float64)
    like = torch.zeros(5, 2, dtype=torch.float64)
    tree = TreeBrownian(noise.normal, like, -10.0, depth=depth)
    for _ in range(40):
        a, b, c = (-10 * torch.rand(3, generator=generator, dtype=torch.float64)).sort().values.tolist()
        w_ac, u_ac = tree(a, c, return_U=True)
        w_bc, u_bc = tree(b, c, return_U=True)
        w_ab, u_ab = TreeBrownian(noise.normal, like, -10.0, depth=depth)(a, b, return_U=True)
        assert (w_ab + w_bc - w_ac).abs().max() < 1e-12
        assert (u_ab + u_bc + (c - b) * w_ab - u_ac).abs().max() < 1e-11
    nothing = tree(-3.0, -3.0, return_U=True)
    assert all((part == 0).all() for part in nothing)


def test_the_path_is_continuous():
    """Over ever shorter intervals, around a leaf's end and within one, the increment goes to zero like a root."""
    noise = Noise(range(200), (1,), dtype=torch.float64)
    tree = TreeBrownian(noise.normal, torch.zeros(200, 1, dtype=torch.float64), -1.0, depth=6)
    for place in (-0.5, -0.3, -1 / 64):
        for h in (1e-3, 1e-6, 1e-9):
            assert tree(place - h, place + h).square().mean() < 10 * (2 * h)


@pytest.mark.parametrize("share", [2.0**-8, 2.0**-14, 2.0**-16, 2.0**-22])
def test_variation_of_short_steps(share):
    """Squares of eight increments in a row add up to their length, as short as adaptive solvers' steps get.

    Of 8 x 4000 numbers: standard error 0.008. With leaves of 2^-14, 0.55 at a quarter of a leaf.
    """
    noise = Noise(range(4000), (1,), dtype=torch.float64)
    tree = TreeBrownian(noise.normal, torch.zeros(4000, 1, dtype=torch.float64), -50.0)
    h = 50 * share
    squares = [tree(-20 + (k + 0.3) * h, -20 + (k + 1.3) * h).square().mean() / h for k in range(8)]
    assert abs(float(sum(squares)) / 8 - 1) < 0.04


def test_numbers_of_the_draws():
    """Below 2^32, far from those of dequantisation, probes and bounds, which are from 2^40 on."""
    asked = []

    def normal(number):
        asked.append(number)
        return torch.zeros(1, 1, dtype=torch.float64)

    tree = TreeBrownian(normal, torch.zeros(1, 1, dtype=torch.float64), -1000.0)
    for t in (-999.999999, -500.0000001, -1e-9):
        tree(-1000.0, t)
        tree(t, 0.0)
    assert 2**30 < max(asked) < 2**32
    assert min(asked) == 0


def test_split_join_and_rest_agree():
    """Two parts make the whole again, whatever the shares; what is left of the whole after the first is the second."""
    generator = torch.Generator().manual_seed(5)
    whole, noise = (tuple(torch.randn(2, 6, dtype=torch.float64, generator=generator)) for _ in range(2))
    for share in (0.01, 0.3, 0.5, 0.8):
        left, right = split(whole, 2.5, share, noise)
        for found, want in ((join(left, share, right, 1 - share), whole), (rest(left, whole, share), right)):
            for part, wanted in zip(found, want, strict=True):
                assert (part - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("kind", [StepBrownian, TreeBrownian])
def test_a_sample_has_its_own_stream(kind):
    seeds = [4, -1, 7, 12]
    many = kind(Noise(seeds, (2, 3), dtype=torch.float64).normal, torch.zeros(4, 6), -8.0, "space-time")
    for i, seed in enumerate(seeds):
        one = kind(Noise([seed], (2, 3), dtype=torch.float64).normal, torch.zeros(1, 6), -8.0, "space-time")
        for a in range(-8, 0):
            for together, alone in zip(many(a, a + 1, return_U=True), one(a, a + 1, return_U=True), strict=True):
                assert (together[i] - alone[0]).abs().max() < 1e-14


@pytest.mark.parametrize("kind", [StepBrownian, TreeBrownian])
def test_statistics_of_the_streams_themselves(kind):
    """With the real noise: second moments of (W, U) of three steps, 21 products over 200,000 samples, each within 5
    standard errors: false alarms 1e-5.
    """
    n = 200_000
    brownian = kind(Noise(range(n), (1,), dtype=torch.float64).normal, torch.zeros(n, 1), -4.0, "space-time")
    intervals = [(-4.0, -3.0), (-3.0, -2.0), (-1.0, 0.0)]
    rows = torch.cat([torch.cat(brownian(a, b, return_U=True), 1).T for a, b in intervals])
    want = exact_covariance(intervals, intervals)
    for i, j in itertools.combinations_with_replacement(range(6), 2):
        products = rows[i] * rows[j]
        assert abs(products.mean() - want[i, j]) < 5 * products.std() / math.sqrt(n), (i, j)


def test_what_torchsde_asks_of_it():
    like = torch.zeros(3, 4, dtype=torch.float32)
    brownian = StepBrownian(Noise(range(3), (4,)).normal, like, -2.0, "foster")
    w, area = brownian(-1.0, 0.0, return_A=True)
    assert torch.equal(w, brownian(-1.0, 0.0))
    assert area == 0
    assert (brownian.shape, brownian.dtype, brownian.device) == (like.shape, like.dtype, like.device)
    assert brownian.levy_area_approximation == "foster"
    assert "StepBrownian" in repr(brownian)
