"""From modules to a file of one of three spellings, all of which carry the same change.

kohya            lora_unet_input_blocks_4_1_..._attn1_to_q.lora_down.weight            the original checkpoint's blocks; every tool
kohya-diffusers  lora_unet_down_blocks_1_attentions_0_..._attn1_to_q.lora_down.weight  diffusers' blocks
diffusers        unet.down_blocks.1.attentions.0.….attn1.to_q.lora_A.weight            PEFT; no alpha, its scale is in lora_B
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from trainer.atomic_files import write_atomically
from trainer.errors import LoraFileError
from trainer.lora_file.metadata import network_metadata, with_hashes
from trainer.lora_file.module_names import PREFIX, diffusers_name, kohya_name
from trainer.lora_file.modules import LoraFile, Module, with_one_alpha
from trainer.lora_file.reader import read_modules
from trainer.lora_file.tensor_names import ALPHA, DORA, DOWN, UP, suffix_of


def convert(source: Path, out: Path, form: str, *, overwrite: bool = False) -> LoraFile:
    """Writes `source` in another spelling, its metadata kept and its hashes renewed. Raises LoraFileError."""
    expect_free(out, overwrite)
    file = read_modules(source)
    tensors = tensors_of(file.modules, form, source.name)
    write_lora(
        out, tensors, {**file.metadata, **network_metadata(file.modules, file.metadata)}, overwrite=overwrite
    )
    return file


def tensors_of(modules: Iterable[Module], form: str, source: str) -> dict[str, torch.Tensor]:
    """Every tensor under its key in `form`. Raises LoraFileError for what the form can't say."""
    if form == "diffusers":
        return {key: tensor for module in modules for key, tensor in _diffusers_tensors(module, source)}
    name_of = _original_blocks if form == "kohya" else _diffusers_blocks
    return {
        name_of(module) + suffix_of(role): (tensor.reshape(()) if role == ALPHA else tensor).contiguous()
        for module in with_one_alpha(modules)
        for role, tensor in module.tensors.items()
    }


def _original_blocks(module: Module) -> str:
    if module.path == "text_projection":
        return f"{PREFIX[module.part]}{module.path}"
    return kohya_name(module.part, module.path)


def _diffusers_blocks(module: Module) -> str:
    if module.part == "unet":
        return PREFIX["unet"] + module.path.replace(".", "_")
    return _original_blocks(module)


def _diffusers_tensors(module: Module, source: str) -> list[tuple[str, torch.Tensor]]:
    if module.network not in ("lora", "dora"):
        raise LoraFileError(
            f"{source} holds a {module.kind} ({module.part}.{module.path}), for which diffusers' files have no form; "
            "convert it to kohya, or make it a LoRA with: lora resize"
        )
    name = (
        f"{module.part}.{module.path}"
        if module.path == "text_projection"
        else diffusers_name(module.part, module.path)
    )
    up = module.tensors[UP]
    if module.scale != 1:
        up = (up.float() * module.scale).to(up.dtype)
    found = [
        (f"{name}.lora_A.weight", module.tensors[DOWN].contiguous()),
        (f"{name}.lora_B.weight", up.contiguous()),
    ]
    if module.network == "dora":
        lengths = module.tensors[DORA]
        if up.dim() != 2 or lengths.shape != (up.shape[0], 1):
            raise LoraFileError(
                f"{source} holds a DoRA whose lengths are {tuple(lengths.shape)} ({module.part}.{module.path}); diffusers knows "
                "only one length for each output of a linear layer: bake the file into its base instead"
            )
        found.append((f"{name}.lora_magnitude_vector", lengths.reshape(-1).contiguous()))
    return found


def expect_free(out: Path, overwrite: bool) -> None:
    """Raises LoraFileError before the work when `out` can't be written."""
    if out.suffix != ".safetensors":
        raise LoraFileError(f"{out.name} must end in .safetensors; other tools look for that")
    if out.is_dir() or (out.exists() and not overwrite):
        raise LoraFileError(f"{out} is there already; choose another name, or add --overwrite")


def write_lora(
    out: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, str], *, overwrite: bool
) -> None:
    """Writes a LoRA file whole or not at all, with hashes of its own tensors. Raises LoraFileError."""
    expect_free(out, overwrite)
    for key, tensor in tensors.items():
        if not bool(torch.isfinite(tensor.float()).all()):
            raise LoraFileError(
                f"{key} does not fit {str(tensor.dtype).removeprefix('torch.')}, so {out.name} was not written; start from files in fp32"
            )
    # PEFT's configuration of the source: its alphas are in the matrices now, and diffusers refuses it beside .alpha.
    kept = {key: value for key, value in facts.items() if key != "lora_adapter_metadata"}
    out.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensors[key] for key in sorted(tensors)}
    write_atomically(out, save(tensors, with_hashes(tensors, kept)))
