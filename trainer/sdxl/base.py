"""A base model on disk, opened part by part, so that no more of it is in memory than the work needs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from trainer.errors import BaseError

_WEIGHTS = {
    "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model", "text_encoder_2": "model",
}  # fmt: skip
_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")


@dataclass(frozen=True)
class Base:
    """A diffusers folder of SDXL's shape. Parts are loaded by its methods, frozen and in eval mode."""

    path: Path
    native_size: int  # px
    latent_factor: int  # px per latent cell
    prediction_type: str  # "epsilon" or "v_prediction"
    latent_scaling: float  # makes latents of unit variance
    zeros_for_empty_prompt: bool
    fingerprint: str  # changes when any weight file does

    @property
    def name(self) -> str:
        return self.path.name

    def unet(self, device: torch.device, dtype: torch.dtype) -> Any:
        model: Any = UNet2DConditionModel.from_pretrained(self.path / "unet", torch_dtype=dtype, **_OFFLINE)
        return model.requires_grad_(False).eval().to(device)

    def vae(self, device: torch.device) -> Any:
        """In fp32: SDXL's own VAE overflows in fp16."""
        model: Any = AutoencoderKL.from_pretrained(self.path / "vae", torch_dtype=torch.float32, **_OFFLINE)
        return model.requires_grad_(False).eval().to(device)

    def text_encoders(self, device: torch.device, dtype: torch.dtype) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
        disable_progress_bar()  # the run has bars of its own
        first = CLIPTextModel.from_pretrained(self.path / "text_encoder", dtype=dtype, local_files_only=True)
        second = CLIPTextModelWithProjection.from_pretrained(self.path / "text_encoder_2", dtype=dtype, local_files_only=True)
        for model in (first, second):
            model.requires_grad_(False).eval().to(device)  # pyright: ignore[reportArgumentType]
        return first, second

    def tokenizers(self) -> tuple[CLIPTokenizer, CLIPTokenizer]:
        first, second = (CLIPTokenizer.from_pretrained(self.path / t, local_files_only=True) for t in _PARTS[4:6])
        return first, second

    def scheduler(self) -> Any:
        return EulerDiscreteScheduler.from_pretrained(self.path / "scheduler", local_files_only=True)


_OFFLINE: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}


def open_base(reference: str, models: Path) -> Base:
    """The base named by `reference`: a folder under `models`, or a path. Raises BaseError."""
    path = next((p for p in (models / reference, Path(reference)) if p.exists()), None)
    if path is None:
        known = sorted(p.parent.name for p in models.glob("*/model_index.json"))
        there = f"; under {models.name}/ there is {', '.join(known)}" if known else ""
        raise BaseError(f"the base model {reference!r} is not there{there}; give one of these, or the path of a diffusers folder")
    if path.is_file():
        raise BaseError(f"{path.name} is a single file; this version opens diffusers folders: convert it, or use tiny-sdxl")
    try:
        index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
        configs = {part: json.loads((path / part / "config.json").read_text(encoding="utf-8")) for part in ("unet", "vae")}
        scheduler = json.loads((path / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        missing = Path(getattr(error, "filename", None) or "model_index.json").name
        raise BaseError(f"{path.name} is not a whole diffusers folder ({missing} can't be read); copy it again") from None
    if configs["unet"].get("addition_embed_type") != "text_time" or "text_encoder_2" not in index:
        raise BaseError(f"{path.name} is not an SDXL model; choose SDXL 1.0, Illustrious, Pony or another of its family")
    gone = [part for part in _PARTS if not (path / part).is_dir()]
    gone += [f"{part}/{name}.safetensors" for part, name in _WEIGHTS.items() if part not in gone and not _has_weights(path / part, name)]
    if gone:
        raise BaseError(f"{path.name} lacks {', '.join(gone)}; copy the whole folder again")
    factor = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    return Base(
        path=path,
        native_size=configs["unet"]["sample_size"] * factor,
        latent_factor=factor,
        prediction_type=scheduler.get("prediction_type", "epsilon"),
        latent_scaling=configs["vae"]["scaling_factor"],
        zeros_for_empty_prompt=index.get("force_zeros_for_empty_prompt", True),
        fingerprint=_fingerprint(path),
    )


def _has_weights(folder: Path, name: str) -> bool:
    """One file, or the index of several."""
    return (folder / f"{name}.safetensors").is_file() or (folder / f"{name}.safetensors.index.json").is_file()


def _fingerprint(path: Path) -> str:
    """Of every configuration and vocabulary whole, and of every weight file its size, its header and 256 samples of
    4 KiB spread over it: a merge or a fine-tune changes weights everywhere. A whole SDXL takes milliseconds."""
    digest = hashlib.sha256()
    for file in sorted(file for file in path.glob("*/*") if file.suffix in (".safetensors", ".json", ".txt")):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path).as_posix()} {size}\n".encode())
        with file.open("rb") as stream:
            if file.suffix != ".safetensors":
                digest.update(stream.read())
                continue
            digest.update(stream.read(1 << 20))
            for sample in range(256):
                stream.seek(size * sample // 256)
                digest.update(stream.read(4096))
            stream.seek(max(0, size - 4096))
            digest.update(stream.read())
    return digest.hexdigest()
