"""Names, dtypes and shapes of the tensors that each network writes for true SDXL, without its weights.

One line a module, as kohya's format has it:

    lora_te1_text_model_encoder_layers_0_mlp_fc1  .alpha F16 []  .lora_down.weight F16 [8, 768]  ...
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_BOTH_ENCODERS = {"train_text_encoder_1": True, "train_text_encoder_2": True}
LISTS: dict[str, dict[str, Any]] = {
    "lora": _BOTH_ENCODERS,
    "lora-feed-forward": {"train_feed_forward": True},
    "locon": _BOTH_ENCODERS | {"network": "locon"},
    "dora": _BOTH_ENCODERS | {"network": "dora"},
    "loha": _BOTH_ENCODERS | {"network": "loha"},
    "lokr": _BOTH_ENCODERS | {"network": "lokr"},
}


def kohya_tensors_of(settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a file for true SDXL, with arbitrary values.

    The only function of the golden tests that imports modules of the trainer.
    """
    from trainer.adapter.lora import Adapter
    from trainer.adapter.targets import layer_specs
    from trainer.config import TrainConfig
    from trainer.lora_file.writer import kohya_tensors
    from trainer.sdxl.base import ORIGINAL
    from trainer.sdxl.weights import build

    parts = ("unet", "text_encoder", "text_encoder_2")
    models = {part: build(part, ORIGINAL) for part in parts}
    adapter = Adapter()
    for part, sizes in layer_specs(
        TrainConfig(rank=4, alpha=4.0, conv_rank=4, conv_alpha=4.0, **settings), models
    ).items():
        place_on_cpu(models[part], list(sizes))
        adapter.attach(part, models[part], sizes)
    return kohya_tensors(adapter)


def place_on_cpu(model: nn.Module, paths: list[str]) -> None:
    """Gives layers on the meta device a weight on the CPU that is one zero, expanded: it takes no memory."""
    for path in paths:
        layer: Any = model.get_submodule(path)
        layer.weight = nn.Parameter(torch.zeros(()).expand(layer.weight.shape), requires_grad=False)


def key_list(settings: dict[str, Any]) -> str:
    """One line for each module, in order of name, with the ending, dtype and shape of each of its tensors."""
    modules: dict[str, list[str]] = {}
    for key, tensor in sorted(kohya_tensors_of(settings).items()):
        module, dot, ending = key.partition(".")
        dtype = {torch.float16: "F16", torch.float32: "F32"}[tensor.dtype]
        modules.setdefault(module, []).append(f"{dot}{ending} {dtype} {list(tensor.shape)}")
    return "".join(f"{module}  {'  '.join(tensors)}\n" for module, tensors in sorted(modules.items()))
