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

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

from trainer.adapter.lycoris import split
from trainer.headers.lora import BUNDLED
from trainer.lora_file.compatibility.keys import Drop, Entry, Keys, Verdict
from trainer.lora_file.tensor_names import ALPHA, DORA, DOWN, LOHA, UP

FORGE_LIMIT = 12  # unmatched keys; with more of them Forge applies nothing


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


_NO_PROJECTION = "text_projection is not among its LoRA modules"
_DOTTED = "it knows no PEFT names (unet.….lora_A); convert the file: lora convert --to kohya"
_FLAT = (
    "text_model is missing in the name of the text encoder's module; convert the file: lora convert --to "
    "kohya"
)


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
    # Its table of dotted names has attn1.processor.to_q; the names of other layers are those of PEFT.
    if (entry.style == "dotted" and ".to_" in entry.name) or entry.key.startswith("base_model."):
        return _DOTTED
    if entry.role in ("rescale", "scale_weight", "on_input", "weight", "scalar"):
        return f"{entry.role} is not read"
    if entry.suffix.startswith(".lora_magnitude_vector"):
        return "PEFT's magnitude vectors are not read"
    return None


def _comfyui_refusal(keys: Keys, dropped: int) -> str | None:
    for name, roles in keys.roles.items():
        if UP in roles and DOWN not in roles:
            return f"loading stops with an error, because {name} has no down matrix"
    return None


def _forge(entry: Entry, keys: Keys) -> str | None:
    """Forge has a copy of an older loader of ComfyUI."""
    if entry.style == "comfyui" and entry.name.startswith("text_encoders."):
        return "it knows ComfyUI's names only for the UNet; convert the file: lora convert --to kohya"
    if ".default." in entry.suffix:
        return "it does not read PEFT's adapter names; convert the file: lora convert --to kohya"
    return _comfyui(entry, keys)


def _forge_refusal(keys: Keys, dropped: int) -> str | None:
    # Its limit counts names. Wrong shapes are found only when images are generated.
    unmatched = dropped - sum(entry.exists and not entry.fits for entry in keys.entries)
    if unmatched > FORGE_LIMIT:
        return f"{unmatched} keys match nothing, more than {FORGE_LIMIT}, so it applies none of the file"
    if keys.misfit:
        return (
            f"generating images stops with an error, because {keys.misfit} does not have the shapes of the "
            "base"
        )
    return _comfyui_refusal(keys, dropped)


def _only_kohya(entry: Entry, short: str) -> str | None:
    """The reason to ignore a key, for a tool that knows only kohya's names.

    Args:
        short: the reason to ignore names that begin with `lora_te_`.
    """
    if entry.style in ("dotted", "dotted-flat", "processor"):
        return _DOTTED
    if entry.style == "comfyui":
        return "it knows no names of ComfyUI (diffusion_model.…); convert the file: lora convert --to kohya"
    if entry.style == "flat":
        return _FLAT
    return short if entry.style == "short" else None


def _a1111(entry: Entry, keys: Keys) -> str | None:
    """extensions-builtin/Lora/networks.py converts the name before the first dot to an original one."""
    part, path = entry.place or ("", "")
    if reason := _only_kohya(entry, "it reads lora_te_ as the text encoder of Stable Diffusion 1.5"):
        return reason
    if path == "text_projection":
        return _NO_PROJECTION
    if entry.role in (ALPHA, DORA) and ".lora_A.weight" in keys.suffixes[entry.name]:
        return f"it ignores {entry.role} beside matrices that are named lora_A and lora_B"
    if entry.style == "diffusers" and path == "up_blocks.0.upsamplers.0.conv":
        return (
            "it looks for this upsampler in the wrong place (output_blocks_2_1 instead of output_blocks_2_2)"
        )
    if entry.style == "diffusers" and path.startswith(("add_embedding", "conv_norm_out")):
        return "it can't convert diffusers' name of this module"
    if part == "text_encoder_2" and ".self_attn." in path and not _has_whole_attention(path, keys):
        return "it applies the attention of text encoder 2 only if the file has q, k, v and out of that layer"
    return None


def _has_whole_attention(path: str, keys: Keys) -> bool:
    """True if the file has q, k, v and out of a layer; A1111's text encoder 2 joins q, k and v."""
    layer = path.rpartition(".")[0]
    return all(f"{layer}.{name}_proj" in keys.paths["text_encoder_2"] for name in ("q", "k", "v", "out"))


def _a1111_refusal(keys: Keys, dropped: int) -> str | None:
    bare = [entry.name for entry in keys.entries if entry.is_kohya and entry.name.endswith("_to_out")]
    if bare:
        return f"loading stops with an error, because {bare[0]} has no 0 as in to_out_0"
    if any(entry.key.startswith("diffusion_model.") for entry in keys.entries):
        return (
            "loading stops with an error, because it reads diffusion_model as a module name; convert the "
            "file: lora convert --to kohya"
        )
    for entry in keys.entries:
        is_read = entry.is_kohya and entry.exists and not _a1111(entry, keys)
        if is_read and not _is_a1111_network(keys.roles[entry.name]):
            return f"loading stops with an error, because {entry.name} is not a complete network"
    return None


def _is_a1111_network(roles: set[str]) -> bool:
    """True if one of A1111's module types accepts a module of these roles."""
    if roles & {"w_norm", "oft_blocks", "oft_diag", "on_input", "diff"} or {DOWN, UP} <= roles:
        return True
    if set(LOHA) <= roles:
        return True
    return all(name in roles or {f"{name}_a", f"{name}_b"} <= roles for name in ("lokr_w1", "lokr_w2"))


def _invokeai(entry: Entry, keys: Keys) -> str | None:
    if entry.style == "flat":
        return _FLAT
    return None


def _invokeai_refusal(keys: Keys, dropped: int) -> str | None:
    # model_loaders/lora.py removes embeddings from the file before it checks the names.
    known = ("lora_unet_", "lora_te1_", "lora_te2_", BUNDLED)
    odd = [entry.key for entry in keys.entries if not entry.key.startswith(known)]
    if odd:
        return (
            f"{odd[0]} begins with none of lora_unet_, lora_te1_ and lora_te2_; convert the file: "
            "lora convert --to kohya"
        )
    if {"original", "diffusers"} <= keys.styles:
        return (
            "the file mixes block names of the original checkpoint and of diffusers; convert it: "
            "lora convert --to kohya"
        )
    if keys.true_sdxl and not _looks_like_sdxl(keys):
        return (
            "nothing in the file shows that it is for SDXL (cross-attention, text encoder 2, or a third "
            "transformer block)"
        )
    return _half_module(keys)


def _looks_like_sdxl(keys: Keys) -> bool:
    """True if the file has a module that InvokeAI recognises SDXL by."""
    parts = {entry.place[0] for entry in keys.entries if entry.place}
    paths = [entry.place[1] for entry in keys.entries if entry.place]
    cross = any(re.search(r"attn2\.to_[kv]$", path) for path in paths)
    deep = any(
        int(number) >= 2 for path in paths for number in re.findall(r"transformer_blocks\.(\d+)", path)
    )
    return cross or deep or "text_encoder_2" in parts


@functools.lru_cache(maxsize=1)  # called for every key of a file
def _sd_module(keys: Keys) -> str:
    """The --network_module that reads most of a file: one of sd-scripts, or the package lycoris."""
    networks = {_sd_network(roles) for roles in keys.roles.values()} - {"nothing"}
    if networks <= {"lora"}:
        return "networks.lora"
    if networks == {"loha"} or (networks == {"lokr"} and _lokr_factor(keys) is not None):
        return f"networks.{networks.pop()}"
    has_lora = any({DOWN, UP} & roles for roles in keys.roles.values())
    is_lycoris = "lycoris" in keys.metadata.get("ss_network_module", "") or not has_lora
    return "lycoris.kohya" if is_lycoris else "networks.lora"


def _sd_network(roles: set[str]) -> str:
    """`lora`, `loha` or `lokr` as sd-scripts reads them, `other`, or `nothing` without matrices."""
    prefixes = {role.partition("_")[0] for role in roles - {ALPHA}}
    if not roles - {ALPHA, DORA}:
        return "nothing"
    if prefixes == {"hada"}:
        return "loha"
    if prefixes == {"lokr"}:
        return "lokr" if "lokr_w1" in roles and "lokr_t2" not in roles else "other"
    return "lora" if roles <= {DOWN, UP, ALPHA} else "other"


def _lokr_factor(keys: Keys) -> int | None:
    """The factor for --network_args with which sd-scripts makes first matrices of the file's shapes.

    -1 stands for factors as nearly equal as possible; None means that no factor makes them.
    """
    sides: set[tuple[int, int]] = set()  # (rows or columns of the first matrix, of the product)
    for key, first in keys.shapes.items():
        if not key.endswith(".lokr_w1"):
            continue
        name = key.removesuffix(".lokr_w1")
        second = keys.shapes.get(f"{name}.lokr_w2") or (*keys.shapes.get(f"{name}.lokr_w2_a", ())[:1], 0)
        sides.add((first[0], first[0] * second[0]))
        if f"{name}.lokr_w2" in keys.shapes:
            sides.add((first[1], first[1] * second[1]))
    for factor in (-1, max((first for first, _ in sides), default=-1)):
        if all(whole and split(whole, max(factor, 0))[0] == first for first, whole in sides):
            return factor
    return None


def _sd_needs(keys: Keys) -> str:
    """The options of sd-scripts that select the network of a file."""
    module = _sd_module(keys)
    factor = _lokr_factor(keys) if module == "networks.lokr" else -1
    return f"--network_module {module}" + (f" --network_args factor={factor}" if factor != -1 else "")


def _sd_scripts(entry: Entry, keys: Keys) -> str | None:
    path = entry.place[1] if entry.place else ""
    if reason := _only_kohya(entry, "its name for text encoder 1 is lora_te1_"):
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
    if ".lora_down.weight" not in keys.suffixes[entry.name]:
        return (
            "networks.lora looks for lora_down.weight; convert the file: lora convert --to kohya"
            if DOWN in roles
            else "it has no down matrix"
        )
    return None


def _sd_scripts_refusal(keys: Keys, dropped: int) -> str | None:
    module = _sd_module(keys)
    if keys.misfit:
        return f"loading stops with an error, because {keys.misfit} does not have the shapes of the base"
    for name, roles in keys.roles.items():
        if module == "networks.lora" and {DOWN, UP, "mid"} <= roles:
            return f"networks.lora stops with an error, because {name} has a Tucker decomposition"
        if module != "networks.lora" and ALPHA not in roles and _sd_network(roles) in ("loha", "lokr"):
            return f"loading stops with an error, because {name} has no alpha"
        if module == "lycoris.kohya" and keys.shapes.get(f"{name}.dora_scale", (0,))[0] == 1:
            return (
                "lycoris.kohya 4 expects a dora_scale for each output, and the file has one for each "
                "input; bake the file, or continue its training with --network_args algo=lora dora_wd=True "
                "wd_on_output=False"
            )
    return None


def _diffusers(entry: Entry, keys: Keys) -> str | None:
    if not entry.key.startswith(("lora_", "unet.", "text_encoder.", "text_encoder_2.")):
        return (
            "it expects unet. before the names of the UNet's modules; convert the file: lora convert --to "
            "diffusers"
        )
    if entry.role == DORA and entry.is_kohya:
        return "it ignores dora_scale and applies the rest as a plain LoRA"
    if entry.style == "original" and "diffusers" in keys.styles:
        return "it ignores block names of the original checkpoint where the file also has those of diffusers"
    if (
        entry.is_kohya
        and entry.place
        and ".self_attn." in entry.place[1]
        and keys.text_encoder_forms[entry.place[0]] == "feed-forward"
    ):
        return "it ignores q, k and v of a text encoder that has no out_proj"
    if entry.style == "diffusers" and entry.place and entry.place[1].startswith("add_embedding"):
        return "it can't convert diffusers' own name of this module back from underscores"
    return None


def _diffusers_refusal(keys: Keys, dropped: int) -> str | None:
    kohya = ("lora_te_", "lora_te1_", "lora_te2_", "lora_unet_")
    is_kohya = all(entry.key.startswith(kohya) for entry in keys.entries)
    if refusal := _kohya_in_diffusers(keys) if is_kohya else _key_without_lora(keys):
        return refusal
    second = {entry.style for entry in keys.entries if entry.place and entry.place[0] == "text_encoder_2"}
    if second and second <= {"flat", "dotted-flat"}:
        return "loading stops with an error, because no module of text encoder 2 has text_model in its name"
    for part in ("text_encoder", "text_encoder_2"):
        if keys.text_encoder_forms[part] == "unknown":
            return f"it does not recognise the names of {part}, because the file has no out_proj module of it"
    return _half_module(keys)


def _kohya_in_diffusers(keys: Keys) -> str | None:
    """The reason for which diffusers can't convert a file with kohya's names."""
    if others := [entry.key for entry in keys.entries if entry.role not in (DOWN, UP, ALPHA, DORA)]:
        return f"its conversion of kohya's names reads only LoRA, and not {others[0]}"
    if any(entry.role == ALPHA for entry in keys.entries) and "lora_adapter_metadata" in keys.metadata:
        return "it does not allow .alpha together with lora_adapter_metadata in the header"
    return None


def _key_without_lora(keys: Keys) -> str | None:
    """The reason for which diffusers refuses a file with other names than kohya's."""
    others = [entry for entry in keys.entries if "lora" not in entry.key]
    if bundled := [entry.key for entry in others if entry.is_bundled]:
        return (
            f"it requires lora in the name of every key, and {bundled[0]} has none; lora convert leaves it "
            "out"
        )
    return f"it requires lora in the name of every key, and {others[0].key} has none" if others else None


def _half_module(keys: Keys) -> str | None:
    """The reason for loaders that stop with a KeyError at a module with one of its two matrices."""
    for name, roles in keys.roles.items():
        if (DOWN in roles) != (UP in roles):
            missing = UP if DOWN in roles else DOWN
            return f"loading stops with an error, because {name} has no {missing} matrix"
    return None


TOOLS = (
    Tool("A1111 1.10", _a1111, _a1111_refusal, embeddings=None),
    Tool("Forge", _forge, _forge_refusal),
    Tool("ComfyUI 0.3", _comfyui, _comfyui_refusal),
    Tool("InvokeAI 6.14", _invokeai, _invokeai_refusal),
    Tool("sd-scripts", _sd_scripts, _sd_scripts_refusal, _sd_needs),
    Tool("diffusers 0.42", _diffusers, _diffusers_refusal),
)
