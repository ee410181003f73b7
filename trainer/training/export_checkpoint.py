"""A checkpoint of a training as the LoRA file that the training would have written at that step.

Only the shapes of the base model are needed, so its weights stay on disk.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import SafetensorError

from trainer.adapter.targets import layer_specs, part_specs
from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.headers.lora import recognise
from trainer.lora_file.edit.convert import tensors_of, write_lora
from trainer.lora_file.modules import ALPHA, DORA, LoraModule, alpha_tensor
from trainer.lora_file.tensor_names import suffix_of
from trainer.lora_file.writer import verify
from trainer.runs.run import Run
from trainer.sdxl.base import open_base
from trainer.sdxl.weights import build
from trainer.training.checkpoint import read_adapter

# Tensors that stay fp32: alpha is a single number, and DoRA's magnitudes would change in fp16.
_STAY = (suffix_of(ALPHA), suffix_of(DORA))


def export_checkpoint(run: Run, step: int, out: Path, models: Path) -> None:
    """Writes the weights of `checkpoints/step-N` to `out`, complete or not at all, and verifies the file.

    Raises:
        RunError: the checkpoint is missing or damaged.
        LoraFileError: its values do not fit fp16.
    """
    config = run.config
    try:
        tensors = read_adapter(run.checkpoints / f"step-{step}")
    except (OSError, ValueError, KeyError, SafetensorError):
        raise RunError(f"the checkpoint of step {step} can't be read any more; choose another") from None
    full = tensors_of(_modules(config, tensors, models), config.format, out.name)
    halved = {key: tensor if key.endswith(_STAY) else tensor.half() for key, tensor in full.items()}
    write_lora(out, halved, _metadata(run, config, step, out.stem), overwrite=True)
    verify(out, halved)


def _modules(config: TrainConfig, tensors: dict[str, torch.Tensor], models: Path) -> list[LoraModule]:
    base = open_base(config.base, models)
    sizes = layer_specs(config, {part: build(part, base.configs) for part in part_specs(config)})
    roles: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, role = name.rpartition(".")
        roles.setdefault(layer, {})[role] = tensor
    return [
        LoraModule(part, path, {**roles[f"{part}/{path}"], ALPHA: alpha_tensor(size.alpha)})
        for part, paths in sizes.items()
        for path, size in paths.items()
    ]


def _metadata(run: Run, config: TrainConfig, step: int, name: str) -> dict[str, str]:
    """Returns the metadata of the training's own file, where there is one, with this step and name."""
    metadata = dict(recognise(run.lora_file).metadata) if run.lora_file.is_file() else {}
    metadata |= {
        "format": "pt",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_v2": "False",
        "ss_output_name": name,
        "ss_steps": str(step),
    }
    batches = metadata.get("ss_num_batches_per_epoch", "")
    if batches.isdecimal() and int(batches):
        metadata["ss_epoch"] = str(math.ceil(step * config.accumulation / int(batches)))
    return metadata
