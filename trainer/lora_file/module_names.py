"""Names of modules in LoRA files, in the spellings of all tools, by module paths of diffusers.

unet            down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q      path
                lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q      kohya: original blocks
                unet.input_blocks.4.1.transformer_blocks.0.attn1.to_q           OneTrainer's OMI
                input_blocks.4.1.transformer_blocks.0.attn1.to_q                OneTrainer's ORIGINAL
                lycoris_down_blocks_1_attentions_0_..._attn1_to_q               LyCORIS around a UNet
text_encoder    encoder.layers.0.self_attn.q_proj                               path, as transformers 5 has it
                lora_te1_text_model_encoder_layers_0_self_attn_q_proj           kohya: with `text_model`
                clip_l.text_model.encoder.layers.0.self_attn.q_proj             OneTrainer's OMI
"""

from __future__ import annotations

from trainer.sdxl.unet_names import sgm_path

PREFIX = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}

_CLIP = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


def kohya_name(part: str, path: str) -> str:
    """The name that kohya's scripts write, such as `lora_te1_text_model_...`."""
    if part == "unet":
        path = sgm_path(path)
    elif not path.startswith("text_model."):
        path = f"text_model.{path}"
    return PREFIX[part] + path.replace(".", "_")


def accepted_names(part: str, path: str) -> list[str]:
    """Every name of a module that is in use, the one that this program writes first."""
    path = path if part == "unet" else path.removeprefix("text_model.")
    dotted = path if part == "unet" else f"text_model.{path}"
    names = [kohya_name(part, path), PREFIX[part] + dotted.replace(".", "_"), f"{part}.{dotted}"]
    if dotted != path:
        names += [f"{part}.{path}", PREFIX[part] + path.replace(".", "_")]
    if part == "unet":
        original = sgm_path(path)
        # ComfyUI; OneTrainer's ORIGINAL and OMI; LyCORIS around a UNet, as SimpleTuner saves it.
        names += [f"diffusion_model.{original}", original, f"unet.{original}"]
        names += [f"lycoris_{spelled.replace('.', '_')}" for spelled in (path, original)]
    else:
        names += [f"text_encoders.{_CLIP[part]}.transformer.{dotted}"]
        names += [f"{_CLIP[part]}.{spelled}" for spelled in (dotted, path)]  # OneTrainer's OMI
    return names


def diffusers_name(part: str, path: str) -> str:
    """The name that diffusers expects: `unet.<path>` or `text_encoder.text_model.<path>`."""
    return accepted_names(part, path)[2]
