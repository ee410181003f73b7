"""The text encoder of a file that adapts one text encoder alone, whose names don't contain which one.

base_model.model.text_model.encoder.layers.0.self_attn.q_proj    PEFT around a text encoder
lycoris_text_model_encoder_layers_0_self_attn_q_proj             LyCORIS around a text encoder
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from trainer.errors import LoraFileError
from trainer.headers.safetensors import Header
from trainer.lora_file.sdxl_modules import is_of_text_encoder_alone, sdxl
from trainer.lora_file.tensor_names import split_key

PEFT_CONFIG = "adapter_config.json"
_CLASSES = {"CLIPTextModel": "text_encoder", "CLIPTextModelWithProjection": "text_encoder_2"}
_PARTS = ("text_encoder", "text_encoder_2")
_MOST_CONFIG_BYTES = 4 << 20
_PROJECTION = re.compile(r"self_attn[._](q|k|v|out)_proj$")


def text_encoder_of(file: Path, header: Header) -> str | None:
    """The text encoder of names that don't contain it, or None for a file without such names.

    It is recognised by the width of SDXL's text encoders, by PEFT's configuration beside the file, and by the
    name of the folder, in this order.

    Raises:
        LoraFileError: none of them shows it.
    """
    names = {key: split[0] for key in header.tensors if (split := split_key(key))}
    alone = {key: name for key, name in names.items() if is_of_text_encoder_alone(name)}
    if not alone:
        return None
    part = _of_width(header, alone) or _of_config(file.with_name(PEFT_CONFIG)) or _of_folder(file.parent)
    if part is None:
        raise LoraFileError(
            f"{file.name} adapts a text encoder ({next(iter(alone))[:80]}), and nothing shows which of the two; "
            "put it into a folder named text_encoder or text_encoder_2"
        )
    return part


def _of_width(header: Header, names: dict[str, str]) -> str | None:
    """The text encoder of SDXL whose width is a side of an attention layer's matrices."""
    sides = {
        side for key, name in names.items() if _PROJECTION.search(name) for side in header.tensors[key].shape
    }
    widths = {part: sdxl().shapes[part]["final_layer_norm"][0] for part in _PARTS}
    parts = [part for part, width in widths.items() if width in sides]
    return parts[0] if len(parts) == 1 else None


def _of_config(path: Path) -> str | None:
    """The text encoder by the class of the model in PEFT's configuration."""
    try:
        if path.stat().st_size > _MOST_CONFIG_BYTES:
            return None
        config = json.loads(path.read_text(encoding="utf-8-sig"))
        return _CLASSES.get(str((config.get("auto_mapping") or {}).get("base_model_class")))
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return None  # `scales.read_scales` reports a damaged one


def _of_folder(folder: Path) -> str | None:
    """The text encoder by the name of the file's folder or of the folder above it."""
    names = folder.resolve().name, folder.resolve().parent.name
    return next((name for name in names if name in _PARTS), None)
