"""One adapted layer, and the adapter: all adapted layers of a model with a strength for each batch row.

Shapes: N rows of the batch, T tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


class Strength:
    """How much of the change is applied; shared by all layers of an adapter.

    A number for all rows, or a tensor (N,) with one strength per batch row.
    """

    def __init__(self) -> None:
        self.value: float | torch.Tensor = 1.0

    def scaled(self, hidden_NTR: torch.Tensor, scale: float) -> torch.Tensor:
        if isinstance(self.value, torch.Tensor):
            rows = self.value.to(hidden_NTR.dtype) * scale
            return hidden_NTR * rows.view(-1, *[1] * (hidden_NTR.dim() - 1))
        factor = self.value * scale
        return hidden_NTR if factor == 1.0 else hidden_NTR * factor


class LoraLinear(nn.Module):
    """A frozen linear layer plus strength * (alpha / rank) * B A x.

    A and B are fp32 masters; the product runs in the dtype of the base, and their gradients come back as fp32.
    """

    def __init__(self, base: nn.Linear, *, rank: int, alpha: float, strength: Strength) -> None:
        super().__init__()
        self.base = base
        self.rank, self.alpha, self.strength = rank, alpha, strength
        device = base.weight.device
        self.down = nn.Parameter(torch.empty(rank, base.in_features, device=device, dtype=torch.float32))  # A (R, I)
        # B starts at zero, so that step 0 equals the base model.
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, device=device, dtype=torch.float32))  # B (O, R)

    def start(self, generator: torch.Generator) -> None:
        """A from the uniform distribution that PEFT and kohya use: Kaiming with a = sqrt(5)."""
        bound = 1 / math.sqrt(self.base.in_features)
        start = torch.empty(self.down.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            self.down.copy_(start)

    def forward(self, x_NTI: torch.Tensor) -> torch.Tensor:
        hidden_NTR = F.linear(x_NTI, self.down.to(x_NTI.dtype))
        hidden_NTR = self.strength.scaled(hidden_NTR, self.alpha / self.rank)
        return self.base(x_NTI) + F.linear(hidden_NTR, self.up.to(x_NTI.dtype))


@dataclass(frozen=True, kw_only=True)
class Size:
    rank: int
    alpha: float


class Adapter:
    """Every adapted layer, by part (`unet`, `text_encoder`, `text_encoder_2`) and module path.

    `attach` puts it into a model in place; the model's own weights are frozen and never written.
    """

    def __init__(self) -> None:
        self.layers: dict[str, dict[str, LoraLinear]] = {}
        self.strength = Strength()

    def attach(self, part: str, model: nn.Module, sizes: dict[str, Size]) -> None:
        """Adapts the linear layers of `model` at the paths of `sizes`."""
        model.requires_grad_(False)
        adapted = self.layers.setdefault(part, {})
        for path, size in sizes.items():
            linear = model.get_submodule(path)
            assert isinstance(linear, nn.Linear), f"{path} is {type(linear).__name__}"
            layer = LoraLinear(linear, rank=size.rank, alpha=size.alpha, strength=self.strength)
            model.set_submodule(path, layer)
            adapted[path] = layer

    def detach(self, part: str, model: nn.Module) -> None:
        """Gives the model its own layers back."""
        for path, layer in self.layers.pop(part, {}).items():
            model.set_submodule(path, layer.base)

    def start(self, seed: int) -> None:
        """First values, the same on every machine: drawn on the CPU in order of name."""
        generator = torch.Generator().manual_seed(seed)
        for _, _, layer in self.walk():
            layer.start(generator)

    def walk(self) -> Iterator[tuple[str, str, LoraLinear]]:
        """(part, path, layer), in order of name."""
        for part in sorted(self.layers):
            for path in sorted(self.layers[part]):
                yield part, path, self.layers[part][path]

    def parameters(self, part: str | None = None) -> list[nn.Parameter]:
        chosen = [layer for owner, _, layer in self.walk() if part in (None, owner)]
        return [p for layer in chosen for p in (layer.down, layer.up)]

    def tensors(self) -> dict[str, torch.Tensor]:
        """`part/path.down` and `.up` on the CPU, fp32: what a checkpoint keeps."""
        return {
            f"{part}/{path}.{name}": tensor.detach().cpu().clone()
            for part, path, layer in self.walk()
            for name, tensor in (("down", layer.down), ("up", layer.up))
        }

    @torch.no_grad()
    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Puts back what `tensors()` gave. A key too many or too few is a KeyError."""
        expected = {f"{part}/{path}.{name}" for part, path, _ in self.walk() for name in ("down", "up")}
        if expected != set(tensors):
            raise KeyError(f"{len(expected ^ set(tensors))} tensors do not match this adapter")
        for part, path, layer in self.walk():
            layer.down.copy_(tensors[f"{part}/{path}.down"])
            layer.up.copy_(tensors[f"{part}/{path}.up"])
