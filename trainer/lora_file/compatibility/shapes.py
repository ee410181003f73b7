"""The shapes of a module's tensors, compared with those of the base's weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from trainer.lora_file.modules import LoraModule
from trainer.lora_file.sdxl_modules import Layout, Shape
from trainer.lora_file.tensor_names import DORA, GLORA


def fits(module: LoraModule, layout: Layout) -> bool:
    """True where all tensors of a module have shapes for the base's weight, or shapes without a rule."""
    weight = layout.shape(module.part, module.path)
    if weight is None:
        return False
    shapes = {role: tuple(tensor.shape) for role, tensor in module.tensors.items()}
    if not all(rule(shapes[role], weight) for role, rule in _RULES.items() if role in shapes):
        return False
    if set(GLORA) <= set(shapes):
        return _glora_fits(shapes, weight)
    return module.network is None or module.sides == (weight[0], math.prod(weight[1:]))


def _is_weight(shape: Shape, weight: Shape) -> bool:
    return shape == weight


def _is_per_output(shape: Shape, weight: Shape) -> bool:
    return math.prod(shape) == weight[0]


def _is_per_channel(shape: Shape, weight: Shape) -> bool:
    """A value for each output, or for each input channel."""
    return math.prod(shape) in weight[:2]


def _is_rotation(shape: Shape, weight: Shape) -> bool:
    """Square blocks for all outputs: (blocks, size, size) of OFT, (stages, blocks, size, size) of BOFT."""
    if len(shape) not in (3, 4):
        return False
    blocks, rows, columns = shape[-3:]
    return rows == columns and blocks * rows == weight[0]


# Roles of networks whose change is not computed here have no product whose sides could be compared.
_RULES: Mapping[str, Callable[[Shape, Shape], bool]] = {
    "diff": _is_weight,
    "w_norm": _is_weight,
    "diff_b": _is_per_output,
    "b_norm": _is_per_output,
    "rescale": _is_per_output,
    "oft_blocks": _is_rotation,
    "oft_diag": _is_rotation,
    "weight": _is_per_channel,
    DORA: _is_per_channel,
}


def _glora_fits(shapes: Mapping[str, Shape], weight: Shape) -> bool:
    """GLoRA: W a1 a2 + b1 b2, with a1 (I, R), a2 (R, I), b1 (O, R), b2 (R, I); old files swap 1 and 2."""
    outputs, inputs = weight[0], math.prod(weight[1:])

    def is_product(left: Shape, right: Shape, rows: int, columns: int) -> bool:
        return (
            bool(len(left) >= 2 and len(right) >= 2 and left[0] == rows and math.prod(left[1:]) == right[0])
            and math.prod(right[1:]) == columns
        )

    a1, a2, b1, b2 = (shapes[role] for role in GLORA)
    channels = weight[1] if len(weight) > 1 else 0
    return any(
        is_product(a, other_a, channels, channels) and is_product(b, other_b, outputs, inputs)
        for a, other_a, b, other_b in ((a1, a2, b1, b2), (a2, a1, b2, b1))
    )
