"""Shape of the product of a module's matrices, from their shapes alone: nothing of a hostile file is allocated.

The rules are those of `trainer.adapter.lycoris.product` and of LyCORIS' Tucker forms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from trainer.lora_file.tensor_names import DOWN, MID, UP

Shape = tuple[int, ...]


def product_shape(network: str, shapes: Mapping[str, Shape], rows: int) -> tuple[int, int]:
    """(O, I) of the product.

    Args:
        network: that of `LoraModule.network`.
        shapes: shape of each matrix by role.
        rows: O, as the matrices state it.

    Raises:
        ValueError: the matrices don't fit each other.
        KeyError: a matrix is missing.
    """
    if network == "tucker":
        first, *others = _tucker(shapes)
        return first, math.prod(others)
    if network == "loha":
        count = math.prod(_broadcast(*(_flat(shapes, f"hada_w{n}_a", f"hada_w{n}_b") for n in (1, 2))))
    elif network == "lokr":
        count = math.prod(_factor(shapes, "lokr_w1")) * math.prod(_factor(shapes, "lokr_w2"))
    elif network == "diff":
        count = math.prod(shapes["diff"])
    else:
        count = math.prod(_flat(shapes, UP, DOWN))
    _expect(rows > 0 and count % rows == 0)
    return rows, count // rows


def _expect(fits: bool) -> None:
    if not fits:
        raise ValueError


def _flat(shapes: Mapping[str, Shape], left: str, right: str) -> Shape:
    """Shape of the product of two matrices whose dimensions after the first are one."""
    _expect(math.prod(shapes[left][1:]) == shapes[right][0])
    return shapes[left][0], math.prod(shapes[right][1:])


def _factor(shapes: Mapping[str, Shape], name: str) -> Shape:
    """Shape of a factor of a LoKr, which is a matrix or a product of two."""
    if name in shapes:
        return shapes[name]
    left, right = shapes[f"{name}_a"], shapes[f"{name}_b"]
    _expect(left[-1] == right[0])
    return *left[:-1], math.prod(right[1:])


def _broadcast(left: Shape, right: Shape) -> Shape:
    pairs = list(zip(left, right, strict=True))
    _expect(all(a == b or 1 in (a, b) for a, b in pairs))
    return tuple(map(max, pairs))


def _tucker(shapes: Mapping[str, Shape]) -> Shape:
    """Shape of the product of a core (R, R, k, k) and two matrices."""

    def with_core(core: str, left: Shape, right: Shape) -> Shape:
        """Shape for a left matrix (R, O) and a right matrix (R, I)."""
        _expect(len(shapes[core]) == 4 and len(left) == len(right) == 2)
        first, second, *kernel = shapes[core]
        _broadcast((first, second), (left[0], right[0]))
        return left[1], right[1], *kernel

    if MID in shapes:
        outputs, *ranks = shapes[UP]
        rank, *inputs = shapes[DOWN]
        return with_core(MID, (math.prod(ranks), outputs), (rank, math.prod(inputs)))
    if "hada_t1" in shapes:
        first, second = (
            with_core(f"hada_t{n}", shapes[f"hada_w{n}_a"], shapes[f"hada_w{n}_b"]) for n in (1, 2)
        )
        return _broadcast(first, second)
    first = (*_tucker_factor(shapes), 1, 1)
    second = with_core("lokr_t2", shapes["lokr_w2_a"], shapes["lokr_w2_b"])
    pairs = itertools.zip_longest(reversed(first), reversed(second), fillvalue=1)
    return tuple(a * b for a, b in pairs)[::-1]


def _tucker_factor(shapes: Mapping[str, Shape]) -> Shape:
    """Shape of the first factor of a Tucker LoKr; its second matrix is not flattened."""
    if "lokr_w1" in shapes:
        return shapes["lokr_w1"]
    left, right = shapes["lokr_w1_a"], shapes["lokr_w1_b"]
    _expect(len(left) == len(right) == 2 and left[1] == right[0])
    return left[0], right[1]
