"""Rules of sd-scripts and diffusers; see `tools`."""

from __future__ import annotations

import functools
import re

from trainer.adapter.roles import split
from trainer.lora_file.compatibility.keys import Entry, Keys
from trainer.lora_file.compatibility.shared_rules import half_module, only_kohya
from trainer.lora_file.tensor_names import ALPHA, DORA, DOWN, UP, suffixes_of

_PEFT_SUFFIXES = tuple(
    suffix
    for role in (DOWN, UP)
    for suffix in suffixes_of(role)
    if not suffix.startswith((".lora_d", ".lora_u"))
)


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


def sd_needs(keys: Keys) -> str:
    """The options of sd-scripts that select the network of a file."""
    module = _sd_module(keys)
    factor = _lokr_factor(keys) if module == "networks.lokr" else -1
    return f"--network_module {module}" + (f" --network_args factor={factor}" if factor != -1 else "")


def sd_scripts(entry: Entry, keys: Keys) -> str | None:
    """The reason for which sd-scripts ignores a key, or None."""
    path = entry.place[1] if entry.place else ""
    if reason := only_kohya(entry, "its name for text encoder 1 is lora_te1_"):
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


def sd_scripts_refusal(keys: Keys, dropped: int) -> str | None:
    """The reason for which sd-scripts refuses the file, or None."""
    module = _sd_module(keys)
    if keys.misfit:
        return f"loading stops with an error, because {keys.misfit} does not have the shapes of the base"
    for name, roles in keys.roles.items():
        if module == "networks.lora" and {DOWN, UP, "mid"} <= roles:
            return f"networks.lora stops with an error, because {name} has a Tucker decomposition"
        if module != "networks.lora" and ALPHA not in roles and _sd_network(roles) in ("loha", "lokr"):
            return f"loading stops with an error, because {name} has no alpha"
        length = keys.shapes.get(f"{name}.dora_scale", (0, 0))
        if module == "lycoris.kohya" and len(length) == 1:
            return f"loading stops with an error, because the dora_scale of {name} has one dimension"
        if module == "lycoris.kohya" and length[0] == 1:
            return (
                "lycoris.kohya 4 expects a dora_scale for each output, and the file has one for each "
                "input; bake the file, or continue its training with --network_args algo=lora dora_wd=True "
                "wd_on_output=False"
            )
    return None


def diffusers(entry: Entry, keys: Keys) -> str | None:
    """The reason for which diffusers ignores a key, or None."""
    if entry.style == "nested" or not entry.key.startswith(
        ("lora_", "unet.", "text_encoder.", "text_encoder_2.")
    ):
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


def diffusers_refusal(keys: Keys, dropped: int) -> str | None:
    """The reason for which diffusers refuses the file, or None."""
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
    return half_module(keys)


def _kohya_in_diffusers(keys: Keys) -> str | None:
    """The reason for which diffusers can't convert a file with kohya's names."""
    if others := [entry.key for entry in keys.entries if entry.role not in (DOWN, UP, ALPHA, DORA)]:
        return f"its conversion of kohya's names reads only LoRA, and not {others[0]}"
    if others := [entry.key for entry in keys.entries if entry.suffix in _PEFT_SUFFIXES]:
        return (
            f"its conversion of kohya's names reads only lora_down and lora_up, and not {others[0]}; convert "
            "the file: lora convert --to kohya"
        )
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
