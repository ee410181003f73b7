"""Choice of the faster precision, measured once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import MODELS
from trainer.hardware import precision as speed
from trainer.hardware.precision import precision_for, time_blocks

CPU, TINY = torch.device("cpu"), MODELS / "tiny-sdxl"


def test_a_cpu_without_bf16_instructions_uses_fp32_without_a_measurement(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(speed, "has_bf16_instructions", lambda: False)
    assert precision_for("auto", CPU, TINY, tmp_path) == torch.float32
    assert not list(tmp_path.iterdir())
    assert precision_for("bf16", CPU, TINY, tmp_path) == torch.bfloat16


@pytest.mark.parametrize(("bf16", "chosen"), [(0.5, torch.bfloat16), (0.9, torch.float32)])
def test_the_faster_precision_is_cached_for_a_resumed_run(
    monkeypatch, tmp_path: Path, bf16: float, chosen: torch.dtype
):
    monkeypatch.setattr(speed, "has_bf16_instructions", lambda: True)
    seconds = {torch.float32: 1.0, torch.bfloat16: bf16}
    monkeypatch.setattr(speed, "time_blocks", lambda unet, dtype: seconds[dtype])
    assert precision_for("auto", CPU, TINY, tmp_path) == chosen
    seconds[torch.bfloat16] = 2.0 - bf16  # the machine is busy now
    assert precision_for("auto", CPU, TINY, tmp_path) == chosen


def test_blocks_of_wider_layers_take_longer():
    unet = json.loads((TINY / "unet" / "config.json").read_text())
    wider = {**unet, "block_out_channels": [4 * width for width in unet["block_out_channels"]]}
    assert 0 < time_blocks(unet, torch.float32) < time_blocks(wider, torch.float32)
