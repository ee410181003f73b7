"""Numbers of one combination of settings and shapes, each traced when it is first needed and kept on disk.

<cache>/plans/<sha256 of settings and shapes>.json      {"base, none": 5135000000, "adapter, adamw": 93000000}
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.atomic_files import write_atomically
from trainer.config import TrainConfig
from trainer.planning import memory
from trainer.planning.memory import WorkloadShape
from trainer.sdxl.weight_files import PARTS

VERSION = 6  # raised when a number is traced in another way, so that older files are ignored

# Groups of settings that change the numbers, and settings of these groups that don't or are part of a
# number's key.
_GROUPS = ("training", "adapter", "optimizer")
_IRRELEVANT = (
    "steps",
    "learning_rate",
    "memory_budget",
    "gradient_checkpointing",
    "quantised_base",
    "optimizer",
    "text_encoder_stop",
)


@dataclass(frozen=True)
class MeasurementKey:
    """One number: its quantity, and the option that it depends on beside the settings and shapes."""

    quantity: str
    option: str | int = ""

    @property
    def stored_name(self) -> str:
        """The key in the file; existing files contain these names."""
        return f"{self.quantity}, {self.option}" if self.option != "" else self.quantity


class Measurements:
    """Bytes, operations and calls of a workload.

    Args:
        folder: the folder of caches; None keeps nothing on disk.
    """

    def __init__(self, config: TrainConfig, shape: WorkloadShape, folder: Path | None) -> None:
        self.config, self.shape = config, shape
        self.path = folder / "plans" / f"{_digest(config, shape)}.json" if folder else None
        self._numbers: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):  # no file yet, or a damaged one
            if self.path:
                stored = json.loads(self.path.read_text())
                self._numbers = {str(name): int(value) for name, value in stored.items()}

    def _number(self, key: MeasurementKey, trace: Callable[[], dict[MeasurementKey, int]]) -> int:
        """Returns the number of a key; `trace` computes it, with others that the same trace yields."""
        if key.stored_name not in self._numbers:
            self._numbers |= {found.stored_name: number for found, number in trace().items()}
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self.path, json.dumps(self._numbers).encode())
        return self._numbers[key.stored_name]

    def _single(self, quantity: str, trace: Callable[[], int], option: str | int = "") -> int:
        """Returns a number that has a trace of its own."""
        key = MeasurementKey(quantity, option)
        return self._number(key, lambda: {key: trace()})

    def base_bytes(self, quantised: str) -> int:
        """Returns the bytes of the frozen models in a precision, one of `config.QUANTISED`."""
        return self._single(
            "base", lambda: memory.build_frozen(self.config, self.shape, quantised)[0], quantised
        )

    def adapter_bytes(self, optimizer: str) -> int:
        """Returns the bytes of master weights and the state of an optimizer."""
        return self._number(MeasurementKey("adapter", optimizer), lambda: self._trace_adapter(optimizer))

    def file_bytes(self) -> int:
        """Returns the size of the LoRA file, without metadata."""
        return self._number(MeasurementKey("file"), lambda: self._trace_adapter(self.config.optimizer))

    def _trace_adapter(self, optimizer: str) -> dict[MeasurementKey, int]:
        adapter = memory.build_frozen(self.config, self.shape)[1]
        return {
            MeasurementKey("adapter", optimizer): memory.adapter_bytes(self.config, adapter, optimizer),
            MeasurementKey("file"): memory.file_bytes(adapter),
        }

    def activation_bytes(self, level: str) -> int:
        """Returns the bytes of a step's activations at a level of activation checkpointing."""
        return self._number(MeasurementKey(level), lambda: self._trace_step(level))

    def gradient_bytes(self, level: str) -> int:
        """Returns the bytes of gradients, and of master weights in the base's precision."""
        return self._number(MeasurementKey("stays", level), lambda: self._trace_step(level))

    def step_calls(self, level: str) -> int:
        """Returns the operations that one step calls."""
        return self._number(MeasurementKey("calls", level), lambda: self._trace_step(level))

    def _trace_step(self, level: str) -> dict[MeasurementKey, int]:
        step = memory.trace_step(self.config, self.shape, level)
        return {
            MeasurementKey(level): step.passing,
            MeasurementKey("stays", level): step.staying,
            MeasurementKey("calls", level): step.calls,
        }

    def layer_bytes(self) -> int:
        """Returns the bytes of the largest layer that a quantised base dequantises."""
        return self._single("layer", lambda: memory.layer_bytes(self.shape))

    def encoding_bytes(self, *, in_tiles: bool) -> int:
        """Returns the peak of the VAE's activations for one training image."""
        name = "encoding in tiles" if in_tiles else "encoding"
        return self._single(name, lambda: memory.encoding_bytes(self.shape, in_tiles=in_tiles))

    def text_encoding_bytes(self) -> int:
        """Returns the bytes of both text encoders with the activations of one caption."""
        return self._single("reading", lambda: memory.text_encoding_bytes(self.shape))

    def vae_bytes(self) -> int:
        """Returns the bytes of the VAE's weights."""
        return self._single("vae", lambda: memory.weight_bytes(memory.build("vae", self.shape.configs)))

    def denoising_bytes(self, rows: int) -> int:
        """Returns the peak of the UNet's activations for `rows` samples at once."""
        return self._single("denoising", lambda: memory.denoising_bytes(self.shape, rows), rows)

    def decoding_bytes(self, *, in_tiles: bool) -> int:
        """Returns the peak of the VAE's activations for one sample."""
        name = "decoding in tiles" if in_tiles else "decoding"
        return self._single(name, lambda: memory.decoding_bytes(self.shape, in_tiles=in_tiles))

    def step_flops(self) -> int:
        """Returns the floating point operations of one step."""
        return self._single("flops", lambda: memory.step_flops(self.shape, self.config.batch))

    def sampling_flops(self) -> int:
        """Returns the floating point operations of one forward pass for one sample."""
        return self._single("drawing flops", lambda: memory.step_flops(self.shape.drawing, 1) // 2)


def _digest(config: TrainConfig, shape: WorkloadShape) -> str:
    """Returns the hash of all that changes the numbers: settings, shapes and the base's configuration."""
    counting = [field.name for field in dataclasses.fields(config) if field.metadata["group"] in _GROUPS]
    settings = {name: getattr(config, name) for name in counting if name not in _IRRELEVANT}
    # Existing files are named after the representation of a class that was called Shape; the name is kept on
    # disk.
    shapes = repr(dataclasses.replace(shape, configs=Path(), drawn_rows=0)).replace(
        "WorkloadShape", "Shape", 1
    )
    base = "".join((shape.configs / part / "config.json").read_text(encoding="utf-8") for part in PARTS)
    return hashlib.sha256(f"({VERSION!r}, {settings!r}, {shapes}, {base!r})".encode()).hexdigest()
