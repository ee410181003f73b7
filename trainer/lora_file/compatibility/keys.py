"""The keys of a LoRA file in the terms of the tools' rules, and the verdict of a tool on them."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainer.headers.lora import BUNDLED

_STARTS = {  # spellings that the beginning of a module name shows
    r"diffusion_model\.|text_encoders\.": "comfyui",
    r"lycoris_": "lycoris",
    r"(unet\.)?(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\.": "onetrainer",
    r"clip_[lg]\.": "onetrainer",
    r"\w+\.base_model\.model\.": "nested",
    r"(base_model\.model\.)?(text_model|encoder\.layers|text_projection)\b": "bare",
}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
        key: its name in the file: a module name and a suffix.
        name: the module name as spelled.
        suffix: the suffix as spelled.
        place: (part, path) of the module; None for a name of no module of SDXL.
        exists: True if the base has the module.
        fits: True if the shapes of the module are those of the base.
        weight: shape of the base's weight.
    """

    key: str
    name: str
    role: str
    suffix: str
    place: tuple[str, str] | None
    exists: bool
    fits: bool
    weight: tuple[int, ...] = ()

    @property
    def style(self) -> str:
        """The spelling of the module name.

        unknown      no module of SDXL
        original     lora_unet_input_blocks_4_1_...          kohya, block names of the original checkpoint
        diffusers    lora_unet_down_blocks_1_...             kohya, block names of diffusers
        text         lora_te1_text_model_encoder_...         kohya
        short        lora_te_text_model_encoder_...          kohya for Stable Diffusion 1.5
        flat         lora_te1_encoder_...                    kohya without text_model
        dotted       unet.down_blocks.1...., text_encoder.text_model.encoder....      PEFT
        dotted-flat  text_encoder.encoder....                PEFT without text_model
        processor    unet.down_blocks.1....attn1.processor.to_q    diffusers before 0.22
        comfyui      diffusion_model.input_blocks.4.1...., text_encoders.clip_l....
        lycoris      lycoris_down_blocks_1_...               LyCORIS' own wrapper (SimpleTuner)
        onetrainer   unet.input_blocks.4.1...., input_blocks.4.1...., clip_l....
        nested       unet.base_model.model.down_blocks.1....  PEFT, wrapped twice
        bare         text_model.encoder....                  PEFT around a text encoder alone
        """
        if self.place is None:
            return "unknown"
        part, path = self.place
        if style := next((style for start, style in _STARTS.items() if re.match(start, self.name)), None):
            return style
        has_text_model = "text_model" in self.name or path == "text_projection"
        if part == "unet":
            if not self.name.startswith("lora_unet_"):
                return "processor" if ".processor." in self.name else "dotted"
            original = r"lora_unet_(input_blocks|middle_block|output_blocks|time_embed_\d|label_emb|out_\d)"
            return "original" if re.match(original, self.name) else "diffusers"
        if self.name.startswith("lora_te_"):
            return "short"
        if self.name.startswith("lora_"):
            return "text" if has_text_model else "flat"
        return "dotted" if has_text_model else "dotted-flat"

    @property
    def is_bundled(self) -> bool:
        """True for a tensor of an embedding in the file of the LoRA."""
        return self.key.startswith(BUNDLED)

    @property
    def is_kohya(self) -> bool:
        """True for a module name with kohya's prefixes and underscores."""
        return self.style in ("original", "diffusers", "text", "short", "flat")


@dataclass(frozen=True, eq=False)  # equal only to itself: its hash is a cache key in scripts.py
class Keys:
    """All tensors of a file with its metadata.

    Attributes:
        shapes: shape by key.
        true_sdxl: True if the file is compared with SDXL 1.0, not with a smaller base.
        alphas: the `.alpha` of modules, by name.
        ranks: the ranks of modules that have one, by name.
        elsewhere: by name, the place of a scale that is not 1 and not beside the matrices (see `scales`).
    """

    entries: Sequence[Entry]
    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    true_sdxl: bool
    alphas: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def places(self) -> dict[str, tuple[str, str]]:
        """(part, path) of the modules that the base has, by name."""
        return {entry.name: entry.place for entry in self.entries if entry.place and entry.exists}

    @functools.cached_property
    def weights(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the base's weights by module name."""
        return {entry.name: entry.weight for entry in self.entries if entry.weight}

    @functools.cached_property
    def roles(self) -> dict[str, set[str]]:
        """Roles by module name."""
        roles: dict[str, set[str]] = {}
        for entry in self.entries:
            if not entry.is_bundled:
                roles.setdefault(entry.name, set()).add(entry.role)
        return roles

    @functools.cached_property
    def suffixes(self) -> dict[str, set[str]]:
        """Suffixes by module name."""
        suffixes: dict[str, set[str]] = {}
        for entry in self.entries:
            suffixes.setdefault(entry.name, set()).add(entry.suffix)
        return suffixes

    @property
    def misfit(self) -> str | None:
        """The name of the first module whose shapes are not those of the base."""
        return next((entry.name for entry in self.entries if entry.exists and not entry.fits), None)

    @functools.cached_property
    def styles(self) -> frozenset[str]:
        """All spellings in the file."""
        return frozenset(entry.style for entry in self.entries)

    @functools.cached_property
    def paths(self) -> dict[str, set[str]]:
        """Paths of the modules that the base has, by part."""
        paths: dict[str, set[str]] = {"unet": set(), "text_encoder": set(), "text_encoder_2": set()}
        for entry in self.entries:
            if entry.place and entry.exists:
                paths[entry.place[0]].add(entry.place[1])
        return paths

    @functools.cached_property
    def text_encoder_forms(self) -> dict[str, str]:
        """The form that diffusers infers from the keys of each text encoder."""
        known = [entry for entry in self.entries if entry.style not in ("comfyui", "unknown")]
        return {
            part: _diffusers_form([e for e in known if e.place and e.place[0] == part])
            for part in ("text_encoder", "text_encoder_2")
        }


@dataclass(frozen=True)
class Drop:
    """Keys that a tool ignores, with the reason."""

    reason: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """The result of reading a file with one tool.

    Attributes:
        taken: number of tensors that the tool applies, of `total`.
        refusal: the reason to refuse the whole file.
        needs: command-line options without which the tool does not read the file.
        wrong: sentences about modules that the tool applies with another change than the trained one.
    """

    tool: str
    taken: int
    total: int
    drops: tuple[Drop, ...] = ()
    refusal: str | None = None
    needs: str = ""
    wrong: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """True if the tool applies every tensor as it was trained."""
        return self.refusal is None and not self.drops and not self.wrong


def _diffusers_form(entries: Sequence[Entry]) -> str:
    """The form of a text encoder's keys, inferred as diffusers' utils/state_dict_utils.py does."""
    if not entries or any(
        entry.suffix.startswith(".lora_A") or (entry.is_kohya and ".out_proj" in entry.place[1])
        for entry in entries
        if entry.place
    ):
        return "whole"
    if any("lora_linear_layer" in entry.suffix for entry in entries) or any(
        ".mlp." in entry.place[1] for entry in entries if entry.place
    ):
        return "feed-forward"
    return "unknown"
