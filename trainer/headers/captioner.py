"""Captioning models on disk: their kinds, identified from their files without loading them.

models/captioners/
  florence-2-base-ft/    config.json (model_type florence2, blip or blip-2), model.safetensors, files of the
                         tokenizer and the processor
  wd-vit-tagger-v3/      model.onnx, selected_tags.csv
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import CaptionerError
from trainer.headers.safetensors import read_header

BLIP, BLIP_2, FLORENCE_2, WD_TAGGER = "BLIP", "BLIP-2", "Florence-2", "WD tagger"
ONNX, TAGS = "model.onnx", "selected_tags.csv"
# model_type of config.json -> kind, and the class that writes captions. Other classes of the same model_type
# are for visual questions or compare images with texts.
_TYPES = {
    "blip": (BLIP, "BlipForConditionalGeneration"),
    "blip-2": (BLIP_2, "Blip2ForConditionalGeneration"),
    "florence2": (FLORENCE_2, "Florence2ForConditionalGeneration"),
}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SUPPORTED = "supported are BLIP, BLIP-2, Florence-2 and WD taggers"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Captioner:
    """A captioning model on disk."""

    path: Path
    kind: str  # BLIP, BLIP_2, FLORENCE_2 or WD_TAGGER
    name: str  # for messages


def captioners_folder(models: Path) -> Path:
    """Returns the folder of captioning models."""
    return models / "captioners"


def list_captioners(models: Path) -> dict[str, str]:
    """Returns {name: kind} of the captioning models under a models folder; other folders are skipped."""
    captioners = {}
    for folder in sorted(captioners_folder(models).glob("*")):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        try:
            captioners[folder.name] = captioner_kind(folder)
        except CaptionerError:
            continue
    return captioners


def open_captioner(reference: str, models: Path) -> Captioner:
    """Returns a model; nothing is downloaded.

    Args:
        reference: a name under `models/captioners`, the path of a folder, or a hub id OWNER/NAME that is in
            the local cache of the hub.

    Raises:
        CaptionerError: there is no such model, or it is not supported.
    """
    captioners = captioners_folder(models)
    for folder in (captioners / reference, captioners / reference.replace("/", "--"), Path(reference)):
        if reference and folder.is_dir():
            name = folder.resolve().name
            return Captioner(folder, captioner_kind(folder, name), name)
    cached = _cached_folder(reference)
    if cached:
        return Captioner(cached, captioner_kind(cached, reference), reference)
    place = f"{models.name}/captioners"
    if not is_hub_id(reference):
        raise CaptionerError(
            f"there is no captioning model {reference!r}; give a folder, or the name of one in {place}"
        )
    raise CaptionerError(
        f"{reference} is not on this machine; add --fetch to `python -m trainer dataset caption` to "
        f"download it, or put its files into {place}/{reference.partition('/')[2]}"
    )


def is_hub_id(reference: str) -> bool:
    """Returns whether a reference has the form OWNER/NAME."""
    return _HUB_ID.fullmatch(reference) is not None and not reference.startswith(".")


def captioner_kind(folder: Path, name: str = "") -> str:
    """Returns the kind of the captioning model in a folder.

    Args:
        name: of the model, for messages; "" uses the folder's name.

    Raises:
        CaptionerError: the folder holds something else, which the message names.
    """
    name = name or folder.name
    tagger_files = [file for file in (ONNX, TAGS) if (folder / file).is_file()]
    if len(tagger_files) == 2:
        return WD_TAGGER
    kind = kind_from_config(folder, name, tagger_files)
    _check_weights(folder, name)
    return kind


def kind_from_config(folder: Path, name: str, tagger_files: list[str] | None = None) -> str:
    """Returns the kind of a model from its config.json, whether or not its weights exist. Raises
    CaptionerError.

    Args:
        tagger_files: the one file of a WD tagger that the folder holds without the other, if any.
    """
    config = _read_json(folder / "config.json", name)
    model_type = str(config.get("model_type", ""))
    if model_type not in _TYPES:
        raise CaptionerError(_unsupported(config, model_type, name, tagger_files))
    kind, architecture = _TYPES[model_type]
    architectures = config.get("architectures") or [architecture]
    # Florence-2's own files name the class of its repository's program, which transformers does not need.
    if architecture not in architectures and kind != FLORENCE_2:
        raise CaptionerError(
            f"{name} is a {kind} for another task ({architectures[0]}); "
            f"get one that describes pictures ({architecture})"
        )
    # In other files auto_map only names programs, none of which is executed; here it means that the weights
    # have the names of such a program's classes.
    if "auto_map" in config:
        advice = (
            "; get the version for transformers, such as florence-community/Florence-2-base-ft"
            if kind == FLORENCE_2
            else ""
        )
        raise CaptionerError(
            f"{name} needs a program of its own (config.json has auto_map), which is not executed{advice}"
        )
    return kind


def _unsupported(config: dict[str, Any], model_type: str, name: str, tagger_files: list[str] | None) -> str:
    if tagger_files:
        missing = TAGS if tagger_files[0] == ONNX else ONNX
        return f"{name} holds {tagger_files[0]} but no {missing}; download that file too"
    if not config:
        return f"{name} holds no captioning model (no config.json, and no {ONNX} with {TAGS}); {_SUPPORTED}"
    what = f"a model of type {model_type}" if model_type else "of no known type"
    return f"{name} is {what}, which is not supported; {_SUPPORTED}"


def _check_weights(folder: Path, name: str) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    weights = [path for path in files if path.suffix == ".safetensors"]
    pickles = [path.name for path in files if path.suffix in _PICKLES]
    if not weights and pickles:
        raise CaptionerError(
            f"{name} has its weights in a pickle file ({pickles[0]}), which can run programs when opened; "
            "get the .safetensors version"
        )
    if not weights:
        raise CaptionerError(f"{name} holds no weights (.safetensors); download it again")
    for path in weights:
        read_header(path, CaptionerError)


def _read_json(path: Path, name: str) -> dict[str, Any]:
    """Returns a JSON object; {} if the file is missing. Raises CaptionerError if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise CaptionerError(f"{name} has a {path.name} that can't be read; download it again")
    return content


def _cached_folder(reference: str) -> Path | None:
    """Returns the folder of a model in the hub's local cache, without network access."""
    if not is_hub_id(reference):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(reference, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
