"""Fixtures of several tests of LoRA files."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def places() -> dict[tuple[str, str], tuple[int, ...]]:
    """Every layer of the bundled base that a LoRA can change, with the shape of its weight."""
    from tests.trainer.lora_file.lora_samples import every_layer  # loads diffusers

    return every_layer()
