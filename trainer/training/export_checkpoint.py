"""A checkpoint of a training as the LoRA file that the training would have written at that step; the base stays on disk."""

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
from trainer.lora_file.modules import Module, alpha_tensor
from trainer.lora_file.tensor_names import ALPHA, DORA, suffix_of
from trainer.lora_file.writer import verify
from trainer.runs.run import Run
from trainer.sdxl.base import open_base
from trainer.sdxl.weights import build
from trainer.training.checkpoint import read_adapter

_STAY = (suffix_of(ALPHA), suffix_of(DORA))  # as they are: a number, and magnitudes that fp16 would move


def export_checkpoint(run: Run, step: int, out: Path, models: Path) -> None:
    """Writes the weights of `checkpoints/step-N` to `out`, whole or not at all, reads them back and compares.

    Raises:
        RunError: the checkpoint is not there any more, or damaged.
        LoraFileError: its values do not fit fp16.
    """
    config = run.config
    try:
        _, tensors = read_adapter(run.checkpoints / f"step-{step}")
    except (OSError, ValueError, KeyError, SafetensorError):
        raise RunError(f"the checkpoint of step {step} can't be read any more; choose another") from None
    found = tensors_of(_modules(config, tensors, models), config.format, out.name)
    halved = {key: tensor if key.endswith(_STAY) else tensor.half() for key, tensor in found.items()}
    write_lora(out, halved, _facts(run, config, step, out.stem), overwrite=True)
    verify(out, halved)


def _modules(config: TrainConfig, tensors: dict[str, torch.Tensor], models: Path) -> list[Module]:
    base = open_base(config.base, models)
    sizes = layer_specs(config, {part: build(part, base.configs) for part in part_specs(config)})
    roles: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        place, _, role = name.rpartition(".")
        roles.setdefault(place, {})[role] = tensor
    return [
        Module(part, path, {**roles[f"{part}/{path}"], ALPHA: alpha_tensor(size.alpha)})
        for part, paths in sizes.items()
        for path, size in paths.items()
    ]


def _facts(run: Run, config: TrainConfig, step: int, name: str) -> dict[str, str]:
    """Those of the training's own file, when it has one, with this step."""
    facts = dict(recognise(run.lora_file).metadata) if run.lora_file.is_file() else {}
    facts |= {
        "format": "pt",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_v2": "False",
        "ss_output_name": name,
        "ss_steps": str(step),
    }
    batches = facts.get("ss_num_batches_per_epoch", "")
    if batches.isdecimal() and int(batches):
        facts["ss_epoch"] = str(math.ceil(step * config.accumulation / int(batches)))
    return facts
