"""A separate process that makes training steps and prints their time and peak memory.

python -m benchmarks.step '{"base": "wide64", "resolution": 256, "batch": 1, "precision": "fp32"}'
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import BUNDLED
from benchmarks.bases import random_part, write_wide
from trainer.adapter.lora import Adapter
from trainer.adapter.targets import layer_specs, linear_paths, parameter_groups
from trainer.config import TrainConfig
from trainer.hardware.activation_checkpointing import enable_activation_checkpointing
from trainer.hardware.compile import compile_blocks
from trainer.hardware.device import find_device, resolve_dtype
from trainer.planning.budget import matmul_rate, peak_bytes
from trainer.sdxl.base import ORIGINAL, open_base
from trainer.training.optim import build_optimizer


@dataclass(frozen=True, kw_only=True)
class Case:
    """Subject of a measurement."""

    base: str  # bundled, wide64 or sdxl
    resolution: int
    batch: int = 1
    precision: str = "fp32"
    level: str = "none"  # of recomputation
    compile: str = ""  # a mode of torch.compile; empty: none
    feed_forward: bool = False  # adapts them too: 722 modules of SDXL, as kohya; 560 without
    # or "peft": diffusers' UNet with PEFT's adapter and the step of diffusers' training script
    way: str = "impasto"
    steps: int = 5
    folder: str = "outputs/.cache/benchmarks"  # where bases are written

    @property
    def words(self) -> str:
        """The case in words, as tables show it."""
        more = [f"{self.level} recomputed"] * (self.level != "none") + [f"compiled {self.compile}"] * bool(
            self.compile
        )
        more += ["feed-forward too"] * self.feed_forward
        more += ["by PEFT"] * (self.way == "peft")
        return ", ".join([f"{self.base} {self.resolution} px, batch {self.batch}, {self.precision}", *more])

    @property
    def configs(self) -> Path:
        """Folder of the base, which is created if it is missing."""
        if self.base == "sdxl":
            return ORIGINAL
        return (
            BUNDLED
            if self.base == "bundled"
            else write_wide(Path(self.folder), int(self.base.removeprefix("wide")))
        )

    @property
    def settings(self) -> TrainConfig:
        """Settings of the training."""
        return TrainConfig(
            batch=self.batch,
            rank=16,
            alpha=16.0,
            gradient_checkpointing=self.level,
            train_feed_forward=self.feed_forward,
        )


class Steps:
    """Training steps of a UNet with its adapter, on random inputs."""

    def __init__(self, case: Case) -> None:
        self.case, self.device = case, find_device()
        self.dtype = resolve_dtype(case.precision, self.device)
        if case.base == "sdxl":
            self.unet: Any = random_part("unet", ORIGINAL, self.device, self.dtype)
        else:
            self.unet = open_base(case.configs.name, case.configs.parent).unet(self.device, self.dtype)
        self.inputs = self._inputs()
        self.prepare()

    def prepare(self) -> None:
        """Attaches the adapter and creates the optimizer."""
        case, self.unet = self.case, self.unet.to(memory_format=torch.channels_last)
        self.adapter = Adapter()
        self.adapter.attach("unet", self.unet, layer_specs(case.settings, {"unet": self.unet})["unet"])
        self.adapter.init_weights(0)
        enable_activation_checkpointing(self.unet, case.level)
        if case.compile:
            compile_blocks(self.unet, Path(case.folder) / "compiled", mode=case.compile)
        groups = parameter_groups(case.settings, self.adapter)
        self.optimizer = build_optimizer(case.settings, groups, self.device)
        self.adapter.zero_grad()

    def _inputs(self) -> dict[str, Any]:
        facts, rows, side = self.unet.config, self.case.batch, self.case.resolution // 8
        pooled = facts.projection_class_embeddings_input_dim - 6 * facts.addition_time_embed_dim
        draw = torch.Generator().manual_seed(0)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=draw).to(self.device, self.dtype)

        return {
            "sample": random(rows, 4, side, side),
            "timestep": torch.full((rows,), 500, device=self.device),
            "encoder_hidden_states": random(rows, 77, facts.cross_attention_dim),
            "added_cond_kwargs": {"text_embeds": random(rows, pooled), "time_ids": random(rows, 6)},
        }

    def step(self) -> torch.Tensor:
        """Does one training step and returns its loss."""
        if self.case.compile == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        loss = self.unet(**self.inputs).sample.float().square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.adapter.vectors(), 1.0)
        self.optimizer.step()
        self.adapter.mark_dirty()
        self.adapter.zero_grad()
        return loss.detach()

    def seconds(self) -> dict[str, Any]:
        """Returns the seconds of the first step, and the median and all times of `steps` later ones."""
        begun = time.perf_counter()
        float(self.step())
        first = time.perf_counter() - begun
        float(self.step())
        times = []
        for _ in range(self.case.steps):
            begun = time.perf_counter()
            float(self.step())
            times.append(time.perf_counter() - begun)
        return {"first": first, "seconds": statistics.median(times), "all": times}


class PeftSteps(Steps):
    """Steps of diffusers' `train_text_to_image_lora_sdxl.py` with PEFT's adapter.

    Outputs of the VAE and the text encoders are cached, which that script does not do.
    """

    def prepare(self) -> None:
        """Adds PEFT's adapter and creates the optimizer."""
        from peft import LoraConfig

        self.unet.requires_grad_(False)
        settings = self.case.settings
        targets = linear_paths("unet", self.unet, feed_forward=self.case.feed_forward)
        self.unet.add_adapter(
            LoraConfig(
                r=settings.rank,
                lora_alpha=int(settings.alpha),
                init_lora_weights="gaussian",
                target_modules=targets,
            )
        )
        self.masters = [weight for weight in self.unet.parameters() if weight.requires_grad]
        for weight in self.masters:
            weight.data = weight.data.float()
        if self.case.level == "all":
            self.unet.enable_gradient_checkpointing()
        self.unet.train()
        self.optimizer = torch.optim.AdamW(self.masters, lr=settings.learning_rate)

    def step(self) -> torch.Tensor:
        """Does one training step under autocast and returns its loss."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.unet(**self.inputs).sample.float().square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def measure(case: Case) -> dict[str, Any]:
    """Measures a case.

    Returns:
        Median `seconds` of a step, `all` times, seconds of the `first` step, `peak` memory in bytes, and
        `rate`, the FLOPs of a matrix product in a second.
    """
    steps = PeftSteps(case) if case.way == "peft" else Steps(case)
    found = steps.seconds()
    return {**found, "peak": peak_bytes(steps.device), "rate": matmul_rate(steps.device, steps.dtype)}


def case_from(text: str) -> Case:
    """Returns the case of a JSON text; unknown fields are ignored."""
    return Case(
        **{
            name: value
            for name, value in json.loads(text).items()
            if name in {f.name for f in dataclasses.fields(Case)}
        }
    )


if __name__ == "__main__":
    print(json.dumps(measure(case_from(sys.argv[1]))))
