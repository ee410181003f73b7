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
from trainer.headers.base_kinds import (
    FIRST_CONVOLUTION,
    TEXT_1,
    TEXT_2,
    UNET,
    VAE,
    other_kind,
    size_of,
    starts,
)
from trainer.headers.safetensors import Header, read_header
from trainer.headers.scaled_fp8 import is_scaled, unsupported_quantization

BUNDLED_BASE = "tiny-sdxl"  # folder under models/ of the base that is part of the project
VAE_NAMES = (
    "sdxl_vae.safetensors",
    "sdxl-vae-fp16-fix.safetensors",
    "sdxl_vae_fp16_fix.safetensors",
    "sdxl.vae.safetensors",
)
SDXL_WIDTH = 320  # channels of the UNet's first level
SDXL_SIDE, SDXL_LATENT_FACTOR = 1024, 8  # native size in px, and px per latent cell
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


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
    is_scaled: bool  # weights in float8 with scales beside them
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
    reject_kind(path.name, other_kind(header))
    prediction_type, zero_terminal_snr, source = _prediction(header)
    prefixes = {"unet": UNET, "text_encoder": TEXT_1, "text_encoder_2": TEXT_2, "vae": VAE}
    return Checkpoint(
        path=path,
        vae=_vae_file(path, header),
        width=size_of(header.tensors, FIRST_CONVOLUTION, 0),
        prediction_type=prediction_type,
        zero_terminal_snr=zero_terminal_snr,
        prediction_source=source,
        dtype=_main_dtype(header),
        is_scaled=is_scaled(header.tensors),
        parameters={part: _count(header, prefix) for part, prefix in prefixes.items()},
        title=header.metadata.get("modelspec.title", ""),
    )


def reject_kind(name: str, kind: str | None) -> None:
    """Raises BaseError with advice, unless `kind` is None.

    Args:
        name: of the file or folder.
        kind: what the model is; a text with a semicolon contains the advice.
    """
    if kind:
        advice = "choose SDXL 1.0, Illustrious, NoobAI, Pony or another model of this family"
        raise BaseError(f"{name} is {kind}" if ";" in kind else f"{name} is {kind}; {advice}")


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
    if starts(header.tensors, VAE + "decoder."):
        return path
    beside = [path.with_name(f"{path.stem}.vae.safetensors"), *(path.with_name(name) for name in VAE_NAMES)]
    return _first_of(beside, Path.is_file)


def check_folder_weights(path: Path, files: Sequence[Path]) -> None:
    """Raises BaseError if a weight file of a diffusers folder is damaged or quantized in an unsupported form."""
    for file in files:
        form = unsupported_quantization(read_header(file, BaseError).tensors)
        if form:
            raise BaseError(
                f"{path.name} is quantized in a form that is not supported ({form}, {file.name}); "
                "get the fp16 version"
            )


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
