"""Rules of other tools for SDXL LoRA files: the keys that each tool ignores, and the files that it refuses.

Most tools ignore a key without a message. The rules come from the sources of the tools, and were confirmed by
running their loaders, in the versions that `TOOLS` names. The tools know different spellings of module names:

                        A1111  Forge  ComfyUI  InvokeAI  sd-scripts  diffusers
lora_unet_input_blocks    x      x       x        x          x          x
lora_unet_down_blocks     x      x       x        x          x          x
unet.down_blocks          -      -       -        -          -          x
lora_te1_text_model       x      x       x        x          x          x
lora_te1_encoder          -      -       -        -          -          x
lora_te2_encoder          -      -       -        -          -          - (x beside others with text_model)
lora_te_text_model        -      x       x        -          -          x
text_encoder.text_model   -      x       x        -          -          x
diffusion_model           -      x       x        -          -          -     (ComfyUI's extracted files)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.lora_file.compatibility import scripts, web_uis
from trainer.lora_file.compatibility.keys import Drop, Entry, Keys, Verdict


@dataclass(frozen=True)
class Tool:
    """The rules of one tool.

    Attributes:
        reason: the reason to ignore a key, or None.
        refusal: the reason to refuse the file, given the number of ignored keys, or None.
        needs: command-line options without which the tool does not read the file.
        embeddings: the reason to ignore embeddings in the file, or None.
    """

    name: str
    reason: Callable[[Entry, Keys], str | None]
    refusal: Callable[[Keys, int], str | None]
    needs: Callable[[Keys], str] = lambda keys: ""
    embeddings: str | None = "it reads no embedding out of a LoRA's file"

    def read(self, keys: Keys) -> Verdict:
        """Applies the rules to the keys of a file."""
        reasons: dict[str, list[str]] = {}
        for entry in keys.entries:
            if reason := self._reason(entry, keys):
                reasons.setdefault(reason, []).append(entry.key)
        dropped = sum(map(len, reasons.values()))
        refusal = self.refusal(keys, dropped)
        drops = tuple(Drop(reason, tuple(ignored)) for reason, ignored in reasons.items())
        taken = 0 if refusal else len(keys.entries) - dropped
        return Verdict(
            self.name, taken, len(keys.entries), drops, refusal, "" if refusal else self.needs(keys)
        )

    def _reason(self, entry: Entry, keys: Keys) -> str | None:
        """The reason to ignore a key, from the rules of all tools and of this one."""
        if entry.is_bundled:
            return self.embeddings
        return _reason_for_all(entry) or self.reason(entry, keys)


def _reason_for_all(entry: Entry) -> str | None:
    """The reason for which every tool ignores a key, or None."""
    if entry.place is None:
        return "no module of SDXL has this name"
    if entry.is_kohya and entry.name.endswith("_to_out"):
        return "the 0 of to_out_0 is missing; convert the file: lora convert --to kohya"
    if not entry.exists:
        return "the base has no such module"
    if not entry.fits:
        return "the shapes of the matrices are not those of the base"
    return None


TOOLS = (
    Tool("A1111 1.10", web_uis.a1111, web_uis.a1111_refusal, embeddings=None),
    Tool("Forge", web_uis.forge, web_uis.forge_refusal),
    Tool("ComfyUI 0.3", web_uis.comfyui, web_uis.comfyui_refusal),
    Tool("InvokeAI 6.14", web_uis.invokeai, web_uis.invokeai_refusal),
    Tool("sd-scripts", scripts.sd_scripts, scripts.sd_scripts_refusal, scripts.sd_needs),
    Tool("diffusers 0.42", scripts.diffusers, scripts.diffusers_refusal),
)
