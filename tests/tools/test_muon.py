"""Muon against the singular value decomposition, and the error of the autoencoder's training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tools.muon import Muon, orthogonalise, split
from tools.train_vae import squared_error


@pytest.mark.parametrize("shape", [(16, 16), (48, 200), (200, 48)])
def test_an_orthogonalised_matrix_has_singular_values_near_one_and_the_same_directions(
    shape: tuple[int, int],
):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    moved = orthogonalise(matrix)
    values = torch.linalg.svdvals(moved)
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert float((left.T @ moved @ right.T).diagonal().min()) > 0.5


def test_muon_updates_matrices_and_convolutions_and_no_other_parameters():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.GroupNorm(4, 32), nn.Flatten(), nn.Linear(32 * 4, 32), nn.Embedding(4, 32)
    )
    matrices, others = split(model)
    assert [tuple(p.shape) for p in matrices] == [(32, 3, 3, 3), (32, 128)]
    assert {id(p) for p in (*matrices, *others)} == {id(p) for p in model.parameters()}
    before = [p.detach().clone() for p in matrices]
    for parameter in matrices:
        parameter.grad = torch.randn_like(parameter)
    Muon(matrices, lr=1e-2).step()
    for old, new in zip(before, matrices, strict=True):
        size = float((new.detach() - old).square().mean().sqrt())
        assert 0.5 < size / (0.2 * 1e-2) < 1.5  # root mean square of a step, as in the docstring


def test_only_black_and_white_have_no_error_beyond_the_range():
    image = torch.tensor([-1.0, 1.0, 0.0])
    assert float(squared_error(torch.tensor([-1.4, 1.2, 0.0]), image)) == 0
    assert float(squared_error(torch.tensor([-0.98, 1.0, 0.0]), image)) > 0
    assert float(squared_error(torch.tensor([-1.4, 1.2, 0.1]), image)) > 0
