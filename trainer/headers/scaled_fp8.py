"""Weights in float8 with a scale beside them, as ComfyUI and others store large models.

Such a file holds W / scale in float8, and `X.scale_weight` or `X.weight_scale` beside `X.weight`: one number, or
one for each output. Read without it, every weight is wrong by a factor of its own, without an error.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

from trainer.headers.safetensors import Tensor

_SCALE_NAMES = (".scale_weight", ".weight_scale")
_MARKS = (  # (part of a tensor's name, format)
    (".quant_state.bitsandbytes__", "bitsandbytes' 4 bits"),
    (".absmax", "bitsandbytes' 4 bits"),
    (".SCB", "bitsandbytes' 8 bits"),
    (".weight_scale_2", "NVFP4"),
    (".weight_scale_inv", "float8 with a scale for each block"),
    (".qweight", "GPTQ, AWQ or SVDQuant"),
    (".zero_point", "integers with zero points"),
)
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


def scale_key(key: str, names: Container[str]) -> str | None:
    """Returns the name of the tensor with the scale of a weight; None where it has none.

    Args:
        key: name of the weight.
        names: names of all tensors of the file.
    """
    if not key.endswith(".weight"):
        return None
    stem = key.removesuffix(".weight")
    return next((stem + name for name in _SCALE_NAMES if stem + name in names), None)


def is_scaled(names: Mapping[str, Tensor]) -> bool:
    """Returns whether weights of a file have scales beside them."""
    return any(name.endswith(_SCALE_NAMES) for name in names)


def unsupported_quantization(tensors: Mapping[str, Tensor]) -> str | None:
    """Returns the format of quantized weights that can't be read; None where all weights can be."""
    for name, tensor in tensors.items():
        for mark, description in _MARKS:
            if mark in name:
                return description
        if name.endswith(_SCALE_NAMES):
            weight = tensors.get(re.sub(r"\.(?:scale_weight|weight_scale)$", ".weight", name))
            if weight is None or not _fits(tensor, weight):
                return "float8 with a scale for each block"
            if weight.dtype not in _FLOATS:
                return f"scaled {weight.dtype}"
    return None


def _fits(scale: Tensor, weight: Tensor) -> bool:
    """Returns whether a scale is one number, or has one for each output of the weight."""
    count = 1
    for side in scale.shape:
        count *= side
    outputs = weight.shape[0] if weight.shape else 1
    return scale.dtype in _FLOATS and (count == 1 or (count == outputs and scale.shape[0] == outputs))
