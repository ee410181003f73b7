"""The base that the change of a DoRA depends on, opened when the first module needs it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import torch

from trainer.errors import LoraFileError
from trainer.lora_file.base_weights import PartWeights, base_weights
from trainer.lora_file.modules import LoraModule


class BaseOfDora:
    """Changes of modules of any network.

    Args:
        path: a folder or a file of the base; None where the modules are of no DoRA.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    @functools.cached_property
    def _weights(self) -> Mapping[str, PartWeights]:
        assert self.path
        return base_weights(self.path)

    def change(self, module: LoraModule) -> torch.Tensor:
        """The change (O, I) of a module in fp32.

        Raises:
            BaseError: the base can't be opened.
            LoraFileError: the module is of a DoRA and there is no base, or the base has no such layer.
        """
        if self.path is None or not module.is_decomposed or module.network is None:
            return module.change()
        weights = self._weights[module.part]
        shape = weights.shape(module.path)
        if shape is None or module.sides != (shape[0], torch.Size(shape[1:]).numel()):
            raise LoraFileError(
                f"{self.path.name} has no {module.part}.{module.path} of the shape {module.sides}; give the "
                "base that the LoRA was trained on"
            )
        return module.change(weights.tensor(module.path).float()).flatten(1)
