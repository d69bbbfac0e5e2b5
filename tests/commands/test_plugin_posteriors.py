"""An operator and a likelihood of one's own module, used by `restore`: as the package's, and named in its report."""

import json

import numpy as np
import pytest

MODULE = """
import torch
from sde_diffusion.guidance import MeasurementLikelihood, Operator


class Rows(Operator):
    '''Every n-th row of pictures [C, H, W].'''

    part_of_data = True

    def __init__(self, dims, every=2, wrong=False):
        super().__init__()
        self.every, self.wrong = every, wrong

    def forward(self, x):
        return x[..., :: self.every, :]

    def adjoint(self, y):
        x = y.new_zeros(*y.shape[:-2], self.every * y.shape[-2], y.shape[-1])
        x[..., :: self.every, :] = -y if self.wrong else y
        return x


class Certain(MeasurementLikelihood):
    '''S = noise^2 I, times 1 / scale.'''

    gradients = 1

    def __init__(self, scale=1.0):
        self.scale = scale

    def shift(self, guess):
        return guess.covariance(guess.adjoint(guess.residual * (self.scale / guess.noise)))
"""
