"""Modules of SDXL with the shapes of their weights, and the search for a module by its name in a LoRA file.

unet            down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q    (640, 640)
text_encoder    encoder.layers.0.self_attn.q_proj                             (768, 768)

Paths of text encoders are without `text_model.`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trainer.lora_file.module_names import PREFIX, accepted_names

Shape = tuple[int, ...]
# Channels and transformer layers of the three levels of SDXL (Podell et al. 2023, table 1).
_WIDTHS = (320, 640, 1280)
_DEPTHS = (0, 2, 10)
# Channels of the time embedding, of the prompt, and of the pooled prompt with the six sizes.
_TIME = 1280
_CONTEXT = 2048
_ADDED = 2816
_LYCORIS = "lycoris_"
_TEXT_STARTS = ("text_model.", "encoder.layers.", "text_model_encoder_", "encoder_layers_")


@dataclass(frozen=True)
class Layout:
    """Shapes of the weights of a base by part and module path; `name` is that of the base."""

    name: str
    shapes: Mapping[str, Mapping[str, Shape]]

    def shape(self, part: str, path: str) -> Shape | None:
        """The shape of a module's weight, or None where the base has no such module."""
        return self.shapes.get(part, {}).get(path)


@functools.cache
def sdxl() -> Layout:
    """The layout of SDXL 1.0, computed from its published sizes without building a model."""
    return Layout(
        "SDXL",
        {
            "unet": dict(_unet()),
            "text_encoder": dict(_text_encoder(layers=12, width=768)),
            "text_encoder_2": {**dict(_text_encoder(layers=32, width=1280)), "text_projection": (1280, 1280)},
        },
    )


def find_module(name: str, text_encoder: str | None = None) -> tuple[str, str] | None:
    """(part, path) of a module by its name in a file, in any spelling; None where SDXL has no such module.

    Args:
        text_encoder: the part of names without one, `text_model....`, in files of one text encoder alone.
    """
    plain = _plain(name)
    if text_encoder and is_of_text_encoder_alone(name):
        if plain.startswith(_LYCORIS):
            plain = PREFIX[text_encoder] + plain.removeprefix(_LYCORIS)
        else:
            plain = f"{text_encoder}.{plain}"
    if plain.endswith((".to_out", "_to_out")):  # old names without the 0 of `to_out.0`
        plain += plain[-7] + "0"
    return _modules_by_name().get(plain)


def is_of_text_encoder_alone(name: str) -> bool:
    """True for a name of a text encoder that does not contain which one: PEFT or LyCORIS around a model."""
    plain = _plain(name)
    return plain.removeprefix(_LYCORIS).startswith(_TEXT_STARTS) or plain == "text_projection"


def _plain(name: str) -> str:
    """The name without the parts that PEFT and old versions of diffusers put into it."""
    plain = name.replace(".processor.", ".")  # attention processors of diffusers before 0.22
    # PEFT's own files: at the start, or after the part (`unet.base_model.model.`).
    return plain.replace("base_model.model.", "", 1)


@functools.cache
def _modules_by_name() -> Mapping[str, tuple[str, str]]:
    """(part, path) by every name of every module of SDXL; smaller bases of its family have some of them."""
    places: dict[str, tuple[str, str]] = {}
    for part, shapes in sdxl().shapes.items():
        for path in shapes:
            names = accepted_names(part, path)
            if part == "text_encoder":  # files for SD 1.5 and some early ones for SDXL have lora_te_
                prefix = PREFIX[part]
                names += [name.replace(prefix, "lora_te_", 1) for name in names if name.startswith(prefix)]
            if part == "unet":  # PEFT's files of a UNet alone have its bare paths
                names.append(path)
            if path == "text_projection":  # every tool names it without text_model
                names += [f"{part}.{path}", f"{PREFIX[part]}{path}"]
            for name in names:
                places.setdefault(name, (part, path))
    return places


def _unet() -> Iterator[tuple[str, Shape]]:
    yield "conv_in", (_WIDTHS[0], 4, 3, 3)
    for name, width in (("time_embedding", _WIDTHS[0]), ("add_embedding", _ADDED)):
        yield f"{name}.linear_1", (_TIME, width)
        yield f"{name}.linear_2", (_TIME, _TIME)
    skips = [_WIDTHS[0]]  # channels of the skip connections from the down blocks to the up blocks
    for level, width in enumerate(_WIDTHS):
        for layer in range(2):
            yield from _resnet(f"down_blocks.{level}.resnets.{layer}", skips[-1], width)
            yield from _attention(f"down_blocks.{level}.attentions.{layer}", width, _DEPTHS[level])
            skips.append(width)
        if level < 2:
            yield f"down_blocks.{level}.downsamplers.0.conv", (width, width, 3, 3)
            skips.append(width)
    widest = _WIDTHS[-1]
    yield from _resnet("mid_block.resnets.0", widest, widest)
    yield from _attention("mid_block.attentions.0", widest, _DEPTHS[-1])
    yield from _resnet("mid_block.resnets.1", widest, widest)
    below = widest
    for block, (width, depth) in enumerate(zip(reversed(_WIDTHS), reversed(_DEPTHS), strict=True)):
        for layer in range(3):
            yield from _resnet(f"up_blocks.{block}.resnets.{layer}", below + skips.pop(), width)
            yield from _attention(f"up_blocks.{block}.attentions.{layer}", width, depth)
            below = width
        if block < 2:
            yield f"up_blocks.{block}.upsamplers.0.conv", (width, width, 3, 3)
    yield "conv_norm_out", (_WIDTHS[0],)
    yield "conv_out", (4, _WIDTHS[0], 3, 3)


def _resnet(path: str, inputs: int, outputs: int) -> Iterator[tuple[str, Shape]]:
    yield f"{path}.norm1", (inputs,)
    yield f"{path}.conv1", (outputs, inputs, 3, 3)
    yield f"{path}.time_emb_proj", (outputs, _TIME)
    yield f"{path}.norm2", (outputs,)
    yield f"{path}.conv2", (outputs, outputs, 3, 3)
    if inputs != outputs:
        yield f"{path}.conv_shortcut", (outputs, inputs, 1, 1)


def _attention(path: str, width: int, depth: int) -> Iterator[tuple[str, Shape]]:
    if not depth:
        return
    yield f"{path}.norm", (width,)
    for number in range(depth):
        block = f"{path}.transformer_blocks.{number}"
        for name, context in (("attn1", width), ("attn2", _CONTEXT)):
            yield f"{block}.{name}.to_q", (width, width)
            yield f"{block}.{name}.to_k", (width, context)
            yield f"{block}.{name}.to_v", (width, context)
            yield f"{block}.{name}.to_out.0", (width, width)
        yield f"{block}.ff.net.0.proj", (8 * width, width)  # a gate and a value of four widths each
        yield f"{block}.ff.net.2", (width, 4 * width)
        yield from ((f"{block}.norm{n}", (width,)) for n in (1, 2, 3))
    yield f"{path}.proj_in", (width, width)
    yield f"{path}.proj_out", (width, width)


def _text_encoder(*, layers: int, width: int) -> Iterator[tuple[str, Shape]]:
    yield "embeddings.token_embedding", (49408, width)
    yield "embeddings.position_embedding", (77, width)
    for layer in range(layers):
        path = f"encoder.layers.{layer}"
        yield from ((f"{path}.self_attn.{name}_proj", (width, width)) for name in ("q", "k", "v", "out"))
        yield f"{path}.mlp.fc1", (4 * width, width)
        yield f"{path}.mlp.fc2", (width, 4 * width)
        yield from ((f"{path}.layer_norm{n}", (width,)) for n in (1, 2))
    yield "final_layer_norm", (width,)
