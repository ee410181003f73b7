"""Module paths of diffusers and transformers to the names that other tools know, and back.

unet            down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q
                lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q       original (SGM) numbering
text_encoder    encoder.layers.0.self_attn.q_proj          transformers 5 leaves `text_model.` out of its paths;
                lora_te1_text_model_encoder_layers_0_self_attn_q_proj            every other tool expects it
"""

from __future__ import annotations

from trainer.sdxl.unet_names import sgm_path

PREFIX = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}

_CLIP = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


def kohya_name(part: str, path: str) -> str:
    """`lora_unet_...`, `lora_te1_text_model_...` or `lora_te2_text_model_...`."""
    if part == "unet":
        path = sgm_path(path)
    elif not path.startswith("text_model."):
        path = f"text_model.{path}"
    return PREFIX[part] + path.replace(".", "_")


def accepted_names(part: str, path: str) -> list[str]:
    """Every spelling of a module that files in the wild use, ours first."""
    path = path if part == "unet" else path.removeprefix("text_model.")
    dotted = path if part == "unet" else f"text_model.{path}"
    names = [kohya_name(part, path), PREFIX[part] + dotted.replace(".", "_"), f"{part}.{dotted}"]
    if dotted != path:
        names += [f"{part}.{path}", PREFIX[part] + path.replace(".", "_")]
    # ComfyUI's extracted files
    return [
        *names,
        f"diffusion_model.{sgm_path(path)}"
        if part == "unet"
        else f"text_encoders.{_CLIP[part]}.transformer.{dotted}",
    ]


def diffusers_name(part: str, path: str) -> str:
    """What `load_lora_weights` expects: `unet.<path>` and `text_encoder.text_model.<path>`."""
    return accepted_names(part, path)[2]
