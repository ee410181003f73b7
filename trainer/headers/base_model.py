"""Base models on disk: which there are, and what a file contains, from names and headers without loading
tensors.

models/
  tiny-sdxl/               a diffusers folder (model_index.json)
  illustrious.safetensors  a checkpoint in the original (LDM) layout
  sdxl_vae.safetensors     a VAE, for checkpoints without one
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import BaseError
from trainer.headers.safetensors import Header, Tensor, read_header

BUNDLED_BASE = "tiny-sdxl"  # folder under models/ of the base that is part of the project
# Prefixes of the four parts in checkpoints of the original layout.
UNET, TEXT_1, TEXT_2, VAE = (
    "model.diffusion_model.",
    "conditioner.embedders.0.transformer.",
    "conditioner.embedders.1.model.",
    "first_stage_model.",
)
VAE_NAMES = (
    "sdxl_vae.safetensors",
    "sdxl-vae-fp16-fix.safetensors",
    "sdxl_vae_fp16_fix.safetensors",
    "sdxl.vae.safetensors",
)
SDXL_WIDTH = 320  # channels of the UNet's first level
SDXL_SIDE, SDXL_LATENT_FACTOR = 1024, 8  # native size in px, and px per latent cell
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Contents of a single-file SDXL checkpoint according to its header."""

    path: Path
    vae: Path | None  # file with the VAE: this one or one beside it; None if there is none
    width: int  # channels of the UNet's first level: 320 in SDXL
    prediction_type: str | None  # "epsilon" or "v_prediction"; None if the file does not declare it
    zero_terminal_snr: bool
    prediction_source: str  # the marker or metadata key that decided the two fields above
    dtype: str  # of most of its values
    parameters: dict[str, int]  # number of values, by part
    title: str


def list_base_models(models: Path) -> list[str]:
    """Returns the base models under a folder: diffusers folders, then SDXL checkpoints. Other files are
    skipped.
    """
    folders = [path.parent.name for path in models.glob("*/model_index.json")]
    files = []
    for path in models.glob("*.safetensors"):
        try:
            read_checkpoint(path)
        except BaseError:
            continue
        files.append(path.name)
    return sorted(folders) + sorted(files)


def is_small(reference: str, models: Path) -> bool:
    """Returns whether a base is narrower than SDXL, as the bundled one is; False if it can't be read."""
    folder = _first_of((models / reference, Path(reference)), Path.is_dir)
    file = _first_of((models / reference, models / f"{reference}.safetensors", Path(reference)), Path.is_file)
    try:
        if folder:
            return folder_configs(folder)["unet"]["block_out_channels"][0] < SDXL_WIDTH
        return file is not None and read_checkpoint(file).width < SDXL_WIDTH
    except (BaseError, KeyError, IndexError, TypeError):
        return False


def _first_of(paths: Sequence[Path], condition: Callable[[Path], bool]) -> Path | None:
    return next((path for path in paths if condition(path)), None)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads the header of a single-file checkpoint.

    Raises:
        BaseError: the file is no SDXL checkpoint; the message names what it is instead.
    """
    if path.suffix.lower() in PICKLES:
        raise BaseError(
            f"{path.name} is a pickle file, which can run programs when opened; get the .safetensors version"
        )
    header = read_header(path, BaseError)
    kind = other_kind(header)
    if kind:
        advice = "choose SDXL 1.0, Illustrious, NoobAI, Pony or another model of this family"
        raise BaseError(f"{path.name} is {kind}" if ";" in kind else f"{path.name} is {kind}; {advice}")
    prediction_type, zero_terminal_snr, source = _prediction(header)
    prefixes = {"unet": UNET, "text_encoder": TEXT_1, "text_encoder_2": TEXT_2, "vae": VAE}
    return Checkpoint(
        path=path,
        vae=_vae_file(path, header),
        width=_size(header.tensors, _FIRST_CONVOLUTION, 0),
        prediction_type=prediction_type,
        zero_terminal_snr=zero_terminal_snr,
        prediction_source=source,
        dtype=_main_dtype(header),
        parameters={part: _count(header, prefix) for part, prefix in prefixes.items()},
        title=header.metadata.get("modelspec.title", ""),
    )


def other_kind(header: Header) -> str | None:
    """Returns a description of a file that is no complete SDXL checkpoint; None for one that is."""
    return next((description for description, matches in _OTHER_KINDS if matches(header.tensors)), None)


def _contains(tensors: Tensors, *parts: str) -> bool:
    """Returns whether the name of a tensor contains one of the parts."""
    return any(part in name for name in tensors for part in parts)


def _starts(tensors: Tensors, *prefixes: str) -> bool:
    """Returns whether the name of a tensor begins with one of the prefixes."""
    return any(name.startswith(prefixes) for name in tensors)


def _size(tensors: Tensors, name: str, axis: int = 1) -> int:
    """Returns the size of one axis of a tensor; 0 if it does not exist."""
    shape = tensors[name].shape if name in tensors else ()
    return shape[axis] if len(shape) > axis else 0


def _lacks_text_encoder(tensors: Tensors) -> bool:
    return not (_starts(tensors, TEXT_1) and _starts(tensors, TEXT_2))


def _is_refiner(tensors: Tensors) -> bool:
    # The refiner has one text encoder, SDXL's second, in the first place; its label embedding is narrower.
    has_one_encoder = _starts(tensors, "conditioner.embedders.0.model.") and not _starts(tensors, TEXT_2)
    return _size(tensors, _LABEL_EMBEDDING) == 2560 or has_one_encoder


def _is_vae(tensors: Tensors) -> bool:
    prefixes = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "first_stage_model.")
    return all(name.startswith(prefixes) for name in tensors)


_FIRST_CONVOLUTION = UNET + "input_blocks.0.0.weight"
_LABEL_EMBEDDING = UNET + "label_emb.0.0.weight"
# A transformer block that smaller models distilled from SDXL lack.
_MIDDLE_BLOCK = UNET + "middle_block.1.transformer_blocks.0.attn1.to_q.weight"
_LORA_MARKS = (".lora_down.", ".lora_A.", ".lora.down.", ".hada_w1", ".lokr_w", "lora_unet_")
_EMBEDDING_NAMES = {"clip_g", "clip_l", "emb_params", "string_to_param"}

# (description, condition); the first condition that holds describes the file. Earlier ones are more specific.
_OTHER_KINDS: tuple[tuple[str, Callable[[Tensors], bool]], ...] = (
    ("an empty file", lambda t: not t),
    ("a LoRA, not a base model", lambda t: _contains(t, *_LORA_MARKS)),
    (
        "a ControlNet",
        lambda t: _starts(t, "control_model.", "controlnet_") or _contains(t, "input_hint_block"),
    ),
    ("a textual inversion embedding", lambda t: len(t) <= 3 and bool(_EMBEDDING_NAMES & set(t))),
    ("a Flux model", lambda t: _contains(t, "double_blocks.", "single_transformer_blocks.")),
    ("a Stable Diffusion 3 model", lambda t: _contains(t, "joint_blocks.")),
    ("a video model", lambda t: _contains(t, "time_stack.", "motion_modules.", "temporal_transformer")),
    ("a Stable Diffusion 1 model", lambda t: _starts(t, "cond_stage_model.transformer.")),
    ("a Stable Diffusion 2 model", lambda t: _starts(t, "cond_stage_model.model.")),
    ("the SDXL refiner", _is_refiner),
    ("an inpainting model", lambda t: _size(t, _FIRST_CONVOLUTION) == 9),
    ("an instruct-pix2pix model", lambda t: _size(t, _FIRST_CONVOLUTION) == 8),
    ("a VAE, not a base model", _is_vae),
    (
        "one part of a diffusers folder; give the path of the whole folder",
        lambda t: _starts(t, "down_blocks.", "text_model."),
    ),
    ("a UNet without its text encoders", lambda t: _starts(t, UNET) and _lacks_text_encoder(t)),
    ("no SDXL model", lambda t: _FIRST_CONVOLUTION not in t or _lacks_text_encoder(t)),
    (
        "a distilled SDXL model (such as SSD-1B or Vega), which is not supported",
        lambda t: _MIDDLE_BLOCK not in t,
    ),
)


def _prediction(header: Header) -> tuple[str | None, bool, str]:
    """Returns (prediction type, zero terminal SNR, the marker or key that decided).

    Marker tensors come first, since merging tools keep them but often drop the metadata.
    """
    metadata, has_ztsnr = header.metadata, "ztsnr" in header.tensors
    if "v_pred" in header.tensors:
        source = "its v_pred marker and ztsnr marker" if has_ztsnr else "its v_pred marker"
        return "v_prediction", has_ztsnr, source
    declared = metadata.get("modelspec.prediction_type", "").lower()
    zero_terminal_snr = has_ztsnr or _is_true(metadata.get("ss_zero_terminal_snr", ""))
    if declared.startswith("v"):
        return "v_prediction", zero_terminal_snr, "modelspec.prediction_type"
    if _is_true(metadata.get("ss_v_parameterization", "")):
        return "v_prediction", zero_terminal_snr, "ss_v_parameterization"
    if declared.startswith("eps"):
        return "epsilon", zero_terminal_snr, "modelspec.prediction_type"
    return None, zero_terminal_snr, ""


def _is_true(text: str) -> bool:
    return text.strip().lower() in ("true", "1", "yes")


def _count(header: Header, prefix: str) -> int:
    return sum(math.prod(tensor.shape) for name, tensor in header.tensors.items() if name.startswith(prefix))


def _main_dtype(header: Header) -> str:
    counts: dict[str, int] = {}
    for tensor in header.tensors.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + math.prod(tensor.shape)
    return max(counts, key=lambda dtype: counts[dtype])


def _vae_file(path: Path, header: Header) -> Path | None:
    """Returns the checkpoint itself, `<its name>.vae.safetensors`, or a VAE with one of VAE_NAMES beside
    it.
    """
    if _starts(header.tensors, VAE + "decoder."):
        return path
    beside = [path.with_name(f"{path.stem}.vae.safetensors"), *(path.with_name(name) for name in VAE_NAMES)]
    return _first_of(beside, Path.is_file)


def folder_configs(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the JSON files of a diffusers folder that define the model. Raises BaseError."""
    return {
        "index": folder_config(path, "model_index.json"),
        "unet": folder_config(path, "unet/config.json", ("block_out_channels", "sample_size")),
        "vae": folder_config(path, "vae/config.json", ("block_out_channels", "scaling_factor")),
        "scheduler": folder_config(path, "scheduler/scheduler_config.json"),
    }


def folder_config(path: Path, name: str, required: Sequence[str] = ()) -> dict[str, Any]:
    """Returns one JSON file of a diffusers folder. Raises BaseError if it is damaged or lacks a required
    key.
    """
    try:
        content = json.loads((path / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise BaseError(
            f"{path.name} is not a complete diffusers folder ({name} can't be read); copy it again"
        )
    if missing := [key for key in required if key not in content]:
        raise BaseError(
            f"{path.name} is not a complete diffusers folder ({name} lacks {', '.join(missing)}); "
            "copy it again"
        )
    return content


def vae_scale_factor(config: Mapping[str, Any]) -> int:
    """Returns the side of a latent cell in px: 8 for SDXL, since each level of the VAE but the last halves
    the image.

    Args:
        config: the settings of `vae/config.json`, or a VAE's `config`.
    """
    return 2 ** (len(config["block_out_channels"]) - 1)


def bucket_geometry(reference: str, models: Path) -> tuple[int, int]:
    """Returns (native side in px, px per latent cell) of a base from its configuration.

    Checkpoints and folders that can't be read have SDXL's values.
    """
    folder = _first_of((models / reference, Path(reference)), Path.is_dir) if reference else None
    try:
        configs = folder_configs(folder) if folder else {}
        factor = vae_scale_factor(configs["vae"])
        return configs["unet"]["sample_size"] * factor, factor
    except (BaseError, KeyError, TypeError):
        return SDXL_SIDE, SDXL_LATENT_FACTOR
