"""What other tools do with each key of an SDXL LoRA file: take it, drop it (mostly without a word), or refuse the file.

The rules were read from the tools' sources and seen by running their loaders, in the versions that `TOOLS` names. Each
tool knows a module by other spellings:

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

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

from trainer.adapter.lycoris import split
from trainer.headers.lora import BUNDLED
from trainer.lora_file.compatibility.keys import Drop, Entry, Keys, Verdict
from trainer.lora_file.tensor_names import ALPHA, DORA, DOWN, UP

FORGE_LIMIT = 12  # unmatched keys; with more it applies nothing


@dataclass(frozen=True)
class Tool:
    name: str
    reason: Callable[[Entry, Keys], str | None]  # to drop a key
    refusal: Callable[[Keys, int], str | None]  # of the file, given the number of dropped keys
    needs: Callable[[Keys], str] = lambda keys: ""
    embeddings: str | None = "it reads no embedding out of a LoRA's file"  # reason to drop them

    def read(self, keys: Keys) -> Verdict:
        reasons: dict[str, list[str]] = {}
        for entry in keys.entries:
            if reason := self.embeddings if entry.is_bundled else _missing(entry) or self.reason(entry, keys):
                reasons.setdefault(reason, []).append(entry.key)
        dropped = sum(map(len, reasons.values()))
        refusal = self.refusal(keys, dropped)
        drops = tuple(Drop(reason, tuple(found)) for reason, found in reasons.items())
        taken = 0 if refusal else len(keys.entries) - dropped
        return Verdict(
            self.name, taken, len(keys.entries), drops, refusal, "" if refusal else self.needs(keys)
        )


def _missing(entry: Entry) -> str | None:
    """What no tool takes."""
    if entry.place is None:
        return "no module of SDXL has this name"
    if entry.kohya and entry.name.endswith("_to_out"):
        return "the 0 of to_out_0 is missing; convert the file: lora convert --to kohya"
    if not entry.exists:
        return "the base has no such module"
    if not entry.fits:
        return "the shapes of the matrices are not those of the base"
    return None


_NO_PROJECTION = "text_projection is not among its LoRA modules"
_DOTTED = "it knows no PEFT names (unet.….lora_A); convert the file: lora convert --to kohya"
_FLAT = "text_model is missing in the name of the text encoder's module; convert the file: lora convert --to kohya"


def _comfyui(entry: Entry, keys: Keys) -> str | None:
    path = entry.place[1] if entry.place else ""
    if entry.role == DOWN and UP not in keys.roles[entry.name]:
        return "its up matrix is missing"
    if entry.style == "comfyui":
        return None
    if entry.place and entry.place[0] != "unet":
        if entry.style in ("flat", "dotted-flat"):
            return _FLAT
        if path == "text_projection" and (entry.style != "text" or "text_model" in entry.name):
            return _NO_PROJECTION
        if not re.search(r"self_attn\.[qkv]_proj|self_attn\.out_proj|mlp\.fc[12]|text_projection", path):
            return "only attention and feed-forward modules of text encoders are known"
    # Its table of dotted names says attn1.processor.to_q; those without attention are the same in both.
    if (entry.style == "dotted" and ".to_" in entry.name) or entry.key.startswith("base_model."):
        return _DOTTED
    if entry.role in ("rescale", "scale_weight", "on_input", "weight", "scalar"):
        return f"{entry.role} is not read"
    if entry.ending.startswith(".lora_magnitude_vector"):
        return "PEFT's magnitude vectors are not read"
    return None


def _comfyui_refusal(keys: Keys, dropped: int) -> str | None:
    for name, found in keys.roles.items():  # a KeyError
        if UP in found and DOWN not in found:
            return f"{name} has no down matrix, at which loading stops"
    return None


def _forge(entry: Entry, keys: Keys) -> str | None:
    """A copy of an older ComfyUI's."""
    if entry.style == "comfyui" and entry.name.startswith("text_encoders."):
        return "it knows ComfyUI's names of the UNet alone; convert the file: lora convert --to kohya"
    if ".default." in entry.ending:
        return "it does not read PEFT's adapter names; convert the file: lora convert --to kohya"
    return _comfyui(entry, keys)


def _forge_refusal(keys: Keys, dropped: int) -> str | None:
    unmatched = dropped - sum(
        entry.exists and not entry.fits for entry in keys.entries
    )  # wrong shapes are met later
    if unmatched > FORGE_LIMIT:
        return f"{unmatched} keys match nothing, more than {FORGE_LIMIT}, so it applies none of the file"
    if keys.misfit:
        return f"{keys.misfit} has not the shapes of the base, at which drawing stops"
    return _comfyui_refusal(keys, dropped)


def _not_kohyas(entry: Entry, short: str) -> str | None:
    """Of a tool that knows kohya's names alone; `short`: why it does not take `lora_te_`."""
    if entry.style in ("dotted", "dotted-flat", "processor"):
        return _DOTTED
    if entry.style == "comfyui":
        return "it knows no names of ComfyUI (diffusion_model.…); convert the file: lora convert --to kohya"
    if entry.style == "flat":
        return _FLAT
    return short if entry.style == "short" else None


def _a1111(entry: Entry, keys: Keys) -> str | None:
    """extensions-builtin/Lora/networks.py: names up to the first dot, converted to the original checkpoint's."""
    part, path = entry.place or ("", "")
    if reason := _not_kohyas(entry, "lora_te_ is a text encoder of Stable Diffusion 1.5 to it"):
        return reason
    if path == "text_projection":
        return _NO_PROJECTION
    if entry.role in (ALPHA, DORA) and ".lora_A.weight" in keys.endings[entry.name]:
        return f"it forgets {entry.role} where the matrices are called lora_A and lora_B"
    if entry.style == "diffusers" and path == "up_blocks.0.upsamplers.0.conv":
        return (
            "it looks for this upsampler in the wrong place (output_blocks_2_1 instead of output_blocks_2_2)"
        )
    if entry.style == "diffusers" and path.startswith(("add_embedding", "conv_norm_out")):
        return "it can't convert diffusers' name of this module"
    if part == "text_encoder_2" and ".self_attn." in path and not _whole_attention(path, keys):
        return "it applies the second text encoder's attention only if q, k, v and out are all there"
    return None


def _whole_attention(path: str, keys: Keys) -> bool:
    layer = path.rpartition(".")[0]
    return all(f"{layer}.{name}_proj" in keys.paths["text_encoder_2"] for name in ("q", "k", "v", "out"))


def _a1111_refusal(keys: Keys, dropped: int) -> str | None:
    bare = [entry.name for entry in keys.entries if entry.kohya and entry.name.endswith("_to_out")]
    if bare:
        return f"{bare[0]} lacks the 0 of to_out_0, at which loading stops"
    if any(entry.key.startswith("diffusion_model.") for entry in keys.entries):
        return "it takes diffusion_model for a module, at which loading stops; convert the file: lora convert --to kohya"
    for entry in keys.entries:
        if entry.kohya and entry.exists and not _complete(keys.roles[entry.name]) and not _a1111(entry, keys):
            return f"{entry.name} holds no whole network, at which loading stops"
    return None


def _complete(roles: set[str]) -> bool:
    """Whether one of A1111's module types takes it."""
    if roles & {"w_norm", "oft_blocks", "oft_diag", "on_input", "diff"} or {DOWN, UP} <= roles:
        return True
    if {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} <= roles:
        return True
    return all(name in roles or {f"{name}_a", f"{name}_b"} <= roles for name in ("lokr_w1", "lokr_w2"))


def _invokeai(entry: Entry, keys: Keys) -> str | None:
    if entry.style == "flat":
        return _FLAT
    return None


def _invokeai_refusal(keys: Keys, dropped: int) -> str | None:
    known = (
        "lora_unet_",
        "lora_te1_",
        "lora_te2_",
        BUNDLED,
    )  # model_loaders/lora.py takes the last out before it looks
    odd = [entry.key for entry in keys.entries if not entry.key.startswith(known)]
    if odd:
        return f"{odd[0]} starts with none of lora_unet_, lora_te1_ and lora_te2_; convert the file: lora convert --to kohya"
    if {"original", "diffusers"} <= keys.styles:
        return "it mixes the original checkpoint's block names with diffusers'; convert the file: lora convert --to kohya"
    if keys.true_sdxl and not _looks_like_sdxl(keys):
        return "nothing in it shows that it is for SDXL (cross-attention, both text encoders, or a third transformer block)"
    return _without_partner(keys)


def _looks_like_sdxl(keys: Keys) -> bool:
    parts = {entry.place[0] for entry in keys.entries if entry.place}
    paths = [entry.place[1] for entry in keys.entries if entry.place]
    cross = any(re.search(r"attn2\.to_[kv]$", path) for path in paths)
    deep = any(
        int(number) >= 2 for path in paths for number in re.findall(r"transformer_blocks\.(\d+)", path)
    )
    return cross or deep or "text_encoder_2" in parts


@functools.lru_cache(maxsize=1)  # asked again for every key of a file
def _sd_module(keys: Keys) -> str:
    """The --network_module that reads most of a file: sd-scripts' own, or the package lycoris."""
    forms = {_form_of(found) for found in keys.roles.values()} - {"nothing"}
    if forms <= {"lora"}:
        return "networks.lora"
    if forms == {"loha"} or (forms == {"lokr"} and _lokr_factor(keys) is not None):
        return f"networks.{forms.pop()}"
    lycoris = "lycoris" in keys.metadata.get("ss_network_module", "") or not any(
        {DOWN, UP} & found for found in keys.roles.values()
    )
    return "lycoris.kohya" if lycoris else "networks.lora"


def _form_of(roles: set[str]) -> str:
    """`lora`, `loha` or `lokr` as sd-scripts' own modules know them, `other`, or `nothing` to apply."""
    marks = {role.partition("_")[0] for role in roles - {ALPHA}}
    if not roles - {ALPHA, DORA}:
        return "nothing"
    if marks == {"hada"}:
        return "loha"
    if marks == {"lokr"}:
        return "lokr" if "lokr_w1" in roles and "lokr_t2" not in roles else "other"
    return "lora" if roles <= {DOWN, UP, ALPHA} else "other"


def _lokr_factor(keys: Keys) -> int | None:
    """What --network_args must say as factor to make first matrices of the file's shapes; -1 for as nearly alike as can be."""
    firsts = {
        key.removesuffix(".lokr_w1"): shape for key, shape in keys.shapes.items() if key.endswith(".lokr_w1")
    }
    sides: set[tuple[int, int]] = set()  # (of the first matrix, of both)
    for name, first in firsts.items():
        second = keys.shapes.get(f"{name}.lokr_w2") or (*keys.shapes.get(f"{name}.lokr_w2_a", ())[:1], 0)
        sides.add((first[0], first[0] * second[0]))
        if f"{name}.lokr_w2" in keys.shapes:
            sides.add((first[1], first[1] * second[1]))
    for factor in (-1, max((first for first, _ in sides), default=-1)):
        if all(whole and split(whole, max(factor, 0))[0] == first for first, whole in sides):
            return factor
    return None


def _sd_needs(keys: Keys) -> str:
    module = _sd_module(keys)
    factor = _lokr_factor(keys) if module == "networks.lokr" else -1
    return f"--network_module {module}" + (f" --network_args factor={factor}" if factor != -1 else "")


def _sd_scripts(entry: Entry, keys: Keys) -> str | None:
    path = entry.place[1] if entry.place else ""
    if reason := _not_kohyas(entry, "it calls the first text encoder lora_te1_"):
        return reason
    module, roles = _sd_module(keys), keys.roles[entry.name]
    if entry.style == "diffusers" and not (
        module == "networks.lora" and re.search("(down|up)_blocks", " ".join(keys.roles))
    ):
        return "it does not know diffusers' block names here; convert the file: lora convert --to kohya"
    if module == "lycoris.kohya":
        return None
    if path == "text_projection" or re.match(r"(time_embedding|add_embedding|conv_in|conv_out)", path):
        return f"it is not among the modules that {module} adapts"
    if module != "networks.lora":
        return None
    if entry.role == DORA:
        return "dora_scale is ignored by networks.lora, which applies the rest as a plain LoRA"
    if entry.role not in (DOWN, UP, ALPHA):
        return f"networks.lora does not read {entry.role}"
    if ".lora_down.weight" not in keys.endings[entry.name]:
        return (
            "networks.lora looks for lora_down.weight; convert the file: lora convert --to kohya"
            if DOWN in roles
            else "it has no down matrix"
        )
    return None


def _sd_scripts_refusal(keys: Keys, dropped: int) -> str | None:
    module = _sd_module(keys)
    if keys.misfit:
        return f"{keys.misfit} has not the shapes of the base, at which loading stops"
    for name, roles in keys.roles.items():
        if module == "networks.lora" and {DOWN, UP, "mid"} <= roles:
            return f"{name} has Tucker's form, at which networks.lora stops"
        if module != "networks.lora" and ALPHA not in roles and _form_of(roles) in ("loha", "lokr"):
            return f"{name} has no alpha, at which loading stops"
        if module == "lycoris.kohya" and keys.shapes.get(f"{name}.dora_scale", (0,))[0] == 1:
            return (
                "lycoris.kohya 4 makes dora_scale for each output, and here it is for each input; bake the file, or go on with it "
                "by the --network_args algo=lora dora_wd=True wd_on_output=False"
            )
    return None


def _diffusers(entry: Entry, keys: Keys) -> str | None:
    if not entry.key.startswith(("lora_", "unet.", "text_encoder.", "text_encoder_2.")):
        return "it expects unet. before the names of the UNet's modules; convert the file: lora convert --to diffusers"
    if entry.role == DORA and entry.kohya:
        return "dora_scale is filtered out, and the rest applied as a plain LoRA"
    if entry.style == "original" and "diffusers" in keys.styles:
        return "it also holds diffusers' block names, beside which the original ones are dropped"
    if (
        entry.kohya
        and entry.place
        and ".self_attn." in entry.place[1]
        and keys.forms[entry.place[0]] == "feed-forward"
    ):
        return "a text encoder's q, k and v are dropped where it has no out_proj"
    if entry.style == "diffusers" and entry.place and entry.place[1].startswith("add_embedding"):
        return "it can't convert diffusers' own name of this module back from underscores"
    return None


def _diffusers_refusal(keys: Keys, dropped: int) -> str | None:
    if all(
        entry.key.startswith(("lora_te_", "lora_te1_", "lora_te2_", "lora_unet_")) for entry in keys.entries
    ):
        if kept := [entry.key for entry in keys.entries if entry.role not in (DOWN, UP, ALPHA, DORA)]:
            return f"{kept[0]} has no place in its conversion of kohya's names, which takes LoRA and nothing else"
        if any(entry.role == ALPHA for entry in keys.entries) and "lora_adapter_metadata" in keys.metadata:
            return "both .alpha and the header's lora_adapter_metadata say the scale, which it does not allow"
    elif odd := [entry.key for entry in keys.entries if "lora" not in entry.key and entry.is_bundled]:
        return f"{odd[0]} does not have lora in its name, which it demands of every key; lora convert leaves it out"
    elif odd := [entry.key for entry in keys.entries if "lora" not in entry.key]:
        return f"{odd[0]} does not have lora in its name, which it demands of every key"
    second = {entry.style for entry in keys.entries if entry.place and entry.place[0] == "text_encoder_2"}
    if second and second <= {"flat", "dotted-flat"}:
        return "no module of its second text encoder has text_model in its name, at which loading stops"
    for part in ("text_encoder", "text_encoder_2"):
        if keys.forms[part] == "unknown":
            return f"its {part} has no out_proj module, without which its form is not recognised"
    return _without_partner(keys)


def _without_partner(keys: Keys) -> str | None:
    """A KeyError in every loader."""
    for name, found in keys.roles.items():
        if (DOWN in found) != (UP in found):
            return f"{name} has no {'up' if DOWN in found else 'down'} matrix, at which loading stops"
    return None


TOOLS = (
    Tool("A1111 1.10", _a1111, _a1111_refusal, embeddings=None),
    Tool("Forge", _forge, _forge_refusal),
    Tool("ComfyUI 0.3", _comfyui, _comfyui_refusal),
    Tool("InvokeAI 6.14", _invokeai, _invokeai_refusal),
    Tool("sd-scripts", _sd_scripts, _sd_scripts_refusal, _sd_needs),
    Tool("diffusers 0.42", _diffusers, _diffusers_refusal),
)
