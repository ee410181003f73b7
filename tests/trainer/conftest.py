"""What several tests of LoRA files look at, and what all trainings here would count anew."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def places() -> dict[tuple[str, str], tuple[int, ...]]:
    """Every layer of the bundled base that a LoRA can change, with the shape of its weight."""
    from tests.trainer.lora_samples import every_layer  # with diffusers behind it

    return every_layer()


@pytest.fixture(scope="session", autouse=True)
def counted_once() -> Iterator[None]:
    """Plans share, for the length of the tests, what does not depend on the settings of an adapter: half of their counting."""
    from trainer import memory

    flops = memory.step_flops
    of_batch = functools.cache(lambda batch, shape: flops(memory.TrainConfig(batch=batch), shape))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("caching_bytes", "decoding_bytes", "denoising_bytes", "layer_bytes"):
            patch.setattr(memory, name, functools.cache(getattr(memory, name)))
        patch.setattr(memory, "step_flops", lambda config, shape: of_batch(config.batch, shape))
        yield
