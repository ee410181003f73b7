"""A base model on disk, opened part by part, so that no more of it is in memory than the work needs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import EulerDiscreteScheduler
from transformers import CLIPTokenizer

from trainer.errors import BaseError
from trainer.headers.base_model import (
    Checkpoint,
    folder_config,
    folder_configs,
    list_base_models,
    read_checkpoint,
    vae_scale_factor,
)
from trainer.sdxl.protocols import NoiseScheduler, TextEncoder, Tokenizer, UNet, Vae
from trainer.sdxl.weights import PARTS, FileWeights, FolderWeights, Weights, load, weight_files

ORIGINAL = Path(__file__).resolve().parent / "original"  # configuration and vocabulary of SDXL 1.0


@dataclass(frozen=True, kw_only=True)
class Base:
    """A model of SDXL's shape: a diffusers folder or a single file. Parts are loaded by its methods, frozen, in eval mode."""

    path: Path
    configs: Path  # the folder of its configuration and tokenizers
    weights: Weights
    native_size: int  # px
    latent_factor: int  # px per latent cell
    prediction_type: str  # "epsilon" or "v_prediction"
    zero_terminal_snr: bool
    latent_scaling: float  # makes latents of unit variance
    zeros_for_empty_prompt: bool
    fingerprint: str  # changes when any weight file does

    @property
    def name(self) -> str:
        return self.path.name if self.path.is_dir() else self.path.stem

    def unet(self, device: torch.device, dtype: torch.dtype, quantised: str = "none") -> UNet:
        return load("unet", self.configs, self.weights, device, dtype, quantised)

    def vae(self, device: torch.device) -> Vae:
        """In fp32: SDXL's own VAE overflows in fp16 and would draw black pictures."""
        return load("vae", self.configs, self.weights, device, torch.float32)

    def text_encoders(self, device: torch.device, dtype: torch.dtype) -> tuple[TextEncoder, TextEncoder]:
        first, second = (
            load(part, self.configs, self.weights, device, dtype)
            for part in ("text_encoder", "text_encoder_2")
        )
        return first, second

    def tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        first, second = (_tokenizer(self.configs / name) for name in ("tokenizer", "tokenizer_2"))
        return first, second

    def scheduler(self) -> NoiseScheduler:
        """Euler's, with the noise levels the model was trained on (Lin et al. 2023 where they end in pure noise)."""
        facts = json.loads((self.configs / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
        facts["prediction_type"] = self.prediction_type
        if self.zero_terminal_snr:
            facts.update(rescale_betas_zero_snr=True, timestep_spacing="trailing")
        return cast(NoiseScheduler, EulerDiscreteScheduler.from_config(facts))


def _tokenizer(folder: Path) -> Tokenizer:
    merges = folder / "merges.txt"
    try:
        if (
            merges.is_file() and not merges.stat().st_size
        ):  # would read every letter for itself, without a word
            raise ValueError("merges.txt is empty")
        # The special tokens' ids come from __getattr__, which types can't see.
        return cast(Tokenizer, CLIPTokenizer.from_pretrained(folder, local_files_only=True))
    except Exception as error:  # the libraries behind it raise what they like, plain Exception too
        why = " ".join(str(error).split())[:150]
        raise BaseError(
            f"{folder.parent.name} has a damaged {folder.name} ({why}); copy the whole folder again"
        ) from None


def open_base(reference: str, models: Path) -> Base:
    """The base named by `reference`: a folder or file under `models`, a path, or a hub id that was downloaded before.

    Raises BaseError.
    """
    path = _found(reference, models)
    if path is None:
        known = list_base_models(models)
        there = f"; under {models.name}/ there is {', '.join(known)}" if known else ""
        fetch = (
            f", or fetch it first: python -m trainer base fetch {reference}" if _is_hub_id(reference) else ""
        )
        raise BaseError(
            f"the base model {reference!r} is not there{there}; give one of these, or the path of a folder or .safetensors{fetch}"
        )
    if path.is_dir():
        return open_folder(path)
    checkpoint = read_checkpoint(path)
    return open_file(checkpoint, _configs_of(checkpoint, models))


def _configs_of(checkpoint: Checkpoint, models: Path) -> Path:
    """The configuration of a checkpoint's shape: SDXL's own, or that of a folder under `models` as wide."""
    for configs in (ORIGINAL, *sorted(path.parent for path in models.glob("*/model_index.json"))):
        if folder_configs(configs)["unet"]["block_out_channels"][0] == checkpoint.width:
            return configs
    raise BaseError(
        f"{checkpoint.path.name} is not of SDXL's shape ({checkpoint.width} channels, not 320); choose another"
    )


def _found(reference: str, models: Path) -> Path | None:
    places = [models / reference, models / f"{reference}.safetensors", Path(reference)]
    if _is_hub_id(reference):
        places.append(models / reference.replace("/", "--"))
    found = next((path for path in places if path.exists()), None)
    return found or (_downloaded(reference) if _is_hub_id(reference) else None)


def _is_hub_id(reference: str) -> bool:
    parts = reference.split("/")
    return len(parts) == 2 and all(part and part[0] not in ".~" for part in parts) and "\\" not in reference


def _downloaded(reference: str) -> Path | None:
    """The snapshot in the hub's cache, when another program has fetched it; nothing is fetched here."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(reference, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError, OSError):
        return None


def open_file(checkpoint: Checkpoint, configs: Path = ORIGINAL) -> Base:
    """A single-file checkpoint; `configs` describe its shape."""
    facts = folder_configs(configs)
    factor = vae_scale_factor(facts["vae"])
    digest = hashlib.sha256()
    for path in dict.fromkeys((checkpoint.path, checkpoint.vae or checkpoint.path)):
        _digest_weights(path, digest)
    return Base(
        path=checkpoint.path,
        configs=configs,
        weights=FileWeights(checkpoint.path, checkpoint.vae),
        native_size=facts["unet"]["sample_size"] * factor,
        latent_factor=factor,
        prediction_type=checkpoint.prediction_type or facts["scheduler"].get("prediction_type", "epsilon"),
        zero_terminal_snr=checkpoint.zero_terminal_snr,
        latent_scaling=facts["vae"]["scaling_factor"],
        zeros_for_empty_prompt=facts["index"]["force_zeros_for_empty_prompt"],
        fingerprint=digest.hexdigest(),
    )


def open_folder(path: Path) -> Base:
    """A diffusers folder. Raises BaseError."""
    facts = folder_configs(path)
    if facts["unet"].get("addition_embed_type") != "text_time" or "text_encoder_2" not in facts["index"]:
        raise BaseError(
            f"{path.name} is not an SDXL model; choose SDXL 1.0, Illustrious, Pony or another of its family"
        )
    if facts["unet"].get("in_channels", 4) != 4:
        raise BaseError(f"{path.name} is an inpainting model; choose the model that it was made of")
    gone = [part for part in (*PARTS, "tokenizer", "tokenizer_2") if not (path / part).is_dir()]
    gone += [
        f"the weights of {part}"
        for part in PARTS
        if part not in gone and not all(f.is_file() for f in weight_files(path / part) or [path / "?"])
    ]
    if gone:
        raise BaseError(
            f"{path.name} lacks {', '.join(gone)}; copy the whole folder again, with its .safetensors"
        )
    for part in ("text_encoder", "text_encoder_2"):
        folder_config(path, f"{part}/config.json", ("hidden_size", "projection_dim"))
    factor = vae_scale_factor(facts["vae"])
    return Base(
        path=path,
        configs=path,
        weights=FolderWeights(path),
        native_size=facts["unet"]["sample_size"] * factor,
        latent_factor=factor,
        prediction_type=facts["scheduler"].get("prediction_type", "epsilon"),
        zero_terminal_snr=bool(facts["scheduler"].get("rescale_betas_zero_snr", False)),
        latent_scaling=facts["vae"]["scaling_factor"],
        zeros_for_empty_prompt=facts["index"].get("force_zeros_for_empty_prompt", True),
        fingerprint=_folder_fingerprint(path),
    )


def _folder_fingerprint(path: Path) -> str:
    """Of every configuration and vocabulary whole, and of every weight file a sample."""
    digest = hashlib.sha256()
    for file in sorted(file for file in path.glob("*/*") if file.suffix in (".safetensors", ".json", ".txt")):
        digest.update(f"{file.relative_to(path).as_posix()} {file.stat().st_size}\n".encode())
        if file.suffix == ".safetensors":
            _digest_weights(file, digest)
        else:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _digest_weights(file: Path, digest: Any) -> None:
    """Size, header and 256 samples of 4 KiB spread over a file: a merge or a fine-tune changes weights everywhere, and a
    whole SDXL takes milliseconds."""
    size = file.stat().st_size
    digest.update(f"{size}\n".encode())
    with file.open("rb") as stream:
        digest.update(stream.read(1 << 20))
        for sample in range(256):
            stream.seek(size * sample // 256)
            digest.update(stream.read(4096))
        stream.seek(max(0, size - 4096))
        digest.update(stream.read())
