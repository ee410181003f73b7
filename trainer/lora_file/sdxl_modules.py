"""Which weights an SDXL base has, by part and module path, and every spelling of their names in LoRA files.

unet            down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q    (640, 640)
text_encoder    encoder.layers.0.self_attn.q_proj                             (768, 768)      paths without `text_model.`
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from trainer.lora_file.module_names import PREFIX, accepted_names

Shape = tuple[int, ...]
WIDTHS, DEPTHS = (
    (320, 640, 1280),
    (0, 2, 10),
)  # channels and transformer layers of SDXL's three levels (Podell et al. 2023, table 1)
TIME, CONTEXT, ADDED = (
    1280,
    2048,
    2816,
)  # channels of the time embedding, of the prompt, of pooled prompt and sizes


@dataclass(frozen=True)
class Layout:
    """The shapes of a base's weights: part -> module path -> shape."""

    name: str
    shapes: Mapping[str, Mapping[str, Shape]]

    def shape(self, part: str, path: str) -> Shape | None:
        return self.shapes.get(part, {}).get(path)


@dataclass(frozen=True)
class Names:
    """From a module's name in a file, in any spelling, to (part, path)."""

    places: Mapping[str, tuple[str, str]] = field(repr=False)

    def find(self, name: str) -> tuple[str, str] | None:
        plain = name.replace(".processor.", ".")  # diffusers before 0.22
        plain = plain.removeprefix("base_model.model.")  # PEFT's own files
        if plain.endswith((".to_out", "_to_out")):
            plain += plain[-7] + "0"
        return self.places.get(plain)


@functools.cache
def sdxl() -> Layout:
    """The true SDXL 1.0, from its published sizes; no model is built."""
    return Layout(
        "SDXL",
        {
            "unet": dict(_unet()),
            "text_encoder": dict(_text_encoder(layers=12, width=768)),
            "text_encoder_2": {**dict(_text_encoder(layers=32, width=1280)), "text_projection": (1280, 1280)},
        },
    )


@functools.cache
def names() -> Names:
    """Every spelling of every module of SDXL; smaller bases of its family have some of its modules."""
    places: dict[str, tuple[str, str]] = {}
    for part, shapes in sdxl().shapes.items():
        for path in shapes:
            spellings = accepted_names(part, path)
            if part == "text_encoder":  # files for SD 1.5 and some early ones for SDXL say lora_te_
                spellings += [
                    name.replace(PREFIX[part], "lora_te_", 1)
                    for name in spellings
                    if name.startswith(PREFIX[part])
                ]
            if part == "unet":  # PEFT's files of a UNet alone have its bare paths
                spellings.append(path)
            if path == "text_projection":  # the one module that every tool names without text_model
                spellings += [f"{part}.{path}", f"{PREFIX[part]}{path}"]
            for name in spellings:
                places.setdefault(name, (part, path))
    return Names(places)


def _unet() -> Iterator[tuple[str, Shape]]:
    yield "conv_in", (WIDTHS[0], 4, 3, 3)
    for name, width in (("time_embedding", WIDTHS[0]), ("add_embedding", ADDED)):
        yield f"{name}.linear_1", (TIME, width)
        yield f"{name}.linear_2", (TIME, TIME)
    skips = [WIDTHS[0]]  # channels of what the way up takes over from the way down
    for level, width in enumerate(WIDTHS):
        for layer in range(2):
            yield from _resnet(f"down_blocks.{level}.resnets.{layer}", skips[-1], width)
            yield from _attention(f"down_blocks.{level}.attentions.{layer}", width, DEPTHS[level])
            skips.append(width)
        if level < 2:
            yield f"down_blocks.{level}.downsamplers.0.conv", (width, width, 3, 3)
            skips.append(width)
    widest = WIDTHS[-1]
    yield from _resnet("mid_block.resnets.0", widest, widest)
    yield from _attention("mid_block.attentions.0", widest, DEPTHS[-1])
    yield from _resnet("mid_block.resnets.1", widest, widest)
    below = widest
    for block, (width, depth) in enumerate(zip(reversed(WIDTHS), reversed(DEPTHS), strict=True)):
        for layer in range(3):
            yield from _resnet(f"up_blocks.{block}.resnets.{layer}", below + skips.pop(), width)
            yield from _attention(f"up_blocks.{block}.attentions.{layer}", width, depth)
            below = width
        if block < 2:
            yield f"up_blocks.{block}.upsamplers.0.conv", (width, width, 3, 3)
    yield "conv_norm_out", (WIDTHS[0],)
    yield "conv_out", (4, WIDTHS[0], 3, 3)


def _resnet(path: str, inputs: int, outputs: int) -> Iterator[tuple[str, Shape]]:
    yield f"{path}.norm1", (inputs,)
    yield f"{path}.conv1", (outputs, inputs, 3, 3)
    yield f"{path}.time_emb_proj", (outputs, TIME)
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
        for name, context in (("attn1", width), ("attn2", CONTEXT)):
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
