"""LoRA files in the forms that other programs write, with their changes by formulas in float64."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.trainer.lora_file.lora_samples import ATTENTION, CONVOLUTION, TINY, Naming, Place, every_layer
from trainer.lora_file.base_weights import base_weights
from trainer.lora_file.module_names import kohya_name
from trainer.sdxl.unet_names import sgm_path

Roles = dict[str, torch.Tensor]
RANK = 4
SQUARE = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
NARROW = "up_blocks.0.resnets.0.conv_shortcut"
LINEAR = (("unet", ATTENTION), ("unet", SQUARE))
CONVOLUTIONS = (("unet", CONVOLUTION), ("unet", NARROW))
UNET = (*LINEAR, *CONVOLUTIONS)
TEXT = tuple((part, "encoder.layers.0.self_attn.q_proj") for part in ("text_encoder", "text_encoder_2"))
SUFFIXES = {
    "kohya": {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"},
    "peft": {"down": "lora_A.weight", "up": "lora_B.weight", "dora_scale": "lora_magnitude_vector"},
    "comfyui": {"down": "lora_A.weight", "up": "lora_B.weight"},
    "diffusers": {"down": "lora.down.weight", "up": "lora.up.weight"},
}


@dataclass(frozen=True)
class Form:
    """A form of a file.

    Attributes:
        network: the function that makes a module's matrices and its product.
        alpha: written beside the matrices; None for a form that keeps it elsewhere or has none.
        scale: what the product is multiplied by.
        dora: the axis of DoRA's lengths: `inputs`, `outputs`, `peft` or "".
        file: name of the file; `config` goes into adapter_config.json beside it.
    """

    network: Callable[[tuple[int, ...], torch.Generator], tuple[Roles, torch.Tensor]]
    naming: Naming = kohya_name
    places: tuple[Place, ...] = (*UNET, *TEXT)
    suffixes: str = "kohya"
    alpha: float | None = 2.0
    scale: float = 0.5
    dora: str = ""
    dtype: torch.dtype = torch.float32
    file: str = "a.safetensors"
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, object] | None = None


def write(form: Form, folder: Path) -> tuple[Path, dict[Place, torch.Tensor]]:
    """Writes a file in a form; returns its path and its changes (O, I) in float64."""
    generator = torch.Generator().manual_seed(11)
    tensors: Roles = {}
    changes: dict[Place, torch.Tensor] = {}
    for part, path in form.places:
        shape = every_layer()[part, path]
        roles, _ = form.network(shape, generator)
        roles = {role: tensor.to(form.dtype) for role, tensor in roles.items()}
        stored = {role: tensor.float().double() for role, tensor in roles.items()}
        added = form.scale * product(form.network, stored, shape)
        weight = base_weights(TINY)[part].tensor(path).double()
        if form.dora:
            roles["dora_scale"], change = decomposed(form.dora, weight, added.reshape(shape), generator)
            changes[part, path] = change.flatten(1)
        else:
            changes[part, path] = added.flatten(1)
        if form.alpha is not None:
            roles["alpha"] = torch.tensor(form.alpha, dtype=form.dtype if form.alpha > 1e9 else torch.float32)
        names = SUFFIXES[form.suffixes]
        name = form.naming(part, path)
        tensors |= {f"{name}.{names.get(role, role)}": tensor.contiguous() for role, tensor in roles.items()}
    target = folder / form.file
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target, metadata={"format": "pt", **form.metadata})
    if form.config:
        (target.parent / "adapter_config.json").write_text(json.dumps(form.config))
    return target, changes


def decomposed(
    axis: str, weight: torch.Tensor, added: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """(lengths as a program stores them, change) of a DoRA: m V / |V| - W."""
    dims = [dim for dim in range(weight.dim()) if dim != (1 if axis == "inputs" else 0)]
    norm = torch.linalg.vector_norm(weight, dim=dims, keepdim=True)
    length = (norm * (0.9 + 0.2 * torch.rand(norm.shape, generator=generator))).float()
    changed = weight + added
    change = length.double() * changed / torch.linalg.vector_norm(changed, dim=dims, keepdim=True) - weight
    if axis == "peft":  # (O,) of a linear layer, (1, O, 1, 1) of a convolution
        return (length.transpose(0, 1) if weight.dim() == 4 else length.flatten()), change
    return length, change


def random(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return 0.3 * torch.randn(*shape, generator=generator)


def lora(shape: tuple[int, ...], g: torch.Generator) -> tuple[Roles, torch.Tensor]:
    ones = [1] * len(shape[2:])
    roles = {"down": random(g, RANK, *shape[1:]), "up": random(g, shape[0], RANK, *ones)}
    return roles, product(lora, roles, shape)


def tucker_lora(shape: tuple[int, ...], g: torch.Generator) -> tuple[Roles, torch.Tensor]:
    roles = {
        "down": random(g, RANK, shape[1], 1, 1),
        "up": random(g, shape[0], RANK, 1, 1),
        "mid": random(g, RANK, RANK, *shape[2:]),
    }
    return roles, product(tucker_lora, roles, shape)


def loha(shape: tuple[int, ...], g: torch.Generator) -> tuple[Roles, torch.Tensor]:
    inputs = torch.Size(shape[1:]).numel()
    roles = {f"hada_w{n}_a": random(g, shape[0], RANK) for n in (1, 2)}
    roles |= {f"hada_w{n}_b": random(g, RANK, inputs) for n in (1, 2)}
    return roles, product(loha, roles, shape)


def onetrainer_loha(shape: tuple[int, ...], g: torch.Generator) -> tuple[Roles, torch.Tensor]:
    ones = [1] * len(shape[2:])
    roles = {f"hada_w{n}_a": random(g, shape[0], RANK, *ones) for n in (1, 2)}
    roles |= {f"hada_w{n}_b": random(g, RANK, *shape[1:]) for n in (1, 2)}
    return roles, product(loha, roles, shape)


def tucker_loha(shape: tuple[int, ...], g: torch.Generator) -> tuple[Roles, torch.Tensor]:
    roles: Roles = {}
    for n in (1, 2):
        roles[f"hada_w{n}_a"], roles[f"hada_w{n}_b"] = random(g, RANK, shape[0]), random(g, RANK, shape[1])
        roles[f"hada_t{n}"] = random(g, RANK, RANK, *shape[2:])
    return roles, product(tucker_loha, roles, shape)


def lokr(shape: tuple[int, ...], g: torch.Generator) -> tuple[Roles, torch.Tensor]:
    inputs = torch.Size(shape[2:]).numel() * shape[1] // 2
    roles = {
        "lokr_w1": random(g, 2, 2),
        "lokr_w2_a": random(g, shape[0] // 2, RANK),
        "lokr_w2_b": random(g, RANK, inputs),
    }
    return roles, product(lokr, roles, shape)


def whole_lokr(shape: tuple[int, ...], g: torch.Generator) -> tuple[Roles, torch.Tensor]:
    roles = {
        "lokr_w1": random(g, 2, 2),
        "lokr_w2": random(g, shape[0] // 2, shape[1] // 2, *shape[2:]),
    }
    return roles, product(whole_lokr, roles, shape)


def tucker_lokr(shape: tuple[int, ...], g: torch.Generator) -> tuple[Roles, torch.Tensor]:
    roles = {
        "lokr_w1": random(g, 2, 2),
        "lokr_w2_a": random(g, RANK, shape[0] // 2),
        "lokr_w2_b": random(g, RANK, shape[1] // 2),
        "lokr_t2": random(g, RANK, RANK, *shape[2:]),
    }
    return roles, product(tucker_lokr, roles, shape)


def product(network: Callable, r: Roles, shape: tuple[int, ...]) -> torch.Tensor:
    """The product (O, I) of a network's matrices, by loops over the axes of its definition."""
    outputs, kernel = shape[0], shape[2:]
    if "mid" in r:
        whole = torch.einsum("oa,abkl,bi->oikl", r["up"][:, :, 0, 0], r["mid"], r["down"][:, :, 0, 0])
    elif "down" in r:
        whole = r["up"].flatten(1) @ r["down"].flatten(1)
    elif "hada_t1" in r:
        one, two = (
            torch.einsum("abkl,ao,bi->oikl", r[f"hada_t{n}"], r[f"hada_w{n}_a"], r[f"hada_w{n}_b"])
            for n in (1, 2)
        )
        whole = one * two
    elif "hada_w1_a" in r:
        one, two = (r[f"hada_w{n}_a"].flatten(1) @ r[f"hada_w{n}_b"].flatten(1) for n in (1, 2))
        whole = one * two
    else:
        if "lokr_t2" in r:
            second = torch.einsum("abkl,ao,bi->oikl", r["lokr_t2"], r["lokr_w2_a"], r["lokr_w2_b"])
        else:
            second = r["lokr_w2"] if "lokr_w2" in r else r["lokr_w2_a"] @ r["lokr_w2_b"]
        second = second.reshape(outputs // 2, shape[1] // 2, *(kernel or ()))
        rows = [torch.cat([factor * second for factor in row], dim=1) for row in r["lokr_w1"]]
        whole = torch.cat(rows)
    return whole.reshape(outputs, -1)


def omi(part: str, path: str) -> str:
    """OneTrainer's OMI, written as "Safetensors" from 2025-05 to 2026-07."""
    if part == "unet":
        return f"unet.{sgm_path(path)}"
    return f"{'clip_l' if part == 'text_encoder' else 'clip_g'}.text_model.{path}"


def comfyui(part: str, path: str) -> str:
    """OneTrainer's COMFY, and ComfyUI's own files."""
    if part == "unet":
        return f"diffusion_model.{sgm_path(path)}"
    return f"text_encoders.{'clip_l' if part == 'text_encoder' else 'clip_g'}.transformer.text_model.{path}"


def dotted(part: str, path: str) -> str:
    """diffusers: `unet.` and `text_encoder.text_model.`."""
    return f"{part}.{path}" if part == "unet" else f"{part}.text_model.{path}"


def legacy(part: str, path: str) -> str:
    """kohya's prefixes with the blocks of diffusers: OneTrainer's LEGACY, ai-toolkit."""
    return f"lora_unet_{path.replace('.', '_')}" if part == "unet" else kohya_name(part, path)


def lycoris(part: str, path: str) -> str:
    """LyCORIS around a model, as SimpleTuner saves it."""
    return f"lycoris_{path.replace('.', '_')}"


def peft(part: str, path: str) -> str:
    """PEFT around a model."""
    return f"base_model.model.{path}" if part == "unet" else f"base_model.model.text_model.{path}"


def nested(part: str, path: str) -> str:
    """PEFT's names with the part of a pipeline before them."""
    return f"{part}.{peft(part, path)}"
