"""The keys of a LoRA file, sorted for the question what each tool does with them, and the answer."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.headers.lora import BUNDLED


@dataclass(frozen=True)
class Entry:
    """One tensor of the file."""

    key: str
    name: str  # of its module, as spelled
    role: str
    ending: str  # as written
    place: tuple[str, str] | None  # (part, path), None for no module of SDXL
    exists: bool  # in the base that the file is for
    fits: bool  # the shapes of its module are those of the base

    @property
    def style(self) -> str:
        """`original`, `diffusers`, `text`, `short`, `flat`, `dotted`, `dotted-flat`, `processor`, `comfyui` or `unknown` spelling."""
        if self.place is None:
            return "unknown"
        part, path = self.place
        if self.name.startswith(("diffusion_model.", "text_encoders.")):
            return "comfyui"
        whole = "text_model" in self.name or path == "text_projection"
        if part == "unet":
            if not self.name.startswith("lora_unet_"):
                return "processor" if ".processor." in self.name else "dotted"
            original = r"lora_unet_(input_blocks|middle_block|output_blocks|time_embed_\d|label_emb|out_\d)"
            return "original" if re.match(original, self.name) else "diffusers"
        if self.name.startswith("lora_te_"):
            return "short"
        if self.name.startswith("lora_"):
            return "text" if whole else "flat"
        return "dotted" if whole else "dotted-flat"

    @property
    def is_bundled(self) -> bool:
        """Of an embedding that lies in the LoRA's file."""
        return self.key.startswith(BUNDLED)

    @property
    def kohya(self) -> bool:
        return self.style in ("original", "diffusers", "text", "short", "flat")


@dataclass(frozen=True, eq=False)  # compared and hashed as itself, so that answers about it can be kept
class Keys:
    """All tensors of a file, with its metadata."""

    entries: Sequence[Entry]
    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    true_sdxl: bool

    @functools.cached_property
    def roles(self) -> dict[str, set[str]]:
        """By module's name."""
        found: dict[str, set[str]] = {}
        for entry in self.entries:
            if not entry.is_bundled:
                found.setdefault(entry.name, set()).add(entry.role)
        return found

    @functools.cached_property
    def endings(self) -> dict[str, set[str]]:
        """By module's name."""
        found: dict[str, set[str]] = {}
        for entry in self.entries:
            found.setdefault(entry.name, set()).add(entry.ending)
        return found

    @property
    def misfit(self) -> str | None:
        """The first module whose shapes are not the base's."""
        return next((entry.name for entry in self.entries if entry.exists and not entry.fits), None)

    @functools.cached_property
    def styles(self) -> frozenset[str]:
        return frozenset(entry.style for entry in self.entries)

    @functools.cached_property
    def paths(self) -> dict[str, set[str]]:
        """Of the modules that the base has, by part."""
        found: dict[str, set[str]] = {"unet": set(), "text_encoder": set(), "text_encoder_2": set()}
        for entry in self.entries:
            if entry.place and entry.exists:
                found[entry.place[0]].add(entry.place[1])
        return found

    @functools.cached_property
    def forms(self) -> dict[str, str]:
        """What diffusers takes each text encoder's keys for."""
        known = [entry for entry in self.entries if entry.style not in ("comfyui", "unknown")]
        return {
            part: _form([e for e in known if e.place and e.place[0] == part])
            for part in ("text_encoder", "text_encoder_2")
        }


@dataclass(frozen=True)
class Drop:
    reason: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    tool: str
    taken: int  # tensors
    total: int
    drops: tuple[Drop, ...] = ()
    refusal: str | None = None  # why the whole file is refused
    needs: str = ""  # what it has to be told to read the file

    @property
    def whole(self) -> bool:
        return self.refusal is None and not self.drops


def _form(found: Sequence[Entry]) -> str:
    """diffusers' utils/state_dict_utils.py infers the form of a text encoder's keys from those that are there."""
    if not found or any(
        entry.ending.startswith(".lora_A") or (entry.kohya and ".out_proj" in entry.place[1])
        for entry in found
        if entry.place
    ):
        return "whole"
    if any("lora_linear_layer" in entry.ending for entry in found) or any(
        ".mlp." in entry.place[1] for entry in found if entry.place
    ):
        return "feed-forward"
    return "unknown"
