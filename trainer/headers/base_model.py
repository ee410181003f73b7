"""Which base models there are, and what a file is: told from names and headers, without loading anything.

models/
  tiny-sdxl/               a diffusers folder (model_index.json)
  illustrious.safetensors  a checkpoint in the original layout
  sdxl_vae.safetensors     a VAE, for checkpoints that lack one
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import BaseError
from trainer.headers.safetensors import Header, Tensor, read_header

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
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A single-file SDXL checkpoint, as its header tells."""

    path: Path
    vae: Path | None  # the file that holds the VAE: this one, or one beside it; None: there is none
    width: int  # channels of the UNet's first level: 320 in SDXL
    prediction_type: str | None  # "epsilon" or "v_prediction"; None: the file does not say
    zero_terminal_snr: bool
    prediction_source: str  # what decided the two above
    dtype: str  # of most of its values
    parameters: dict[str, int]  # by part
    title: str


def list_base_models(models: Path) -> list[str]:
    """What `base` may name under a folder: diffusers folders and SDXL checkpoints. Other files are passed over."""
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
    """Whether a base is narrower than SDXL, as the bundled one is; False when it can't be told."""
    folder = next((path for path in (models / reference, Path(reference)) if path.is_dir()), None)
    file = next(
        (
            path
            for path in (models / reference, models / f"{reference}.safetensors", Path(reference))
            if path.is_file()
        ),
        None,
    )
    try:
        if folder:
            return folder_configs(folder)["unet"]["block_out_channels"][0] < SDXL_WIDTH
        return file is not None and read_checkpoint(file).width < SDXL_WIDTH
    except (BaseError, KeyError, IndexError, TypeError):
        return False


def read_checkpoint(path: Path) -> Checkpoint:
    """What a single file holds. Raises BaseError with what it is instead, when it is no SDXL checkpoint."""
    if path.suffix.lower() in PICKLES:
        raise BaseError(
            f"{path.name} is a pickle file: such files can run programs when opened, so they are not; get the .safetensors version"
        )
    header = read_header(path, BaseError)
    kind = other_kind(header)
    if kind:
        advice = (
            "" if ";" in kind else "; choose SDXL 1.0, Illustrious, NoobAI, Pony or another of their family"
        )
        raise BaseError(f"{path.name} is {kind}{advice}")
    prediction_type, zero_terminal_snr, prediction_source = _prediction(header)
    values = {
        part: _count(header, start)
        for part, start in (
            ("unet", UNET),
            ("text_encoder", TEXT_1),
            ("text_encoder_2", TEXT_2),
            ("vae", VAE),
        )
    }
    return Checkpoint(
        path=path,
        vae=_vae_of(path, header),
        width=_width(header.tensors, _STEM, 0),
        prediction_type=prediction_type,
        zero_terminal_snr=zero_terminal_snr,
        prediction_source=prediction_source,
        dtype=_main_dtype(header),
        parameters=values,
        title=header.metadata.get("modelspec.title", ""),
    )


def other_kind(header: Header) -> str | None:
    """What a file is when it is no whole SDXL checkpoint; None when it is one."""
    return next((words for words, is_so in _KINDS if is_so(header.tensors)), None)


Tensors = dict[str, Tensor]


def _has(tensors: Tensors, *marks: str) -> bool:
    return any(mark in name for name in tensors for mark in marks)


def _starts(tensors: Tensors, *starts: str) -> bool:
    return any(name.startswith(starts) for name in tensors)


def _width(tensors: Tensors, name: str, axis: int = 1) -> int:
    """Size of one axis of a tensor; 0 when it is not there."""
    shape = tensors[name].shape if name in tensors else ()
    return shape[axis] if len(shape) > axis else 0


def _lacks_text(tensors: Tensors) -> bool:
    return not (_starts(tensors, TEXT_1) and _starts(tensors, TEXT_2))


_STEM, _LABEL = UNET + "input_blocks.0.0.weight", UNET + "label_emb.0.0.weight"

# In order: the first that is true names the file.
_KINDS: tuple[tuple[str, Callable[[Tensors], bool]], ...] = (
    ("an empty file", lambda t: not t),
    (
        "a LoRA, not a base model",
        lambda t: _has(t, ".lora_down.", ".lora_A.", ".lora.down.", ".hada_w1", ".lokr_w", "lora_unet_"),
    ),
    ("a ControlNet", lambda t: _starts(t, "control_model.", "controlnet_") or _has(t, "input_hint_block")),
    (
        "a textual inversion embedding",
        lambda t: len(t) <= 3 and bool({"clip_g", "clip_l", "emb_params", "string_to_param"} & set(t)),
    ),
    ("a Flux model", lambda t: _has(t, "double_blocks.", "single_transformer_blocks.")),
    ("a Stable Diffusion 3 model", lambda t: _has(t, "joint_blocks.")),
    ("a video model", lambda t: _has(t, "time_stack.", "motion_modules.", "temporal_transformer")),
    ("a Stable Diffusion 1 model", lambda t: _starts(t, "cond_stage_model.transformer.")),
    ("a Stable Diffusion 2 model", lambda t: _starts(t, "cond_stage_model.model.")),
    (
        "the SDXL refiner",
        lambda t: (
            _width(t, _LABEL) == 2560
            or (_starts(t, "conditioner.embedders.0.model.") and not _starts(t, TEXT_2))
        ),
    ),
    ("an inpainting model", lambda t: _width(t, _STEM) == 9),
    ("an instruct-pix2pix model", lambda t: _width(t, _STEM) == 8),
    (
        "a VAE, not a base model",
        lambda t: all(
            n.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "first_stage_model."))
            for n in t
        ),
    ),
    (
        "one part of a diffusers folder; give the path of the whole folder",
        lambda t: _starts(t, "down_blocks.", "text_model."),
    ),
    ("a UNet without its text encoders", lambda t: _starts(t, UNET) and _lacks_text(t)),
    ("no SDXL model", lambda t: _STEM not in t or _lacks_text(t)),
    (
        "cut down from SDXL (SSD-1B, Vega or the like), which is not trained here",
        lambda t: UNET + "middle_block.1.transformer_blocks.0.attn1.to_q.weight" not in t,
    ),
)


def _prediction(header: Header) -> tuple[str | None, bool, str]:
    """(prediction type, zero terminal SNR, what says so). Marker tensors first: they survive merging tools."""
    facts, ztsnr = header.metadata, "ztsnr" in header.tensors
    if "v_pred" in header.tensors:
        return "v_prediction", ztsnr, "its v_pred marker" + (" and ztsnr marker" if ztsnr else "")
    said = facts.get("modelspec.prediction_type", "").lower()
    terminal = ztsnr or _true(facts.get("ss_zero_terminal_snr", ""))
    if said.startswith("v"):
        return "v_prediction", terminal, "modelspec.prediction_type"
    if _true(facts.get("ss_v_parameterization", "")):
        return "v_prediction", terminal, "ss_v_parameterization"
    if said.startswith("eps"):
        return "epsilon", terminal, "modelspec.prediction_type"
    return None, terminal, ""


def _true(text: str) -> bool:
    return text.strip().lower() in ("true", "1", "yes")


def _count(header: Header, start: str) -> int:
    return sum(value_count(tensor) for name, tensor in header.tensors.items() if name.startswith(start))


def value_count(tensor: Tensor) -> int:
    count = 1
    for side in tensor.shape:
        count *= side
    return count


def _main_dtype(header: Header) -> str:
    values: dict[str, int] = {}
    for tensor in header.tensors.values():
        values[tensor.dtype] = values.get(tensor.dtype, 0) + value_count(tensor)
    return max(values, key=lambda dtype: values[dtype])


def _vae_of(path: Path, header: Header) -> Path | None:
    """The checkpoint itself, `<its name>.vae.safetensors`, or a VAE of a known name beside it."""
    if _starts(header.tensors, VAE + "decoder."):
        return path
    beside = [path.with_name(f"{path.stem}.vae.safetensors"), *(path.with_name(name) for name in VAE_NAMES)]
    return next((candidate for candidate in beside if candidate.is_file()), None)


def folder_configs(path: Path) -> dict[str, dict]:
    """The JSON files of a diffusers folder that decide what it is. Raises BaseError."""
    return {
        "index": folder_config(path, "model_index.json"),
        "unet": folder_config(path, "unet/config.json", ("block_out_channels", "sample_size")),
        "vae": folder_config(path, "vae/config.json", ("block_out_channels", "scaling_factor")),
        "scheduler": folder_config(path, "scheduler/scheduler_config.json"),
    }


def folder_config(path: Path, name: str, needed: Sequence[str] = ()) -> dict:
    """One JSON file of a diffusers folder. Raises BaseError when it is damaged or lacks what is `needed`."""
    try:
        found = json.loads((path / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BaseError(f"{path.name} is not a whole diffusers folder ({name} can't be read); copy it again")
    if lacking := [key for key in needed if key not in found]:
        raise BaseError(
            f"{path.name} is not a whole diffusers folder ({name} lacks {', '.join(lacking)}); copy it again"
        )
    return found


def vae_scale_factor(config: Mapping[str, Any]) -> int:
    """The side of a latent cell in px: 8 for SDXL, since each level of the VAE but the last halves the image.

    Args:
        config: the settings of `vae/config.json`, or a VAE's `config`.
    """
    return 2 ** (len(config["block_out_channels"]) - 1)


def bucket_geometry(reference: str, models: Path) -> tuple[int, int]:
    """(native side in px, px per latent cell) of a base, from its configuration alone; SDXL's own where it can't be told."""
    folder = next(
        (path for path in (models / reference, Path(reference)) if reference and path.is_dir()), None
    )
    try:
        facts = folder_configs(folder) if folder else {}
        factor = vae_scale_factor(facts["vae"])
        return facts["unet"]["sample_size"] * factor, factor
    except (BaseError, KeyError, TypeError):
        return 1024, 8
