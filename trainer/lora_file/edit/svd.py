"""Singular values of a change of weight, and its best approximation of a rank (Eckart & Young 1936).

Shapes: O outputs, I inputs, R rank, K singular values kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_NOISE = 1e-6  # of the largest: what lies below is rounding, also in fp32 weights


@dataclass(frozen=True)
class Spectrum:
    """left (O, K) diag(values (K,)) right (K, I), largest value first."""

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor

    def share(self, rank: int) -> float:
        """Of the squared singular values, what the first `rank` hold; 1 for a change of nothing."""
        squares = self.values.double().square()
        return float(squares[:rank].sum() / squares.sum()) if len(squares) else 1.0

    def rank_for(self, share: float) -> int:
        """The smallest rank that keeps at least `share` of the squared singular values."""
        squares = self.values.double().square()
        kept = squares.cumsum(0) / squares.sum()
        return min(int((kept < share).sum()) + 1, len(squares))

    def factors(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(up (O, rank), down (rank, I)), each with the root of the values, so that neither leaves fp16's range."""
        rank = min(rank, len(self.values))
        roots = self.values[:rank].sqrt()
        return self.left[:, :rank] * roots, roots[:, None] * self.right[:rank]


def of_product(up: torch.Tensor, down: torch.Tensor) -> Spectrum:
    """Of up (O, R) down (R, I), without forming the product: QR of both, then an (R, R) SVD."""
    outer, upper = torch.linalg.qr(up.double())
    inner, lower = torch.linalg.qr(down.double().T)
    left, values, right = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    return _without_noise(outer @ left, values, right @ inner.T)


def of_matrix(change: torch.Tensor) -> Spectrum:
    """Of a whole (O, I) matrix, by the eigenvalues of its smaller Gram matrix in fp64: SDXL's have a side of at most 1280."""
    matrix = change.double()
    wide = matrix.shape[0] <= matrix.shape[1]
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
    values, vectors = squares.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
    kept = int((values > _NOISE * values[0]).sum())
    values, vectors = values[:kept], vectors[:, :kept]
    if wide:
        return _without_noise(vectors, values, (vectors.T @ matrix) / values[:, None])
    return _without_noise((matrix @ vectors) / values, values, vectors.T)


def _without_noise(left: torch.Tensor, values: torch.Tensor, right: torch.Tensor) -> Spectrum:
    kept = int((values > _NOISE * values.max()).sum()) if len(values) else 0
    return Spectrum(left[:, :kept].float(), values[:kept].float(), right[:kept].float())
