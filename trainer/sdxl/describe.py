"""Description of a base model for the command `base check` and the page."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.errors import BaseError
from trainer.headers.base_model import read_checkpoint
from trainer.headers.few_steps import few_step_advice, few_step_kind
from trainer.headers.safetensors import read_header
from trainer.sdxl.base import Base
from trainer.sdxl.weights import PARTS, build, weight_files

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
    base.tokenizers()  # raises for damaged ones now, rather than when a training encodes its first caption
    files = [file for part in PARTS for file in weight_files(base.path / part)]
    for file in files:
        read_header(file, BaseError)
    yield "files", f"{sum(file.stat().st_size for file in files):,} bytes of weights"
    for part in PARTS:
        model = build(part, base.configs)
        yield _NAMES[part], f"{sum(p.numel() for p in model.parameters()):,} parameters"
    yield "prediction", f"{base.prediction_type}, from the configuration of its scheduler"
