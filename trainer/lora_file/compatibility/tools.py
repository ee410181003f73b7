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
lycoris_down_blocks       -      -       x        -          -          -     (LyCORIS' wrapper, SimpleTuner)
unet.input_blocks         -      -       -        -          -          -     (OneTrainer's OMI and ORIGINAL)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from trainer.lora_file.compatibility import scripts, web_uis
from trainer.lora_file.compatibility.keys import Drop, Entry, Keys, Verdict
from trainer.lora_file.compatibility.shared_rules import NO_TOOL
from trainer.lora_file.compatibility.wrong_results import diffusers_alphas, output_lengths, scales_elsewhere


@dataclass(frozen=True)
class Tool:
    """The rules of one tool.

    Attributes:
        reason: the reason to ignore a key, or None.
        refusal: the reason to refuse the file, given the number of ignored keys, or None.
        needs: command-line options without which the tool does not read the file.
        embeddings: the reason to ignore embeddings in the file, or None.
        wrong: sentences about modules that the tool applies with another change than the trained one, given
            the names of the modules that it applies.
        scales: the place apart from the matrices where the tool also looks for a scale.
    """

    name: str
    reason: Callable[[Entry, Keys], str | None]
    refusal: Callable[[Keys, int], str | None]
    needs: Callable[[Keys], str] = lambda keys: ""
    embeddings: str | None = "it reads no embedding out of a LoRA's file"
    wrong: Callable[[Keys, Collection[str]], Iterator[str]] = lambda keys, taken: iter(())
    scales: str = ""

    def read(self, keys: Keys) -> Verdict:
        """Applies the rules to the keys of a file."""
        reasons: dict[str, list[str]] = {}
        for entry in keys.entries:
            if reason := self._reason(entry, keys):
                reasons.setdefault(reason, []).append(entry.key)
        dropped = sum(map(len, reasons.values()))
        refusal = self.refusal(keys, dropped)
        drops = tuple(Drop(reason, tuple(ignored)) for reason, ignored in reasons.items())
        total = len(keys.entries)
        if refusal:
            return Verdict(self.name, 0, total, drops, refusal)
        ignored = {key for drop in drops for key in drop.keys}
        taken = {entry.name: None for entry in keys.entries if entry.key not in ignored}  # in order
        wrong = (*self.wrong(keys, taken), *scales_elsewhere(keys, taken, self.scales))
        return Verdict(self.name, total - dropped, total, drops, needs=self.needs(keys), wrong=wrong)

    def _reason(self, entry: Entry, keys: Keys) -> str | None:
        """The reason to ignore a key, from the rules of all tools and of this one."""
        if entry.is_bundled:
            return self.embeddings
        return _reason_for_all(entry) or self.reason(entry, keys)


def _reason_for_all(entry: Entry) -> str | None:
    """The reason for which every tool ignores a key, or None."""
    if entry.place is None:
        return "no module of SDXL has this name"
    if entry.style == "onetrainer":
        return NO_TOOL
    if entry.is_kohya and entry.name.endswith("_to_out"):
        return "the 0 of to_out_0 is missing; convert the file: lora convert --to kohya"
    if not entry.exists:
        return "the base has no such module"
    if not entry.fits:
        return "the shapes of its tensors are not those of the base"
    return None


def _by_input(keys: Keys, taken: Collection[str]) -> Iterator[str]:
    """A1111 and InvokeAI divide by the norms of the inputs, whatever the lengths are of."""
    return output_lengths(keys, taken, "it reads DoRA's lengths of outputs as lengths of inputs")


def _by_base(keys: Keys, taken: Collection[str]) -> Iterator[str]:
    """weight_decompose in ComfyUI's weight_adapter/base.py, and its copy in Forge."""
    reading = "it divides DoRA's lengths of outputs by those of the base, not of the changed weight,"
    return output_lengths(keys, taken, reading)


TOOLS = (
    Tool("A1111 1.10", web_uis.a1111, web_uis.a1111_refusal, embeddings=None, wrong=_by_input),
    Tool("Forge", web_uis.forge, web_uis.forge_refusal, wrong=_by_base),
    Tool("ComfyUI 0.33", web_uis.comfyui, web_uis.comfyui_refusal, wrong=_by_base),
    Tool("InvokeAI 6.14", web_uis.invokeai, web_uis.invokeai_refusal, wrong=_by_input),
    Tool("sd-scripts", scripts.sd_scripts, scripts.sd_scripts_refusal, scripts.sd_needs),
    Tool(
        "diffusers 0.42",
        scripts.diffusers,
        scripts.diffusers_refusal,
        wrong=diffusers_alphas,
        scales="lora_adapter_metadata",
    ),
)
