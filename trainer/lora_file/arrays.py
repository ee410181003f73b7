"""Tensors of a file as numpy arrays, for commands that read a LoRA file and compute nothing with PyTorch.

An `Array` has the few members of `torch.Tensor` that reading and checking need, so that the reader of LoRA files
works with both. numpy has no bfloat16 and no float8; their values are converted to fp32 exactly.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.headers.safetensors import Header, Tensor

_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}


@dataclass(frozen=True)
class Array:
    """Values of any shape, with the names that `torch.Tensor` gives to its members."""

    values: np.ndarray

    @staticmethod
    def of(value: float) -> Array:
        """A single value without dimensions, in fp16 where that is exact, otherwise in fp32."""
        with np.errstate(over="ignore"):
            half = np.float16(value)
        return Array(np.asarray(half if float(half) == value else np.float32(value)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each dimension."""
        return self.values.shape

    def dim(self) -> int:
        """Number of dimensions."""
        return self.values.ndim

    def numel(self) -> int:
        """Number of values."""
        return self.values.size

    def reshape(self, *shape: int) -> Array:
        """The values in another shape; -1 is computed from the others."""
        return Array(self.values.reshape(shape))

    def flatten(self, start: int = 0) -> Array:
        """The values with the dimensions from `start` on as one."""
        return Array(self.values.reshape(*self.shape[:start], math.prod(self.shape[start:])))

    def float(self) -> Array:
        """The values in fp32."""
        with np.errstate(over="ignore"):
            return Array(self.values.astype(np.float32, copy=False))

    def isfinite(self) -> Array:
        """True for numbers, False for infinity and NaN."""
        return Array(np.isfinite(self.values))

    def all(self) -> bool:
        """True if no value is False or 0."""
        return bool(self.values.all())

    def nan_to_num(self) -> Array:
        """0 instead of NaN, and the largest number instead of infinity."""
        return Array(np.nan_to_num(self.values))

    def abs(self) -> Array:
        """Magnitudes."""
        return Array(np.abs(self.values))

    def max(self) -> float:
        """The largest value."""
        return self.values.max().item()

    def __getitem__(self, index: int) -> Array:
        return Array(self.values[index])

    def __float__(self) -> float:
        return float(self.values)

    def __mul__(self, factor: float) -> Array:
        return Array(self.values * np.asarray(factor, self.values.dtype))


def load_arrays(path: Path, header: Header) -> dict[str, Array]:
    """All tensors of a file whose header was read; pages of the file are read when values are used."""
    content = np.memmap(path, np.uint8, mode="r")
    return {key: Array(_values(content[t.start : t.end], t)) for key, t in header.tensors.items()}


def _values(content: np.ndarray, tensor: Tensor) -> np.ndarray:
    """The values of a tensor. Raises KeyError for a type that is not read."""
    if tensor.dtype == "BF16":  # the upper half of fp32
        values = (content.view("<u2").astype(np.uint32) << 16).view(np.float32)
    elif tensor.dtype == "F8_E5M2":  # the upper half of fp16
        values = (content.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    elif tensor.dtype == "F8_E4M3":
        values = _e4m3()[content]
    else:
        values = content.view(_NUMPY[tensor.dtype])
    return np.asarray(values).reshape(tensor.shape)


@functools.cache
def _e4m3() -> np.ndarray:
    """The 256 values of float8 with 4 bits of exponent, bias 7, without infinity (Micikevicius et al. 2022)."""
    codes = np.arange(256)
    exponent, fraction = codes >> 3 & 15, codes & 7
    normal = np.ldexp(1 + fraction / 8, exponent - 7)
    magnitude = np.where(exponent == 0, np.ldexp(fraction / 8, -6), normal)
    magnitude[codes & 127 == 127] = np.nan
    return np.where(codes < 128, magnitude, -magnitude).astype(np.float32)
