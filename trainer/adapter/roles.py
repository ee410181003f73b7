"""Rules on the matrices of LyCORIS networks that need no PyTorch."""

from __future__ import annotations

import math
from collections.abc import Collection


def is_whole(roles: Collection[str]) -> bool:
    """Returns whether all matrices are full: then there is no rank to scale by."""
    return "diff" in roles or {"lokr_w1", "lokr_w2"} <= set(roles)


def split(size: int, factor: int) -> tuple[int, int]:
    """Returns two integers with the product `size`, the smaller first (LyCORIS, `factorization`).

    A `factor` that divides `size` is one of them. Otherwise the first is the largest divisor of `size` that
    exceeds neither `factor` nor the square root of `size`.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    limit = min(factor or size, math.isqrt(size))
    first = next(number for number in range(limit, 0, -1) if size % number == 0)
    return first, size // first
