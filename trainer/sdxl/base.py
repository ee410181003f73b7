"""A base model on disk, loaded part by part.

    Base                    path, configuration, prediction type, fingerprint
      .unet()  .vae()  .text_encoders()  .tokenizers()  .scheduler()     each call loads its part

No more of a base is in memory than the work needs: text encoders and VAE can be freed before the UNet is
loaded. PyTorch, diffusers and transformers are imported when a part is loaded: commands that only describe a
base start quickly.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from trainer.errors import BaseError
from trainer.headers.base_kinds import other_folder_kind, other_text_kind
from trainer.headers.base_model import (
    Checkpoint,
    check_folder_weights,
    folder_config,
    folder_configs,
    list_base_models,
    read_checkpoint,
    reject_kind,
    vae_scale_factor,
)
from trainer.sdxl.weight_files import PARTS, FileWeights, FolderWeights, Weights, weight_files

if TYPE_CHECKING:
    import torch

    from trainer.sdxl.protocols import NoiseScheduler, TextEncoder, Tokenizer, UNet, Vae

ORIGINAL = Path(__file__).resolve().parent / "original"  # configuration and vocabulary of SDXL 1.0


@dataclass(frozen=True, kw_only=True)
class Base:
    """A model of SDXL's architecture: a diffusers folder or a single file.

    Its methods load the parts, frozen and in eval mode. They raise BaseError when weights are missing or
    damaged.
    """

    path: Path
    configs: Path  # the folder of its configuration and tokenizers
    weights: Weights
    native_size: int  # px
    latent_factor: int  # px per latent cell
    prediction_type: str  # "epsilon" or "v_prediction"
    zero_terminal_snr: bool
    latent_scaling: float  # makes latents of unit variance
    zeros_for_empty_prompt: bool
    fingerprint: str  # hash that changes with any weight file; part of cache keys

    @property
    def name(self) -> str:
        """The folder's name, or the file's without its ending."""
        return self.path.name if self.path.is_dir() else self.path.stem

    def unet(self, device: torch.device, dtype: torch.dtype, quantised: str = "none") -> UNet:
        """Loads the UNet.

        Args:
            quantised: precision of its linear layers, one of `config.QUANTISED`.
        """
        from trainer.sdxl.weights import load

        return load("unet", self.configs, self.weights, device, dtype, quantised)

    def vae(self, device: torch.device) -> Vae:
        """Loads the VAE in fp32: SDXL's original VAE overflows in fp16 and decodes to black images."""
        import torch

        from trainer.sdxl.weights import load

        return load("vae", self.configs, self.weights, device, torch.float32)

    def text_encoders(self, device: torch.device, dtype: torch.dtype) -> tuple[TextEncoder, TextEncoder]:
        """Loads both text encoders."""
        from trainer.sdxl.weights import load

        first, second = (
            load(part, self.configs, self.weights, device, dtype)
            for part in ("text_encoder", "text_encoder_2")
        )
        return first, second

    def tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        """Loads both tokenizers."""
        first, second = (_tokenizer(self.configs / name) for name in ("tokenizer", "tokenizer_2"))
        return first, second

    def scheduler(self) -> NoiseScheduler:
        """Returns an Euler scheduler with the noise schedule of the model's training.

        With zero terminal SNR its first step is at the last timestep (Lin et al. 2023, section 3.3).
        """
        from diffusers import EulerDiscreteScheduler

        file = self.configs / "scheduler" / "scheduler_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        config["prediction_type"] = self.prediction_type
        if self.zero_terminal_snr:
            config.update(rescale_betas_zero_snr=True, timestep_spacing="trailing")
        return cast("NoiseScheduler", EulerDiscreteScheduler.from_config(config))


def _tokenizer(folder: Path) -> Tokenizer:
    from transformers import CLIPTokenizer

    merges = folder / "merges.txt"
    try:
        # The library accepts an empty file and then encodes each letter as a token of its own.
        if merges.is_file() and not merges.stat().st_size:
            raise ValueError("merges.txt is empty")
        # The special tokens' ids come from `__getattr__`, which type checkers can't see.
        return cast("Tokenizer", CLIPTokenizer.from_pretrained(folder, local_files_only=True))
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception for a damaged file
        why = " ".join(str(error).split())[:150]
        raise BaseError(
            f"{folder.parent.name} has a damaged {folder.name} ({why}); copy the whole folder again"
        ) from None


def open_base(reference: str, models: Path) -> Base:
    """Opens a base model; reads configuration and headers, not weights.

    Args:
        reference: a folder or file under `models`, a path, or a hub id that is in the hub's cache.

    Raises:
        BaseError: if nothing is found, or it is not a complete SDXL model.
    """
    path = _find(reference, models)
    if path is None:
        known = list_base_models(models)
        available = f"; {models.name}/ contains {', '.join(known)}" if known else ""
        command = f"python -m trainer base fetch {reference}"
        fetch = f", or fetch it first: {command}" if _is_hub_id(reference) else ""
        raise BaseError(
            f"the base model {reference!r} is not there{available}; "
            f"give one of these, or the path of a folder or .safetensors{fetch}"
        )
    if path.is_dir():
        return open_folder(path)
    checkpoint = read_checkpoint(path)
    return open_file(checkpoint, _configs_of(checkpoint, models))


def _configs_of(checkpoint: Checkpoint, models: Path) -> Path:
    """Returns the folder of a configuration with the checkpoint's width.

    SDXL's, or a folder under `models`.
    """
    for configs in (ORIGINAL, *sorted(path.parent for path in models.glob("*/model_index.json"))):
        if folder_configs(configs)["unet"]["block_out_channels"][0] == checkpoint.width:
            return configs
    raise BaseError(
        f"{checkpoint.path.name} is not of SDXL's shape ({checkpoint.width} channels, not 320); "
        "choose another base model"
    )


def _find(reference: str, models: Path) -> Path | None:
    candidates = [models / reference, models / f"{reference}.safetensors", Path(reference)]
    if _is_hub_id(reference):
        candidates.append(models / reference.replace("/", "--"))
    existing = next((path for path in candidates if path.exists()), None)
    return existing or (_downloaded(reference) if _is_hub_id(reference) else None)


def _is_hub_id(reference: str) -> bool:
    parts = reference.split("/")
    return len(parts) == 2 and all(part and part[0] not in ".~" for part in parts) and "\\" not in reference


def _downloaded(reference: str) -> Path | None:
    """Returns the snapshot in the hub's cache; never uses the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(reference, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError, OSError):
        return None


def open_file(checkpoint: Checkpoint, configs: Path = ORIGINAL) -> Base:
    """Opens a single-file checkpoint.

    Args:
        configs: folder of a configuration with the checkpoint's architecture.
    """
    settings = folder_configs(configs)
    factor = vae_scale_factor(settings["vae"])
    digest = hashlib.sha256()
    for path in dict.fromkeys((checkpoint.path, checkpoint.vae or checkpoint.path)):
        _digest_weights(path, digest)
    return Base(
        path=checkpoint.path,
        configs=configs,
        weights=FileWeights(checkpoint.path, checkpoint.vae),
        native_size=settings["unet"]["sample_size"] * factor,
        latent_factor=factor,
        prediction_type=checkpoint.prediction_type or settings["scheduler"].get("prediction_type", "epsilon"),
        zero_terminal_snr=checkpoint.zero_terminal_snr,
        latent_scaling=settings["vae"]["scaling_factor"],
        zeros_for_empty_prompt=settings["index"]["force_zeros_for_empty_prompt"],
        fingerprint=digest.hexdigest(),
    )


def open_folder(path: Path) -> Base:
    """Opens a diffusers folder. Raises BaseError when it is incomplete or not SDXL."""
    settings = folder_configs(path)
    reject_kind(path.name, other_folder_kind(settings))
    missing = [part for part in (*PARTS, "tokenizer", "tokenizer_2") if not (path / part).is_dir()]
    missing += [
        f"the weights of {part}"
        for part in PARTS
        if part not in missing and not all(f.is_file() for f in weight_files(path / part) or [path / "?"])
    ]
    if missing:
        raise BaseError(
            f"{path.name} lacks {', '.join(missing)}; copy the whole folder again, with its .safetensors"
        )
    texts = [
        folder_config(path, f"{part}/config.json", ("hidden_size", "projection_dim"))
        for part in ("text_encoder", "text_encoder_2")
    ]
    reject_kind(path.name, other_text_kind(texts, settings["unet"]))
    check_folder_weights(path, [file for part in PARTS for file in weight_files(path / part)])
    factor = vae_scale_factor(settings["vae"])
    return Base(
        path=path,
        configs=path,
        weights=FolderWeights(path),
        native_size=settings["unet"]["sample_size"] * factor,
        latent_factor=factor,
        prediction_type=settings["scheduler"].get("prediction_type", "epsilon"),
        zero_terminal_snr=bool(settings["scheduler"].get("rescale_betas_zero_snr", False)),
        latent_scaling=settings["vae"]["scaling_factor"],
        zeros_for_empty_prompt=settings["index"].get("force_zeros_for_empty_prompt", True),
        fingerprint=_folder_fingerprint(path),
    )


def _folder_fingerprint(path: Path) -> str:
    """Returns a hash of all configurations and vocabularies, and of samples of all weight files."""
    digest = hashlib.sha256()
    for file in sorted(file for file in path.glob("*/*") if file.suffix in (".safetensors", ".json", ".txt")):
        digest.update(f"{file.relative_to(path).as_posix()} {file.stat().st_size}\n".encode())
        if file.suffix == ".safetensors":
            _digest_weights(file, digest)
        else:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _digest_weights(file: Path, digest: hashlib._Hash) -> None:
    """Adds size, header and 256 evenly spaced samples of 4 KiB to a hash.

    A merge or a fine-tune changes weights everywhere, so samples detect it in milliseconds, where hashing all
    of SDXL takes seconds.
    """
    size = file.stat().st_size
    digest.update(f"{size}\n".encode())
    with file.open("rb") as stream:
        digest.update(stream.read(1 << 20))
        for sample in range(256):
            stream.seek(size * sample // 256)
            digest.update(stream.read(4096))
        stream.seek(max(0, size - 4096))
        digest.update(stream.read())
