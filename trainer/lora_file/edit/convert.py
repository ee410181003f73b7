"""Conversion of LoRA files between three formats that hold the same change.

kohya            lora_unet_input_blocks_4_1_..._to_q.lora_down.weight             original blocks; every tool
kohya-diffusers  lora_unet_down_blocks_1_attentions_0_..._to_q.lora_down.weight   diffusers' blocks
diffusers        unet.down_blocks.1.attentions.0.….to_q.lora_A.weight             PEFT; the scale is in lora_B
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save

from trainer.atomic_files import write_atomically
from trainer.errors import LoraFileError
from trainer.lora_file.folded_scale import folded, narrowest, with_one_alpha
from trainer.lora_file.metadata import network_metadata, with_hashes
from trainer.lora_file.module_names import PREFIX, diffusers_name, kohya_name
from trainer.lora_file.modules import LoraFile, LoraModule
from trainer.lora_file.reader import read_modules
from trainer.lora_file.scales import METADATA_KEY
from trainer.lora_file.tensor_names import ALPHA, DORA, DOWN, MID, suffix_of


@dataclass(frozen=True)
class Converted:
    """The file that was read, and the types of matrices that need another one in the new file."""

    source: LoraFile
    widened: Mapping[str, int]  # number of tensors by their new dtype, such as float32

    def notice(self) -> str:
        """A sentence about the types, or ""."""
        counts = ", ".join(f"{count} in {dtype}" for dtype, count in self.widened.items())
        return f"matrices with the scale multiplied in keep the change only in a wider type: {counts}" * bool(
            counts
        )


def convert(source: Path, out: Path, form: str, *, overwrite: bool = False) -> Converted:
    """Writes `source` in the format `form`, with its metadata and new hashes.

    Raises:
        LoraFileError: the file can't be read, the format can't hold it, or `out` exists.
    """
    expect_free(out, overwrite)
    file = read_modules(source)
    tensors = tensors_of(file.modules, form, source.name)
    write_lora(
        out, tensors, {**file.metadata, **network_metadata(file.modules, file.metadata)}, overwrite=overwrite
    )
    own = {
        tensor.dtype for module in file.modules for role, tensor in module.tensors.items() if role != ALPHA
    }
    new = Counter(tensor.dtype for key, tensor in tensors.items() if not key.endswith(suffix_of(ALPHA)))
    return Converted(
        file, {str(dtype).removeprefix("torch."): new[dtype] for dtype in new if dtype not in own}
    )


def tensors_of(modules: Iterable[LoraModule], form: str, source: str) -> dict[str, torch.Tensor]:
    """Tensors by their name in the format `form`. Raises LoraFileError where that can't hold a module."""
    if form == "diffusers":
        return {key: tensor for module in modules for key, tensor in _diffusers_tensors(module, source)}
    name_of = _original_blocks if form == "kohya" else _diffusers_blocks
    return {
        name_of(module) + suffix_of(role): (tensor.reshape(()) if role == ALPHA else tensor).contiguous()
        for module in with_one_alpha(modules)
        for role, tensor in module.tensors.items()
    }


def _original_blocks(module: LoraModule) -> str:
    """kohya's name with the block numbers of the original checkpoint."""
    if module.path == "text_projection":
        return f"{PREFIX[module.part]}{module.path}"
    return kohya_name(module.part, module.path)


def _diffusers_blocks(module: LoraModule) -> str:
    """kohya's name with the blocks of diffusers."""
    if module.part == "unet":
        return PREFIX["unet"] + module.path.replace(".", "_")
    return _original_blocks(module)


def _diffusers_tensors(module: LoraModule, source: str) -> list[tuple[str, torch.Tensor]]:
    """(name, tensor) pairs of a LoRA or DoRA module in PEFT's form."""
    is_tucker = MID in module.tensors
    module = module.as_lora()
    if module.network not in ("lora", "dora"):
        raise LoraFileError(_no_diffusers_form(module, source))
    name = (
        f"{module.part}.{module.path}"
        if module.path == "text_projection"
        else diffusers_name(module.part, module.path)
    )
    up, down = folded(module, module.scale), module.tensors[DOWN]
    if not module.kernel:  # kohya's scripts may write a linear layer as a 1 x 1 convolution
        up, down = up.flatten(1), down.flatten(1)
    if is_tucker:  # the transposes swap the roles: the error of down up is that of up down
        down = narrowest(down.flatten(1).T, up.flatten(1).T, up.dtype).T.reshape(down.shape)
    tensors = [(f"{name}.lora_A.weight", down.contiguous()), (f"{name}.lora_B.weight", up.contiguous())]
    if module.network == "dora":
        length = module.tensors[DORA]
        if length.numel() != up.shape[0] or length.shape[0] != up.shape[0]:
            raise LoraFileError(
                f"{source} holds a DoRA with a length for each input ({module.part}.{module.path}), and "
                "diffusers reads one for each output; make it a LoRA with: lora resize --base BASE"
            )
        # PEFT's shapes: (O,) of a linear layer, (1, O, 1, 1) of a convolution.
        shape = (1, -1, *[1] * len(module.kernel)) if module.kernel else (-1,)
        tensors.append((f"{name}.lora_magnitude_vector", length.reshape(shape).contiguous()))
    return tensors


def _no_diffusers_form(module: LoraModule, source: str) -> str:
    """A sentence for a module that diffusers' files have no form for, with what to do."""
    if module.network is None:
        return f"{source}: {module.unsupported()}"
    base = " --base BASE" if module.is_decomposed else ""
    return (
        f"{source} holds a {module.kind} ({module.part}.{module.path}), for which diffusers' files have no "
        f"form; convert it to kohya, or make it a LoRA with: lora resize{base} --energy 1"
    )


def expect_free(out: Path, overwrite: bool) -> None:
    """Raises LoraFileError, before any work, where `out` can't be written."""
    if out.suffix != ".safetensors":
        raise LoraFileError(f"{out.name} must end in .safetensors; other tools look for that")
    if out.is_dir() or (out.exists() and not overwrite):
        raise LoraFileError(f"{out} exists; choose another name, or add --overwrite")


def write_lora(
    out: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], *, overwrite: bool
) -> None:
    """Writes a LoRA file completely or not at all, with hashes of its tensors.

    Raises:
        LoraFileError: `out` can't be written, or a value does not fit its dtype.
    """
    expect_free(out, overwrite)
    for key, tensor in tensors.items():
        if not bool(torch.isfinite(tensor.float()).all()):
            raise LoraFileError(
                f"{key} does not fit {str(tensor.dtype).removeprefix('torch.')}, so {out.name} was not "
                "written; start from files in fp32"
            )
    # The scale is beside or in the matrices now, and diffusers refuses this entry beside .alpha.
    entries = {key: value for key, value in metadata.items() if key != METADATA_KEY}
    out.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensors[key] for key in sorted(tensors)}
    write_atomically(out, save(tensors, with_hashes(tensors, entries)))
