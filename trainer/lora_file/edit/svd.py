"""Singular values of the change of a weight, and its best approximation of a rank (Eckart & Young 1936).

Shapes: O outputs, I inputs, R rank, K singular values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_NOISE = 1e-6  # share of the largest singular value; smaller ones are rounding, also in fp32 weights


@dataclass(frozen=True)
class Spectrum:
    """The decomposition left (O, K) diag(values (K,)) right (K, I), largest value first."""

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor

    def share(self, rank: int) -> float:
        """The share of the first `rank` in the sum of squared singular values; 1 where all are zero."""
        squares = self.values.double().square()
        return float(squares[:rank].sum() / squares.sum()) if len(squares) else 1.0

    def rank_for(self, share: float) -> int:
        """The smallest rank that keeps at least `share` of the squared singular values."""
        squares = self.values.double().square()
        shares = squares.cumsum(0) / squares.sum()
        return min(int((shares < share).sum()) + 1, len(squares))

    def factors(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(up (O, rank), down (rank, I)), each with the square roots of the values, so that both fit fp16."""
        rank = min(rank, len(self.values))
        roots = self.values[:rank].sqrt()
        return self.left[:, :rank] * roots, roots[:, None] * self.right[:rank]


def of_product(up: torch.Tensor, down: torch.Tensor) -> Spectrum:
    """The spectrum of up (O, R) down (R, I) without forming the product: QR of both, then an (R, R) SVD."""
    outer, upper = torch.linalg.qr(up.double())
    inner, lower = torch.linalg.qr(down.double().T)
    left, values, right = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    return _without_noise(outer @ left, values, right @ inner.T)


def of_matrix(change: torch.Tensor) -> Spectrum:
    """The spectrum of a whole (O, I) matrix, from the eigenvalues of its smaller Gram matrix in fp64.

    The smaller side of most weights of SDXL is at most 1280, so this is much cheaper than an SVD.
    """
    matrix = change.double()
    wide = matrix.shape[0] <= matrix.shape[1]
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
    values, vectors = squares.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
    count = int((values > _NOISE * values[0]).sum())
    values, vectors = values[:count], vectors[:, :count]
    if wide:
        return _without_noise(vectors, values, (vectors.T @ matrix) / values[:, None])
    return _without_noise((matrix @ vectors) / values, values, vectors.T)


def _without_noise(left: torch.Tensor, values: torch.Tensor, right: torch.Tensor) -> Spectrum:
    """The spectrum in fp32, without singular values that are rounding."""
    count = int((values > _NOISE * values.max()).sum()) if len(values) else 0
    return Spectrum(left[:, :count].float(), values[:count].float(), right[:count].float())
