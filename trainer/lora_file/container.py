"""From the bytes of a LoRA file to named tensors, safely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from trainer.errors import LoraFileError
from trainer.headers.lora import MATRIX, recognise

_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class Container:
    path: Path
    facts: Mapping[str, str]  # __metadata__
    header_bytes: int
    tensors: Mapping[str, torch.Tensor]


def open_lora(path: Path) -> Container:
    """The tensors of a LoRA file. Raises LoraFileError, which says what else the file is."""
    header = recognise(path)
    for key, tensor in header.tensors.items():
        if tensor.dtype not in _FLOATS and MATRIX.fullmatch(key):
            raise LoraFileError(
                f"{path.name} holds {key} as {tensor.dtype}, not as fractions; take the LoRA before it was quantized"
            )
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise LoraFileError(f"{path.name} is damaged ({error}); download or save it again") from None
    return Container(path, header.metadata, header.start - 8, tensors)
