"""Counts of operations and floating point operations on the meta device, which has shapes and no memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from trainer.adapter.lora import Adapter
from trainer.config import TrainConfig
from trainer.planning.memory import WorkloadShape, attach_to_meta, meta_unet, predict_on_meta
from trainer.planning.tracer import counting_fused_attention

# Operations that allocate memory and launch no kernel.
_ROOM = {"detach", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}


class Launches(TorchDispatchMode):
    """Counter of operations that launch a kernel on a GPU: all except views and allocations.

    Attributes:
        by_name: number of calls for each operation's name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Number of all calls."""
        return self.by_name.total()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if not (function.is_view or name in _ROOM):
            self.by_name[name] += 1
        return function(*args, **(kwargs or {}))


def step_on_shapes(config: TrainConfig, shape: WorkloadShape) -> tuple[Callable[[], torch.Tensor], Adapter]:
    """Returns (function that computes the loss of a batch, adapter), ready for the first step."""
    unet = meta_unet(shape.configs, shape.dtype)
    adapter = attach_to_meta(config, {"unet": unet})
    adapter.zero_grad()
    return lambda: predict_on_meta(unet, shape, config.batch).float().square().mean(), adapter


def launches_of_step(config: TrainConfig, shape: WorkloadShape) -> tuple[int, Counter[str]]:
    """Returns (operations of the forward pass, counts of forward and backward pass for each operation)."""
    loss_of, _ = step_on_shapes(config, shape)
    with counting_fused_attention(), Launches() as counted:
        loss = loss_of()
        forward = counted.total
        loss.backward()
    return forward, counted.by_name


def flops_of_step(config: TrainConfig, shape: WorkloadShape) -> tuple[int, int]:
    """Returns the FLOPs (of the frozen UNet's forward pass for one image, of a step of the batch)."""
    loss_of, adapter = step_on_shapes(config, shape)
    with FlopCounterMode(display=False) as step:
        loss_of().backward()
    adapter.strength.value = 0.0  # the frozen layers alone
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        loss_of()
    return forward.get_total_flops() // config.batch, step.get_total_flops()
