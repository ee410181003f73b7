"""Which captioning models there are, and which kind a folder holds: told from its files, without loading anything.

models/captioners/
  florence-2-base-ft/    config.json (model_type florence2, blip or blip-2), model.safetensors, tokenizer and processor files
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
# model_type of config.json -> kind, and the class that describes pictures; its siblings answer questions or compare.
_TYPES = {
    "blip": (BLIP, "BlipForConditionalGeneration"),
    "blip-2": (BLIP_2, "Blip2ForConditionalGeneration"),
    "florence2": (FLORENCE_2, "Florence2ForConditionalGeneration"),
}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_READ = "BLIP, BLIP-2, Florence-2 and WD taggers are read"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Captioner:
    """A captioning model on disk."""

    path: Path
    kind: str  # BLIP, BLIP_2, FLORENCE_2 or WD_TAGGER
    name: str  # as it is called towards the user


def folder_of(models: Path) -> Path:
    return models / "captioners"


def list_captioners(models: Path) -> dict[str, str]:
    """name -> kind of the captioning models under a models folder. Folders that hold none are passed over."""
    found = {}
    for folder in sorted(
        path for path in folder_of(models).glob("*") if path.is_dir() and not path.name.startswith(".")
    ):
        try:
            found[folder.name] = captioner_kind(folder)
        except CaptionerError:
            continue
    return found


def open_captioner(reference: str, models: Path) -> Captioner:
    """A model by its name under `models/captioners`, the path of a folder, or an id of the hub that is in its local cache.

    Nothing is downloaded. Raises CaptionerError.
    """
    under = folder_of(models)
    for folder in (under / reference, under / reference.replace("/", "--"), Path(reference)):
        if reference and folder.is_dir():
            name = folder.resolve().name
            return Captioner(folder, captioner_kind(folder, name), name)
    cached = _in_cache(reference)
    if cached:
        return Captioner(cached, captioner_kind(cached, reference), reference)
    places = f"{models.name}/captioners"
    if not is_hub_id(reference):
        raise CaptionerError(
            f"there is no captioning model {reference!r}; give a folder, or the name of one in {places}"
        )
    raise CaptionerError(
        f"{reference} is not on this machine; add --fetch to `python -m trainer dataset caption` to download it, "
        f"or put its files into {places}/{reference.partition('/')[2]}"
    )


def is_hub_id(reference: str) -> bool:
    """Whether a reference may be OWNER/NAME."""
    return _HUB_ID.fullmatch(reference) is not None and not reference.startswith(".")


def captioner_kind(folder: Path, name: str = "") -> str:
    """Which kind of captioning model a folder holds. Raises CaptionerError with what it is instead."""
    name = name or folder.name
    there = [file for file in (ONNX, TAGS) if (folder / file).is_file()]
    if len(there) == 2:
        return WD_TAGGER
    kind = kind_from_config(folder, name, there)
    _check_weights(folder, name)
    return kind


def kind_from_config(folder: Path, name: str, there: list[str] | None = None) -> str:
    """The kind that a folder's JSON files tell, whether or not its weights are there. Raises CaptionerError."""
    config = _json(folder / "config.json", name)
    model_type = str(config.get("model_type", ""))
    if there and model_type not in _TYPES:
        missing = TAGS if there[0] == ONNX else ONNX
        raise CaptionerError(
            f"{name} holds {there[0]} but no {missing}; get that file from where the model came from"
        )
    if not config:
        raise CaptionerError(
            f"{name} holds no captioning model (neither config.json nor {ONNX} with {TAGS}); {_READ}"
        )
    if model_type not in _TYPES:
        raise CaptionerError(
            f"{name} is {f'a model of type {model_type}' if model_type else 'of no known type'}, which is not read; {_READ}"
        )
    kind, architecture = _TYPES[model_type]
    said = config.get("architectures") or [architecture]
    if architecture not in said and kind != FLORENCE_2:
        raise CaptionerError(
            f"{name} is a {kind} for another task ({said[0]}); get one that describes pictures ({architecture})"
        )
    # Elsewhere auto_map only names programs, none of which is run; here it says that the weights are in the form of one.
    if "auto_map" in config:
        advice = (
            "; get it in the form of transformers, such as florence-community/Florence-2-base-ft"
            if kind == FLORENCE_2
            else ""
        )
        raise CaptionerError(
            f"{name} needs a program of its own (config.json has auto_map), which is not run{advice}"
        )
    return kind


def _check_weights(folder: Path, name: str) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    weights = [path for path in files if path.suffix == ".safetensors"]
    pickles = [path.name for path in files if path.suffix in _PICKLES]
    if not weights and pickles:
        raise CaptionerError(
            f"{name} has its weights in a pickle file ({pickles[0]}): such files can run programs when opened, so they are not; "
            "get the .safetensors version"
        )
    if not weights:
        raise CaptionerError(f"{name} holds no weights (.safetensors); download it again")
    for path in weights:
        read_header(path, CaptionerError)


def _json(path: Path, name: str) -> dict[str, Any]:
    """{} when the file is not there."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        raise CaptionerError(f"{name} has a {path.name} that can't be read; download it again") from None
    if not isinstance(found, dict):
        raise CaptionerError(f"{name} has a {path.name} that can't be read; download it again")
    return found


def _in_cache(reference: str) -> Path | None:
    """Folder of a model in the hub's local cache. The network is not touched."""
    if not is_hub_id(reference):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(reference, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
