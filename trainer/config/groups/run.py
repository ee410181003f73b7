"""Settings of the run as a whole: name, base model, preset and seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from trainer.config import declaration
from trainer.config.declaration import Bounds
from trainer.config.validation import is_text

PRESET_NAMES = ("style", "character", "concept")
PACES = ("quick", "balanced", "thorough")

setting = partial(declaration.setting, group="run")


def _file_name_problem(name: str, value: str) -> str | None:
    """A name must work as a file name on Windows, macOS and Linux: 200 bytes leave room for endings."""
    forbidden = any(character in value for character in '/\\:*?"<>|') or value.startswith(".")
    too_long = len(value.encode(errors="replace")) > 200
    if not value.strip() or not is_text(value) or forbidden or too_long:
        return f'{name} must be a file name without / \\ : * ? " < > |, at most 200 bytes long'
    return None


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings that identify a run."""

    name: str = setting(
        "my-lora",
        "Name",
        check=_file_name_problem,
        help="File name of the LoRA, without .safetensors.",
    )
    trigger: str = setting(
        "",
        "Trigger word",
        help="Word that activates the LoRA in a prompt. It is added in front of every caption that lacks it.",
    )
    base: str = setting(
        "tiny-sdxl",
        "Base model",
        help="SDXL base model: a name under models/, or the path of a .safetensors checkpoint or diffusers "
        "folder.",
    )
    preset: str = setting(
        "style",
        "Preset",
        choices=PRESET_NAMES,
        help="Kind of subject. Sets the number of steps from the number of pictures, and rank, learning "
        "rate and other settings that you do not set yourself.",
    )
    pace: str = setting(
        "balanced",
        "Pace",
        choices=PACES,
        help="Length of the training: quick takes half as many steps for a first test (on SDXL at 768 px), "
        "thorough twice as many at 0.7 of the learning rate.",
    )
    seed: int = setting(
        0,
        "Seed",
        bounds=Bounds(0, 2**31 - 1),
        help="Seed of all random numbers. The same seed and settings on the same machine give the same file.",
    )
