"""Description of a base model for the command `base check` and the page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from trainer.errors import BaseError
from trainer.headers.base_model import read_checkpoint
from trainer.headers.few_steps import few_step_advice, few_step_kind
from trainer.headers.safetensors import Header, read_header
from trainer.headers.scaled_fp8 import scale_key
from trainer.sdxl.base import Base
from trainer.sdxl.weight_files import PARTS, weight_files

_NAMES = {"unet": "UNet", "vae": "VAE", "text_encoder": "text encoder 1", "text_encoder_2": "text encoder 2"}


def describe_base(base: Base) -> Iterator[tuple[str, str]]:
    """Yields (label, value). Raises BaseError when the base is incomplete or damaged."""
    is_single_file = base.path.is_file()
    kind = "a single file of the original layout" if is_single_file else "a diffusers folder"
    yield "base", f"{base.name}, {kind}"
    yield from _describe_file(base) if is_single_file else _describe_folder(base)
    title = read_checkpoint(base.path).title if is_single_file else ""
    kind = few_step_kind(base.name, {"modelspec.title": title})
    if kind:
        yield "sampling", few_step_advice(kind, base.name)
    yield "zero terminal SNR", "yes" if base.zero_terminal_snr else "no"
    yield "native size", f"{base.native_size} x {base.native_size} px"
    yield "VAE precision", "decoded in fp32, since SDXL's VAE overflows in fp16 and decodes to black images"


def _describe_file(base: Base) -> Iterator[tuple[str, str]]:
    checkpoint = read_checkpoint(base.path)
    if checkpoint.title:
        yield "title", checkpoint.title
    scaled = " with a scale for each weight" if checkpoint.is_scaled else ""
    yield "file", f"{base.path.stat().st_size:,} bytes, mostly {checkpoint.dtype}{scaled}"
    for part in PARTS:
        yield _NAMES[part], f"{checkpoint.parameters[part]:,} parameters"
    if checkpoint.vae is None:
        yield "VAE from", "nowhere; put sdxl_vae.safetensors beside it"
    elif checkpoint.vae != base.path:
        yield "VAE from", checkpoint.vae.name
    because = (
        f"because of {checkpoint.prediction_source}"
        if checkpoint.prediction_type
        else "the default, because the file does not name it"
    )
    yield "prediction", f"{base.prediction_type}, {because}"


def _describe_folder(base: Base) -> Iterator[tuple[str, str]]:
    _check_tokenizers(base)
    files = {part: weight_files(base.path / part) for part in PARTS}
    headers = {part: [read_header(file, BaseError) for file in files[part]] for part in PARTS}
    total = sum(file.stat().st_size for of_part in files.values() for file in of_part)
    yield "files", f"{total:,} bytes of weights"
    for part, of_part in headers.items():
        yield _NAMES[part], f"{sum(map(_parameters, of_part)):,} parameters"
    yield "prediction", f"{base.prediction_type}, from the configuration of its scheduler"


def _parameters(header: Header) -> int:
    """Number of values in a part's weights, without buffers of whole numbers and scales of float8."""
    keys = set(header.tensors)
    scales = {scale_key(key, keys) for key in keys}
    return sum(
        math.prod(tensor.shape)
        for key, tensor in header.tensors.items()
        if key not in scales and tensor.dtype[0] in "BF" and tensor.dtype != "BOOL"
    )


def _check_tokenizers(base: Base) -> None:
    """Raises BaseError for a damaged tokenizer now, not when a training encodes its first caption.

    The files are read with the library below transformers, which takes seconds to import; where they are not of
    the usual form, transformers decides.
    """
    try:
        for name in ("tokenizer", "tokenizer_2"):
            _read_tokenizer(base.configs / name)
    except Exception:  # noqa: BLE001 - tokenizers raises plain Exception for a damaged file
        base.tokenizers()


def _read_tokenizer(folder: Path) -> None:
    """Raises some exception unless the vocabulary and the merges of a folder can be read."""
    from tokenizers import models

    for file in folder.glob("*.json"):
        if not isinstance(json.loads(file.read_text(encoding="utf-8")), dict):
            raise TypeError(file.name)
    vocabulary, merges = models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    if not merges:
        raise ValueError("merges.txt is empty")
    models.BPE(vocabulary, merges)
