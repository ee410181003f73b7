"""LoRA files read with numpy have the values and shapes that PyTorch reads and computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from trainer.errors import LoraFileError
from trainer.headers.safetensors import read_header
from trainer.lora_file.arrays import Array, load_arrays
from trainer.lora_file.modules import LoraModule, alpha_tensor
from trainer.lora_file.tensor_names import DOWN, MID, UP

_ALL_CODES = torch.arange(256, dtype=torch.int32).to(torch.uint8)


@pytest.mark.parametrize(
    "tensor",
    [
        _ALL_CODES.view(torch.float8_e4m3fn),
        _ALL_CODES.view(torch.float8_e5m2),
        torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16),
        torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16),
        torch.randn(3, 4, 1, 1),
        torch.tensor(3, dtype=torch.int64),
        torch.randn(2, 3, dtype=torch.float64),
    ],
    ids=lambda tensor: str(tensor.dtype),
)
def test_every_value_is_the_one_that_torch_reads(tensor: torch.Tensor, tmp_path: Path):
    save_file({"odd": torch.ones(1, dtype=torch.uint8), "value": tensor}, tmp_path / "a.safetensors")
    arrays = load_arrays(tmp_path / "a.safetensors", read_header(tmp_path / "a.safetensors", LoraFileError))
    expected = tensor.float().numpy()
    assert arrays["value"].shape == tuple(tensor.shape)
    assert np.array_equal(arrays["value"].float().values, expected, equal_nan=True)


@given(st.floats(-1e9, 1e9))
def test_an_alpha_is_the_same_in_both(alpha: float):
    assert float(Array.of(alpha)) == float(alpha_tensor(alpha))


_SIDE = st.sampled_from([1, 2, 3, 4])
_SHAPE = st.one_of(st.tuples(_SIDE, _SIDE), st.tuples(_SIDE, _SIDE, st.sampled_from([1, 3]), st.just(1)))
_ROLES = (
    (DOWN, UP),
    (DOWN, UP, MID),
    ("diff",),
    ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    ("lokr_w1", "lokr_w2"),
    ("lokr_w1_a", "lokr_w1_b", "lokr_w2"),
    ("lokr_w1", "lokr_w2_a", "lokr_w2_b"),
    ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"),
    ("lokr_w1", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
)


@given(st.data())
def test_sides_are_those_of_the_product(data: st.DataObject):
    roles = data.draw(st.sampled_from(_ROLES))
    module = LoraModule("unet", "conv_in", {role: torch.ones(data.draw(_SHAPE)) for role in roles})
    try:
        expected = tuple(module.product().shape)
    except (RuntimeError, IndexError, KeyError, ValueError):
        expected = None
    assert module.network
    assert module.sides == expected
