"""Recognition of LoRA files for SDXL from their header, without torch; the page calls it for every upload.

Only .safetensors files are opened: a pickle (.ckpt, .pt, .bin) runs any code that its maker put into it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from trainer.errors import LoraFileError
from trainer.headers.safetensors import BITS, Header, read_header

MAX_HEADER = (
    16 << 20
)  # bytes; a LoRA of every layer of SDXL, with a thumbnail and captions, has a twentieth of it
MAX_TENSORS = 20_000  # a LoKr of every layer of SDXL has a third of it
_STARTS = (  # first bytes of other kinds of files
    (b"PK\x03\x04", "a zip archive (PyTorch's .pt and .ckpt are zips too)"),
    (b"\x80", "a Python pickle (.ckpt, .pt, .bin), which could run code of its maker"),
    (b"version https://git-lfs", "a Git LFS pointer, a note of where the real file lies"),
    (b"GGUF", "a GGUF file of a quantized model"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"RIFF", "a WebP picture or a sound"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"<", "a web page, perhaps the login page of a download"),
)

PEFT_WEIGHTS = "adapter_model.safetensors"  # in a folder that PEFT saves, beside adapter_config.json
# OneTrainer puts embeddings into the file, bundle_emb.NAME.clip_l, for A1111 (its pull request 13568).
BUNDLED = "bundle_emb."
MATRIX = re.compile(
    r".*(lora_(down|up|mid|A|B)|lora\.(down|up)|lora_linear_layer\.(down|up)"
    r"|hada_[wt]\d|lokr_[wt]\d|\.diff$|oft_(blocks|diag|R)|\.[ab][12]\.weight$|\.on_input$).*"
)
# Adapters that no command reads, by the end of a tensor's name.
_OTHER_FORMS = (
    (re.compile(r"\.ia3_l(\.default)?(\.weight)?$"), "an IA3 of PEFT"),
    (re.compile(r"\.boft_[RPs](\.|$)"), "a BOFT of PEFT"),
    (re.compile(r"\.oft_r(\.|$)"), "an OFT of PEFT"),
    (re.compile(r"\.glora_[ABCDE](\.|$)"), "a GLoRA of PEFT"),
    (re.compile(r"\.p?vera_lambda_[bd](\.|$)|(^|\.)vera_[AB](\.|$)"), "a VeRA"),
    (re.compile(r"\.(fourierft|waveft)_spectrum(\.|$)"), "a FourierFT"),
    (re.compile(r"\.(hra_u|bone_block|miss_block|c3a_kernel|randlora_lambda)(\.|$)"), "an adapter of PEFT"),
    (re.compile(r"\.lora_E(\.|$)"), "an AdaLoRA"),
    (re.compile(r"\.lora_[AB](\.default)?\.bias$"), "a LoRA with biases (lora_bias)"),
    (re.compile(r"\.modules_to_save\."), "an adapter with whole layers (modules_to_save)"),
)
# Two expressions, because one with `.*` between them takes quadratic time on a long key of a hostile file.
_CROSS_ATTENTION = re.compile(r"attn2[._](processor[._])?to_[kv]")
_LONGEST_END = 60  # characters of a key, in which its suffix is
_DOWN_MATRIX = re.compile(r"lora_down|lora_A|lora\.down|hada_w1_b")


def lora_path(path: Path) -> Path:
    """The file of a LoRA: the path itself, or the weights in a folder as PEFT saves it.

    Raises:
        LoraFileError: a folder has no such file.
    """
    if not path.is_dir():
        return path
    if (path / PEFT_WEIGHTS).is_file():
        return path / PEFT_WEIGHTS
    raise LoraFileError(
        f"{path} is a folder without {PEFT_WEIGHTS}; give the path of a .safetensors file, or of a folder "
        "that PEFT saved"
    )


def recognise(path: Path) -> Header:
    """The header of an SDXL LoRA; nothing else of the file is read.

    Raises:
        LoraFileError: the file is something else; the message names what it is.
    """
    path = lora_path(path)
    try:
        header = read_header(path, LoraFileError, most=MAX_HEADER)
    except LoraFileError:
        if path.is_file() and (kind := _kind_of_bytes(path)):
            raise LoraFileError(f"{path.name} is {kind}; give a .safetensors file") from None
        raise
    if len(header.tensors) > MAX_TENSORS:
        raise LoraFileError(
            f"{path.name} holds {len(header.tensors):,} tensors, more than any LoRA for SDXL; give a LoRA "
            "file"
        )
    for key, tensor in header.tensors.items():
        if tensor.dtype not in BITS:
            raise LoraFileError(
                f"{path.name} holds {key[:80]} in the type {tensor.dtype[:20]}, which is not read; save it "
                "as fp16"
            )
    if kind := kind_of({key: tensor.shape for key, tensor in header.tensors.items()}):
        raise LoraFileError(f"{path.name} {kind}; give a LoRA file for SDXL")
    return header


def bundled_notice(path: Path, keys: Iterable[str]) -> str:
    """A sentence for a LoRA whose file also holds embeddings; "" for others."""
    names = list(dict.fromkeys(key.split(".")[1][:80] for key in keys if key.startswith(BUNDLED)))
    if not names:
        return ""
    listed = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"{path.name} also holds an embedding ({listed}), which is left out here; A1111 reads it where its "
        "name is in the prompt"
    )


def _kind_of_bytes(path: Path) -> str | None:
    """The kind of a file from its first bytes, after "is" in a sentence; None for an unknown one."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "empty"
    if start[4:9] == b"\0\0\0\0{":  # a .safetensors: its length comes first
        length = int.from_bytes(start[:8], "little")
        return "only the beginning of a .safetensors file" if path.stat().st_size < 8 + length else None
    for signature, kind in _STARTS:
        if start.lstrip().startswith(signature):
            return kind
    try:
        text = start[:500].decode()
    except UnicodeDecodeError:
        return None
    return "a text file" if all(letter.isprintable() or letter.isspace() for letter in text) else None


def kind_of(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The kind of a file with these tensors, as the rest of a sentence; None if it may be a LoRA for SDXL."""
    if not shapes:
        return "holds no tensors"
    for expression, form in _OTHER_FORMS:
        if key := next((key for key in shapes if expression.search(key[-_LONGEST_END:])), None):
            return f"is {form}, as {key[-_LONGEST_END:]} shows, and only its own program reads it"
    if any(MATRIX.fullmatch(key) or key.endswith((".w_norm", ".b_norm")) for key in shapes):
        return _other_lora(shapes)

    def has(*starts: str) -> bool:
        return any(key.startswith(starts) for key in shapes)

    if has("model.diffusion_model.", "conditioner.embedders.", "cond_stage_model."):
        return "is a whole checkpoint, not a LoRA"
    if has("control_model.", "controlnet_", "input_hint_block."):
        return "is a ControlNet"
    if has("first_stage_model.") or (
        has("encoder.conv_in", "encoder.down") and has("decoder.conv_in", "decoder.up")
    ):
        return "is a VAE"
    if (
        set(shapes) & {"emb_params", "clip_l", "clip_g", "string_to_param", "<placeholder>"}
        or (len(shapes) == 1 and has("<"))
        or has(BUNDLED)
    ):
        return "is an embedding (textual inversion), not a LoRA"
    if has("down_blocks.", "diffusion_model.", "double_blocks.", "transformer_blocks."):
        return "holds the weights of a whole UNet or transformer, not a LoRA"
    if has("text_model.", "encoder.layers.", "transformer.text_model.", "shared.weight"):
        return "holds the weights of a text encoder, not a LoRA"
    return f"holds no part of a LoRA, but tensors such as {next(iter(shapes))[:80]!r}"


def _other_lora(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The model that a LoRA is for, as the rest of a sentence about it; None where that may be SDXL."""
    if any("lora_controlnet" in key or "input_hint" in key for key in shapes):
        return "is a ControlNet of LoRA form"
    if any(re.search(r"double_blocks|single_blocks|single_transformer_blocks", key) for key in shapes):
        return "is a LoRA for Flux"
    if any(key.startswith("transformer.") or "joint_blocks" in key for key in shapes):
        return "is a LoRA for a model with a transformer (such as Stable Diffusion 3), not for SDXL's UNet"
    contexts = {shape[1] for key, shape in shapes.items() if len(shape) >= 2 and _reads_prompt(key)}
    if contexts and contexts <= {768}:
        return "is a LoRA for Stable Diffusion 1.5 (prompts of 768 channels)"
    if contexts and contexts <= {1024}:
        return "is a LoRA for Stable Diffusion 2 (prompts of 1024 channels)"
    if any(
        re.search(r"(down_blocks[._]0[._]attentions|down_blocks[._]3|up_blocks[._]3)", key) for key in shapes
    ):
        return "is a LoRA for Stable Diffusion 1.5 or 2 (its UNet has other blocks)"
    return None


def _reads_prompt(key: str) -> bool:
    """True for the first matrix of a cross-attention layer, whose inputs are the channels of the prompt."""
    match = _CROSS_ATTENTION.search(key)
    return bool(match and _DOWN_MATRIX.search(key, match.end()))
