"""Rules that several tools have in common."""

from __future__ import annotations

from trainer.lora_file.compatibility.keys import Entry, Keys
from trainer.lora_file.tensor_names import DOWN, UP

DOTTED = "it knows no PEFT names (unet.….lora_A); convert the file: lora convert --to kohya"
NO_TOOL = "no tool knows OneTrainer's own names; convert the file: lora convert --to kohya"
LYCORIS = "it knows no names of LyCORIS' wrapper (lycoris_…); convert the file: lora convert --to kohya"
FLAT = (
    "text_model is missing in the name of the text encoder's module; convert the file: lora convert --to "
    "kohya"
)


def only_kohya(entry: Entry, short: str) -> str | None:
    """The reason to ignore a key, for a tool that knows only kohya's names.

    Args:
        short: the reason to ignore names that begin with `lora_te_`.
    """
    if entry.style in ("dotted", "dotted-flat", "processor", "nested", "bare"):
        return DOTTED
    if entry.style == "lycoris":
        return LYCORIS
    if entry.style == "comfyui":
        return "it knows no names of ComfyUI (diffusion_model.…); convert the file: lora convert --to kohya"
    if entry.style == "flat":
        return FLAT
    return short if entry.style == "short" else None


def half_module(keys: Keys) -> str | None:
    """The reason for loaders that stop with a KeyError at a module with one of its two matrices."""
    for name, roles in keys.roles.items():
        if (DOWN in roles) != (UP in roles):
            missing = UP if DOWN in roles else DOWN
            return f"loading stops with an error, because {name} has no {missing} matrix"
    return None
