"""Measurement operators against dense linear algebra, Pillow and SciPy."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from sde_diffusion.guidance import Blur, Downsample, Grey, LinearOperator, Mask, Nonlinear


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


KERNEL = torch.tensor([[0.1, 0.2, 0.0], [0.0, 0.4, 0.1], [0.3, 0.0, 0.05]])
LINEAR = {
    "mask": (Mask(random(2, 4, 6) > 0), (2, 4, 6)),
    "mask of vectors": (Mask(torch.tensor([1, 0, 1, 1, 0])), (5,)),
    "one mask for all channels": (Mask(random(4, 6) > 0, (3, 4, 6)), (3, 4, 6)),
    "area": (Downsample(2), (2, 4, 6)),
    "area of signals": (Downsample(3), (2, 12)),
    "area of vectors": (Downsample(2), (8,)),
    "bicubic": (Downsample(2, "bicubic"), (1, 8, 12)),
    "blur": (Blur(KERNEL), (2, 5, 6)),
    "blur, odd": (Blur(KERNEL), (1, 6, 7)),
    "blur, reflect": (Blur(KERNEL, "reflect"), (1, 5, 6)),
    "blur, zero": (Blur(KERNEL, "zero"), (2, 5, 6)),
    "blur of signals": (Blur(torch.tensor([0.2, 0.5, 0.3])), (2, 9)),
    "grey": (Grey(), (3, 4, 5)),
    "luma": (Grey((0.299, 0.587, 0.114)), (3, 4, 5)),
    "matrix": (LinearOperator(random(5, 12), (3, 4)), (3, 4)),
    "singular matrix": (LinearOperator(torch.cat([random(3, 12), random(3, 12)])), (12,)),
}


def dense(operator, dims):
    """The operator's matrix, [M, D], by measuring each unit vector."""
    unit = torch.eye(int(np.prod(dims)), dtype=torch.float64)
    return operator(unit.reshape(-1, *dims)).flatten(1).T


@pytest.mark.parametrize("name", LINEAR)
def test_adjoint(name):
    """<A x, y> = <x, A^T y>, in float32 under inference mode too."""
    operator, dims = LINEAR[name]
    x = random(3, *dims, seed=1)
    out = operator.output_shape(dims)
    y = random(3, *out, seed=2)
    back = operator.adjoint(y)
    assert back.shape == x.shape
    torch.testing.assert_close(
        (operator(x) * y).flatten(1).sum(1), (x * back).flatten(1).sum(1), rtol=1e-12, atol=1e-12
    )
    with torch.inference_mode():
        torch.testing.assert_close(operator.adjoint(y.float()), back.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in LINEAR if name not in ("blur, reflect", "blur, zero")])
def test_pseudo_inverse_and_functions_of_the_gram_matrix(name):
    """Against NumPy's pseudo-inverse and solver, with another function for each sample."""
    operator, dims = LINEAR[name]
    matrix = dense(operator, dims)
    y = random(2, *operator.output_shape(dims), seed=3)
    expected = torch.tensor(np.linalg.pinv(matrix.numpy(), rcond=1e-3)) @ y.flatten(1).T
    torch.testing.assert_close(operator.pinv(y).flatten(1), expected.T, rtol=1e-9, atol=1e-9)
    shift = torch.tensor([0.3, 2.0], dtype=torch.float64)
    gram = matrix @ matrix.T
    spectrum = operator.spectrum(operator.output_shape(dims)).sort().values
    torch.testing.assert_close(spectrum, torch.tensor(np.linalg.eigvalsh(gram.numpy())), rtol=1e-9, atol=1e-9)
    found = operator.filter(y, lambda e: 1 / (shift.reshape(-1, *(1,) * (e.ndim - 1)) + e))
    for i in range(2):
        solved = torch.linalg.solve(gram + shift[i] * torch.eye(len(gram), dtype=torch.float64), y[i].flatten())
        torch.testing.assert_close(found[i].flatten(), solved, rtol=1e-10, atol=1e-10)


def test_bicubic_is_pillows():
    x = random(1, 1, 16, 24).float()
    picture = Image.fromarray(x[0, 0].numpy()).resize((6, 4), Image.Resampling.BICUBIC)
    torch.testing.assert_close(Downsample(4, "bicubic")(x)[0, 0], torch.tensor(np.array(picture)), rtol=0, atol=1e-5)


def test_area_is_the_mean_of_blocks():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert Downsample(2)(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


@pytest.mark.parametrize(("boundary", "mode"), [("circular", "wrap"), ("reflect", "mirror"), ("zero", "constant")])
def test_blur_is_scipys_convolution(boundary, mode):
    x = random(2, 1, 7, 6)
    expected = [scipy.ndimage.convolve(one[0].numpy(), KERNEL.numpy(), mode=mode) for one in x]
    torch.testing.assert_close(Blur(KERNEL, boundary)(x)[:, 0], torch.tensor(np.stack(expected)), rtol=1e-6, atol=1e-7)


def test_gaussian_blur_is_scipys():
    x = random(1, 1, 20, 20)
    expected = scipy.ndimage.gaussian_filter(x[0, 0].numpy(), 1.5, mode="wrap", radius=5)
    torch.testing.assert_close(Blur.gaussian(1.5)(x)[0, 0], torch.tensor(expected), rtol=1e-9, atol=1e-9)


def test_masks_put_known_numbers_in_their_places():
    mask = torch.tensor([[True, False], [False, True]])
    operator = Mask(mask)
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert operator(x).tolist() == [[1.0, 4.0]]
    assert operator.adjoint(operator(x)).tolist() == [[[1.0, 0.0], [0.0, 4.0]]]


@pytest.mark.parametrize("create_graph", [False, True])
def test_tangent_of_a_function_is_its_jacobian(create_graph):
    function = lambda x: torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin(), x.square().sum(1), x[:, 0].exp()], 1)  # noqa: E731
    x = random(2, 3).requires_grad_()
    near = Nonlinear(function).linearise(x, create_graph)
    torch.testing.assert_close(near.value, function(x))
    u, v = random(2, 3, seed=1), random(2, 4, seed=2)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda x: function(x[None])[0], x[i].detach())
        torch.testing.assert_close(near.forward(u)[i], jacobian @ u[i])
        torch.testing.assert_close(near.adjoint(v)[i], v[i] @ jacobian)
    assert near.forward(u).requires_grad == near.adjoint(v).requires_grad == create_graph


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Mask(torch.ones(2, 2)), "all are known"),
        (lambda: Mask(torch.zeros(2, 2)), "none are known"),
        (lambda: Mask(torch.tensor([0.0, 0.5, 1.0])), "1 where the data are known"),
        (lambda: Mask(torch.eye(3), (1, 4, 4)), r"broadcast to \[1, 4, 4\]"),
        (lambda: Mask(torch.eye(3))(torch.zeros(2, 1, 3, 3)), r"data of shape \[3, 3\]; got \[1, 3, 3\]"),
        (lambda: Downsample(1), "at least 2"),
        (lambda: Downsample(3)(torch.zeros(2, 1, 28, 28)), r"multiples of it; got \[28, 28\]"),
        (lambda: Downsample(2, "lanczos"), "area, bicubic"),
        (lambda: Blur(torch.ones(2, 2)), "odd sizes"),
        (lambda: Blur(torch.ones(9, 9))(torch.zeros(1, 1, 4, 4)), "does not fit"),
        (lambda: Blur(torch.ones(3, 3), "reflect").pinv(torch.zeros(1, 1, 4, 4)), "MomentMatching"),
        (lambda: Grey()(torch.zeros(2, 1, 4, 4)), "3 channels"),
        (lambda: Grey([0.0, 0.0]), "not all 0"),
        (lambda: LinearOperator(torch.ones(3)), r"\[M, D\]"),
        (lambda: LinearOperator(torch.ones(3, 4), (2, 3)), "do not fit a matrix of 4 columns"),
        (lambda: LinearOperator(torch.ones(3, 4))(torch.zeros(2, 5)), r"shape \[4\]; got \[5\]"),
        (lambda: Nonlinear(torch.sign).adjoint(torch.zeros(1, 2)), "linearise"),
        (lambda: Nonlinear(lambda x: x.detach()).linearise(torch.zeros(1, 2).requires_grad_()), "differentiable"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
