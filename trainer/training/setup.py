"""The objects that all steps of a training share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer.adapter.lora import Adapter
from trainer.config import TrainConfig
from trainer.dataset.caption_rules import CaptionRules
from trainer.sdxl.base import Base
from trainer.sdxl.protocols import UNet
from trainer.training.batches import Batches
from trainer.training.examples import LatentDataset
from trainer.training.noise import position_seed
from trainer.training.objective import Objective
from trainer.training.text_conditioning import TextConditioner


@dataclass(frozen=True)
class Setup:
    """A training between its preparation and its end.

    Attributes:
        dtype: of the frozen UNet and its inputs.
    """

    config: TrainConfig
    base: Base
    objective: Objective
    dataset: LatentDataset
    batches: Batches
    captions: CaptionRules
    conditioner: TextConditioner
    unet: UNet
    adapter: Adapter
    dtype: torch.dtype

    def generator(self, position: int) -> torch.Generator:
        """Returns the generator of all random numbers of the batch at a position in the training."""
        return torch.Generator().manual_seed(position_seed(self.config.seed, position))
