"""Roles of a network's matrices, without PyTorch."""

from __future__ import annotations

from collections.abc import Collection


def is_whole(roles: Collection[str]) -> bool:
    """Returns whether all matrices are full: then there is no rank to scale by."""
    return "diff" in roles or {"lokr_w1", "lokr_w2"} <= set(roles)
