"""Kinds of models that are no complete SDXL model trained to predict noise or velocity.

Everything is read from headers and configurations: names and shapes of tensors, marker tensors, metadata, and
the classes that a diffusers folder names. Each model of the table would load, train and sample without an error
and be wrong, or fail far from the cause.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.headers.safetensors import Header, Tensor
from trainer.headers.scaled_fp8 import unsupported_quantization

# Prefixes of the four parts in checkpoints of the original layout.
UNET, TEXT_1, TEXT_2, VAE = (
    "model.diffusion_model.",
    "conditioner.embedders.0.transformer.",
    "conditioner.embedders.1.model.",
    "first_stage_model.",
)
Tensors = Mapping[str, Tensor]


def other_kind(header: Header) -> str | None:
    """Returns a description of a file that is no complete SDXL checkpoint; None for one that is.

    A description with a semicolon contains advice.
    """
    tensors = header.tensors
    kind = next((description for description, matches in _OTHER_KINDS if matches(tensors)), None)
    return kind or _quantized(tensors) or _declared(header.metadata.get("modelspec.prediction_type", ""))


def other_folder_kind(configs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Returns a description of a diffusers folder that is no SDXL model; None for one that is.

    Args:
        configs: `index`, `unet`, `vae` and `scheduler`, as `folder_configs` reads them.
    """
    index, unet, vae = configs["index"], configs["unet"], configs["vae"]
    encoders = [_class_of(index, part) for part in ("text_encoder", "text_encoder_2")]
    foreign = [name for name in encoders if name and name not in _TEXT_ENCODERS]
    if foreign:
        return f"a model with another text encoder ({foreign[0]}) than SDXL's"
    if index.get("requires_aesthetics_score") or (
        "text_encoder" in index and not encoders[0] and encoders[1]
    ):
        return "the SDXL refiner"
    if not encoders[1] or unet.get("addition_embed_type") != "text_time":
        return "no SDXL model"
    if unet.get("encoder_hid_dim_type"):
        return "a model whose text passes through a projection (such as Kolors)"
    channels = unet.get("in_channels", 4)
    if channels != 4:
        return _BY_CHANNELS.get(channels, f"a model with {channels} input channels, not 4")
    if unet.get("time_cond_proj_dim"):
        return _LCM_UNET
    return _other_latents(vae) or other_schedule(configs["scheduler"])


def other_text_kind(texts: Sequence[Mapping[str, Any]], unet: Mapping[str, Any]) -> str | None:
    """Returns a description of a diffusers folder whose text encoders don't fit an SDXL UNet; else None.

    Args:
        texts: `config.json` of both text encoders.
        unet: `config.json` of the UNet.
    """
    if any(config.get("max_position_embeddings", TOKENS) != TOKENS for config in texts):
        return _LONG_TEXT
    widths = [config["hidden_size"] for config in texts]
    expected = unet.get("cross_attention_dim")
    return _OTHER_TEXT if isinstance(expected, int) and sum(widths) != expected else None


def other_schedule(config: Mapping[str, Any]) -> str | None:
    """Returns a description of a model by its scheduler, if it is not trained as SDXL is; else None.

    SDXL adds noise by a schedule of betas and predicts noise (epsilon) or velocity (v_prediction). EDM (Karras
    et al. 2022) scales input and output by functions of sigma; rectified flow (Liu et al. 2022) interpolates.

    Args:
        config: `scheduler/scheduler_config.json`.
    """
    name = str(config.get("_class_name", ""))
    if "EDM" in name or "sigma_data" in config or config.get("timestep_type") == "continuous":
        return _EDM
    if "Flow" in name or config.get("use_flow_sigmas"):
        return _FLOW
    if name and "beta_start" not in config and not config.get("trained_betas"):
        return f"a model whose scheduler ({name[:60]}) has no schedule of betas as SDXL's has"
    return _declared(str(config.get("prediction_type") or ""))


def _class_of(index: Mapping[str, Any], part: str) -> str:
    """Returns the class that model_index.json names for a part; "" where there is none."""
    entry = index.get(part)
    return str(entry[1] or "")[:60] if isinstance(entry, list) and len(entry) == 2 else ""


def _other_latents(vae: Mapping[str, Any]) -> str | None:
    if vae.get("latents_mean") or vae.get("latents_std"):
        return "a model whose latents are normalised per channel (such as Playground v2.5)"
    if vae.get("shift_factor") or vae.get("latent_channels", 4) != 4:
        return "a model with the VAE of another family than SDXL's"
    return None


def _declared(prediction: str) -> str | None:
    """Returns a description of a model by the prediction type that it declares, unless SDXL's training fits."""
    text = prediction.strip().lower()
    if not text or text.startswith(("v", "eps")) or text in ("none", "unknown"):
        return None
    if "edm" in text:
        return _EDM
    if "flow" in text or text == "rf":
        return _FLOW
    return f"a model that predicts {text[:40]!r}, not noise or velocity"


def _quantized(tensors: Tensors) -> str | None:
    form = unsupported_quantization(tensors)
    return f"quantized in a form that is not supported ({form}); get the fp16 version" if form else None


def _text_width(tensors: Tensors) -> int:
    """Returns the number of features of both text encoders together; 0 where one is not in the file."""
    widths = (size_of(tensors, _TOKENS_1), size_of(tensors, _TOKENS_2))
    return sum(widths) if all(widths) else 0


def _has_other_text_encoders(tensors: Tensors) -> bool:
    width, expected = _text_width(tensors), size_of(tensors, _CROSS_ATTENTION)
    return bool(width and expected and width != expected)


def _has_long_text(tensors: Tensors) -> bool:
    lengths = (size_of(tensors, _POSITIONS_1, 0), size_of(tensors, _POSITIONS_2, 0))
    return any(length not in (0, TOKENS) for length in lengths)


def contains(tensors: Tensors, *parts: str) -> bool:
    """Returns whether the name of a tensor contains one of the parts."""
    return any(part in name for name in tensors for part in parts)


def starts(tensors: Tensors, *prefixes: str) -> bool:
    """Returns whether the name of a tensor begins with one of the prefixes."""
    return any(name.startswith(prefixes) for name in tensors)


def size_of(tensors: Tensors, name: str, axis: int = 1) -> int:
    """Returns the size of one axis of a tensor; 0 if it does not exist."""
    shape = tensors[name].shape if name in tensors else ()
    return shape[axis] if len(shape) > axis else 0


def _lacks_text_encoder(tensors: Tensors) -> bool:
    return not (starts(tensors, TEXT_1) and starts(tensors, TEXT_2))


def _is_refiner(tensors: Tensors) -> bool:
    # The refiner has one text encoder, SDXL's second, in the first place; its label embedding is narrower.
    has_one_encoder = starts(tensors, "conditioner.embedders.0.model.") and not starts(tensors, TEXT_2)
    return size_of(tensors, _LABEL_EMBEDDING) == 2560 or has_one_encoder


def _is_vae(tensors: Tensors) -> bool:
    prefixes = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "first_stage_model.")
    return all(name.startswith(prefixes) for name in tensors)


TOKENS = 77  # of CLIP's window
_TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
_EDM = "an EDM model (such as Playground v2.5 or CosXL), whose noise levels are not SDXL's"
_FLOW = "a rectified-flow model, which predicts neither noise nor velocity as SDXL does"
_LCM_UNET = "a UNet distilled with a guidance embedding (LCM); use LCM as a LoRA on its base model"
_LONG_TEXT = "a model with text encoders for longer prompts (Long-CLIP)"
_OTHER_TEXT = "a model with other text encoders than SDXL's"
_BY_CHANNELS = {
    8: "an instruct-pix2pix model; choose the model that it is derived from",
    9: "an inpainting model; choose the model that it is derived from",
}
FIRST_CONVOLUTION = UNET + "input_blocks.0.0.weight"
_CROSS_ATTENTION = UNET + "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
_TOKENS_1 = TEXT_1 + "text_model.embeddings.token_embedding.weight"
_TOKENS_2 = TEXT_2 + "token_embedding.weight"
_POSITIONS_1 = TEXT_1 + "text_model.embeddings.position_embedding.weight"
_POSITIONS_2 = TEXT_2 + "positional_embedding"
_LABEL_EMBEDDING = UNET + "label_emb.0.0.weight"
# A transformer block that smaller models distilled from SDXL lack.
_MIDDLE_BLOCK = UNET + "middle_block.1.transformer_blocks.0.attn1.to_q.weight"
_LORA_MARKS = (".lora_down.", ".lora_A.", ".lora.down.", ".hada_w1", ".lokr_w", "lora_unet_")
_EMBEDDING_NAMES = {"clip_g", "clip_l", "emb_params", "string_to_param"}

# (description, condition); the first condition that holds describes the file. Earlier ones are more specific.
_OTHER_KINDS: tuple[tuple[str, Callable[[Tensors], bool]], ...] = (
    ("an empty file", lambda t: not t),
    ("a LoRA, not a base model", lambda t: contains(t, *_LORA_MARKS)),
    (
        "a ControlNet",
        lambda t: starts(t, "control_model.", "controlnet_") or contains(t, "input_hint_block"),
    ),
    ("a textual inversion embedding", lambda t: len(t) <= 3 and bool(_EMBEDDING_NAMES & set(t))),
    ("a Flux model", lambda t: contains(t, "double_blocks.", "single_transformer_blocks.")),
    ("a Stable Diffusion 3 model", lambda t: contains(t, "joint_blocks.")),
    ("a video model", lambda t: contains(t, "time_stack.", "motion_modules.", "temporal_transformer")),
    ("a Stable Diffusion 1 model", lambda t: starts(t, "cond_stage_model.transformer.")),
    ("a Stable Diffusion 2 model", lambda t: starts(t, "cond_stage_model.model.")),
    ("a Stable Cascade model", lambda t: starts(t, "clip_txt_mapper.", "effnet_mapper.")),
    ("the SDXL refiner", _is_refiner),
    (_BY_CHANNELS[9], lambda t: size_of(t, FIRST_CONVOLUTION) == 9),
    (_BY_CHANNELS[8], lambda t: size_of(t, FIRST_CONVOLUTION) == 8),
    (_EDM, lambda t: bool({"edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min"} & set(t))),
    (_LCM_UNET, lambda t: contains(t, "time_embed.cond_proj.", "time_embedding.cond_proj.")),
    (_LONG_TEXT, _has_long_text),
    (_OTHER_TEXT, _has_other_text_encoders),
    ("a VAE, not a base model", _is_vae),
    (
        "one part of a diffusers folder; give the path of the whole folder",
        lambda t: starts(t, "down_blocks.", "text_model."),
    ),
    ("a UNet without its text encoders", lambda t: starts(t, UNET) and _lacks_text_encoder(t)),
    ("no SDXL model", lambda t: FIRST_CONVOLUTION not in t or _lacks_text_encoder(t)),
    (
        "a distilled SDXL model (such as SSD-1B or Vega), which is not supported",
        lambda t: _MIDDLE_BLOCK not in t,
    ),
)
