"""What a base model is, in lines for `base check` and the page."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.errors import BaseError
from trainer.headers.base_model import read_checkpoint
from trainer.headers.safetensors import read_header
from trainer.sdxl.base import Base
from trainer.sdxl.weights import PARTS, build, weight_files

_NAMES = {"unet": "UNet", "vae": "VAE", "text_encoder": "text encoder 1", "text_encoder_2": "text encoder 2"}


def describe_base(base: Base) -> Iterator[tuple[str, str]]:
    """(label, value). Raises BaseError when the file is no whole base."""
    single = base.path.is_file()
    yield "base", f"{base.name}, {'a single file of the original layout' if single else 'a diffusers folder'}"
    if single:
        found = read_checkpoint(base.path)
        if found.title:
            yield "title", found.title
        yield "file", f"{base.path.stat().st_size:,} bytes, mostly {found.dtype}"
        for part in PARTS:
            yield _NAMES[part], f"{found.parameters[part]:,} parameters"
        if found.vae is None:
            yield "VAE from", "nowhere; put sdxl_vae.safetensors beside it"
        elif found.vae != base.path:
            yield "VAE from", found.vae.name
        because = (
            f"because of {found.prediction_source}"
            if found.prediction_type
            else "since nothing in the file says otherwise"
        )
        yield "prediction", f"{base.prediction_type}, {because}"
    else:
        base.tokenizers()  # told now, not when a training reads its first caption
        files = [file for part in PARTS for file in weight_files(base.path / part)]
        for file in files:
            read_header(file, BaseError)
        size = sum(file.stat().st_size for file in files)
        yield "files", f"{size:,} bytes of weights"
        for part in PARTS:
            yield (
                _NAMES[part],
                f"{sum(p.numel() for p in build(part, base.configs).parameters()):,} parameters",
            )
        yield "prediction", f"{base.prediction_type}, because its scheduler's configuration says so"
    yield "zero terminal SNR", "yes" if base.zero_terminal_snr else "no"
    yield "native size", f"{base.native_size} x {base.native_size} px"
    yield "VAE precision", "decoded in fp32, since SDXL's VAE overflows in fp16 and draws black pictures"
