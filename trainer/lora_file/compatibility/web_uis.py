"""Rules of the web interfaces: ComfyUI, Forge, A1111 and InvokeAI; see `tools`."""

from __future__ import annotations

import re

from trainer.headers.lora import BUNDLED
from trainer.lora_file.compatibility.keys import Entry, Keys
from trainer.lora_file.compatibility.shared_rules import DOTTED, FLAT, LYCORIS, half_module, only_kohya
from trainer.lora_file.compatibility.wrong_results import BAKE, flat_lengths, tucker_lokrs
from trainer.lora_file.tensor_names import ALPHA, DORA, DOWN, GLORA, LOHA, UP

FORGE_LIMIT = 12  # unmatched keys; with more of them Forge applies nothing
# Roles by which InvokeAI recognises a network (backend/patches/layers/utils.py).
_INVOKEAI = {DOWN, UP, DORA, *LOHA, "lokr_w1", "lokr_w1_a", "diff", "on_input", "w_norm"}
_NO_PROJECTION = "text_projection is not among its LoRA modules"


def comfyui(entry: Entry, keys: Keys) -> str | None:
    """The reason for which ComfyUI ignores a key, or None."""
    if entry.role == DOWN and UP not in keys.roles[entry.name]:
        return "its up matrix is missing"
    if entry.name in tucker_lokrs(keys):
        return "its product of a LoKr with a Tucker core fails, and the layer stays as it is; " + BAKE
    if entry.name in flat_lengths(keys):
        return "its division of a dora_scale of one dimension fails, and the layer stays as it is; " + BAKE
    if reason := _unread_in_comfyui(entry, keys):
        return reason
    return None if entry.style == "comfyui" else _unknown_to_comfyui(entry)


def _unknown_to_comfyui(entry: Entry) -> str | None:
    """The reason for which ComfyUI does not know a module name, or None."""
    path = entry.place[1] if entry.place else ""
    if entry.style == "lycoris" and entry.name != f"lycoris_{path.replace('.', '_')}":
        return (
            "of LyCORIS' wrapper it knows only the UNet, with block names of diffusers; convert the file: "
            "lora convert --to kohya"
        )
    # Its table of dotted names has attn1.processor.to_q; the names of other layers are those of PEFT.
    is_attention = entry.style == "dotted" and ".to_" in entry.name
    if entry.style == "bare" or is_attention or "base_model.model." in entry.key:
        return DOTTED
    if entry.place and entry.place[0] != "unet":
        if entry.style in ("flat", "dotted-flat"):
            return FLAT
        if path == "text_projection" and (entry.style != "text" or "text_model" in entry.name):
            return _NO_PROJECTION
        if not re.search(r"self_attn\.[qkv]_proj|self_attn\.out_proj|mlp\.fc[12]|text_projection", path):
            return "only attention and feed-forward modules of text encoders are known"
    return None


def _unread_in_comfyui(entry: Entry, keys: Keys) -> str | None:
    """The reason to ignore a tensor of a role that ComfyUI does not read, whatever the module's name is."""
    if entry.role in ("oft_diag", "oft_R", "scale_weight", "on_input", "weight", "scalar"):
        return f"{entry.role} is not read"
    if entry.role == "rescale" and "oft_blocks" not in keys.roles[entry.name]:
        return "rescale is read only beside oft_blocks"
    if entry.role == "b_norm" and "w_norm" not in keys.roles[entry.name]:
        return "b_norm is read only beside w_norm"
    if entry.suffix.startswith(".lora_magnitude_vector"):
        return "PEFT's magnitude vectors are not read"
    return None


def comfyui_refusal(keys: Keys, dropped: int) -> str | None:
    """The reason for which ComfyUI refuses the file, or None."""
    for name, roles in keys.roles.items():
        if UP in roles and DOWN not in roles:
            return f"loading stops with an error, because {name} has no down matrix"
    return None


def forge(entry: Entry, keys: Keys) -> str | None:
    """Forge has a copy of an older loader of ComfyUI, and stops where ComfyUI leaves a layer as it is."""
    if entry.style == "lycoris":
        return LYCORIS
    if entry.role in ("oft_blocks", "rescale"):
        return f"{entry.role} is not read"
    if entry.style == "comfyui" and entry.name.startswith("text_encoders."):
        return "it knows ComfyUI's names only for the UNet; convert the file: lora convert --to kohya"
    if ".default." in entry.suffix:
        return "it does not read PEFT's adapter names; convert the file: lora convert --to kohya"
    return comfyui(entry, keys)


def forge_refusal(keys: Keys, dropped: int) -> str | None:
    """The reason for which Forge refuses the file, or None."""
    # Its limit counts names. Wrong shapes and failing products are found only when images are generated.
    failing = {*tucker_lokrs(keys), *flat_lengths(keys)}
    unmatched = dropped - sum(
        entry.exists and (not entry.fits or entry.name in failing) for entry in keys.entries
    )
    if unmatched > FORGE_LIMIT:
        return f"{unmatched} keys match nothing, more than {FORGE_LIMIT}, so it applies none of the file"
    if keys.misfit:
        return (
            f"generating images stops with an error, because {keys.misfit} does not have the shapes of the "
            "base"
        )
    if failing:
        return f"generating images stops with an error at {min(failing)}; {BAKE}"
    return comfyui_refusal(keys, dropped)


def a1111(entry: Entry, keys: Keys) -> str | None:
    """extensions-builtin/Lora/networks.py converts the name before the first dot to an original one."""
    part, path = entry.place or ("", "")
    if reason := only_kohya(entry, "it reads lora_te_ as the text encoder of Stable Diffusion 1.5"):
        return reason
    if path == "text_projection":
        return _NO_PROJECTION
    if entry.name in flat_lengths(keys):
        return "its division of a dora_scale of one dimension fails, and the layer stays as it is; " + BAKE
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


def a1111_refusal(keys: Keys, dropped: int) -> str | None:
    """The reason for which A1111 refuses the file, or None."""
    bare = [entry.name for entry in keys.entries if entry.is_kohya and entry.name.endswith("_to_out")]
    if bare:
        return f"loading stops with an error, because {bare[0]} has no 0 as in to_out_0"
    if any(entry.key.startswith("diffusion_model.") for entry in keys.entries):
        return (
            "loading stops with an error, because it reads diffusion_model as a module name; convert the "
            "file: lora convert --to kohya"
        )
    for entry in keys.entries:
        is_read = entry.is_kohya and entry.exists and not a1111(entry, keys)
        if is_read and not _is_a1111_network(keys.roles[entry.name]):
            return f"loading stops with an error, because {entry.name} is not a complete network"
    return None


def _is_a1111_network(roles: set[str]) -> bool:
    """True if one of A1111's module types accepts a module of these roles."""
    if roles & {"w_norm", "oft_blocks", "oft_diag", "on_input", "diff"} or {DOWN, UP} <= roles:
        return True
    if set(LOHA) <= roles or set(GLORA) <= roles:
        return True
    return all(name in roles or {f"{name}_a", f"{name}_b"} <= roles for name in ("lokr_w1", "lokr_w2"))


def invokeai(entry: Entry, keys: Keys) -> str | None:
    """The reason for which InvokeAI ignores a key, or None."""
    if entry.style == "flat":
        return FLAT
    return None


def invokeai_refusal(keys: Keys, dropped: int) -> str | None:
    """The reason for which InvokeAI refuses the file, or None."""
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
    if unknown := [name for name in keys.places if not keys.roles[name] & _INVOKEAI]:
        return f"it knows no network of the form of {unknown[0]}; {BAKE}"
    for name, roles in keys.roles.items():
        if DORA in roles and not {DOWN, UP} <= roles:
            return f"it knows DoRA only of a LoRA, and not the network of {name}; {BAKE}"
    if flat := flat_lengths(keys):
        return f"generating images stops with an error: the dora_scale of {min(flat)} has one dimension"
    return half_module(keys)


def _looks_like_sdxl(keys: Keys) -> bool:
    """True if the file has a module that InvokeAI recognises SDXL by."""
    parts = {entry.place[0] for entry in keys.entries if entry.place}
    paths = [entry.place[1] for entry in keys.entries if entry.place]
    cross = any(re.search(r"attn2\.to_[kv]$", path) for path in paths)
    deep = any(
        int(number) >= 2 for path in paths for number in re.findall(r"transformer_blocks\.(\d+)", path)
    )
    return cross or deep or "text_encoder_2" in parts
