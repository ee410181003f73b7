"""Verdicts on the forms of other makers' files: what ComfyUI 0.33, diffusers 0.42 and others make of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.trainer.lora_file.compatibility.test_check import loaded
from tests.trainer.lora_file.lora_samples import (
    ATTENTION,
    CONVOLUTION,
    METADATA,
    TINY,
    by_command_line,
    pipeline,
    write_lora,
)
from trainer.lora_file.compatibility.check import Report, check_file
from trainer.lora_file.compatibility.keys import Entry, Keys, Verdict
from trainer.lora_file.compatibility.tools import TOOLS
from trainer.lora_file.module_names import kohya_name
from trainer.sdxl.unet_names import sgm_path

Tensors = dict[str, torch.Tensor]
NAME = kohya_name("unet", ATTENTION)  # (112, 144)
SQUARE = kohya_name("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")  # (112, 112)
CONV = kohya_name("unet", CONVOLUTION)
WHOLE, DROPS, REFUSES, WRONG = "whole", "drops", "refuses", "wrong"


def state(verdict: Verdict) -> str:
    if verdict.refusal:
        return REFUSES
    return DROPS if verdict.drops else WRONG if verdict.wrong else WHOLE


def report_of(tensors: Tensors, folder: Path) -> Report:
    save_file(tensors, folder / "a.safetensors", metadata=METADATA)
    return check_file(folder / "a.safetensors", base=TINY)


def states(tensors: Tensors, folder: Path) -> dict[str, str]:
    return {verdict.tool.split()[0]: state(verdict) for verdict in report_of(tensors, folder).verdicts}


def lora(name: str, outputs: int, inputs: int) -> Tensors:
    return {
        f"{name}.lora_up.weight": torch.ones(outputs, 2),
        f"{name}.lora_down.weight": torch.ones(2, inputs),
        f"{name}.alpha": torch.tensor(2.0),
    }


def tucker_lokr(factor: int, shape: tuple[int, ...]) -> Tensors:
    outputs, inputs, height, width = shape
    return {
        f"{CONV}.lokr_w1": torch.randn(factor, factor),
        f"{CONV}.lokr_w2_a": torch.randn(2, outputs // factor),
        f"{CONV}.lokr_w2_b": torch.randn(2, inputs // factor),
        f"{CONV}.lokr_t2": torch.randn(2, 2, height, width),
        f"{CONV}.alpha": torch.tensor(2.0),
    }


def kron_fails(tensors: Tensors) -> bool:
    """True if the product of a Tucker LoKr fails without a copy in the order of its dimensions."""
    core, left, right = (tensors[f"{CONV}.{role}"] for role in ("lokr_t2", "lokr_w2_a", "lokr_w2_b"))
    second = torch.einsum("ijkl,jr,ip->prkl", core, right, left)
    try:
        torch.kron(tensors[f"{CONV}.lokr_w1"][..., None, None], second)
    except RuntimeError:
        return True
    return False


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_comfyui_leaves_a_tucker_lokr_out_exactly_where_its_product_fails(
    factor: int, places, tmp_path: Path
):
    tensors = tucker_lokr(factor, places["unet", CONVOLUTION])
    result = states(tensors, tmp_path)
    assert kron_fails(tensors) == (result["ComfyUI"] == DROPS) == (factor > 1)
    assert result["Forge"] == (REFUSES if factor > 1 else WHOLE)
    assert result["A1111"] == WHOLE  # it copies the product first


@pytest.mark.filterwarnings("ignore")
def test_diffusers_refuses_kohya_names_with_lora_a_and_b(tmp_path: Path):
    tensors = {
        f"{NAME}.lora_A.weight": torch.ones(2, 144),
        f"{NAME}.lora_B.weight": torch.ones(112, 2),
        f"{NAME}.alpha": torch.tensor(2.0),
    }
    assert states(tensors, tmp_path)["diffusers"] == REFUSES
    with pytest.raises(ValueError, match="not been correctly renamed"):
        pipeline().load_lora_weights(str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
    ("role", "good", "bad"),
    [
        ("diff", (112, 144), (8, 8)),
        ("oft_blocks", (4, 28, 28), (4, 8, 8)),
        ("oft_diag", (4, 28, 28), (4, 28, 27)),
    ],
)
def test_tensors_without_a_product_are_compared_with_the_base(
    role: str, good: tuple[int, ...], bad: tuple[int, ...], tmp_path: Path
):
    for shape, expected in ((good, False), (bad, True)):
        report = report_of({f"{NAME}.{role}": torch.zeros(shape)}, tmp_path)
        misfits = [v for v in report.verdicts if "base" in "".join(drop.reason for drop in v.drops)]
        assert (len(misfits) == len(TOOLS)) == expected, shape


def test_norms_and_biases_are_compared_with_the_base(tmp_path: Path):
    norm = kohya_name("unet", "mid_block.attentions.0.transformer_blocks.0.norm1")
    for tensors, complete in (
        ({f"{norm}.w_norm": torch.zeros(112), f"{norm}.b_norm": torch.zeros(112)}, True),
        ({f"{norm}.w_norm": torch.zeros(8), f"{norm}.b_norm": torch.zeros(8)}, False),
        ({**lora(NAME, 112, 144), f"{NAME}.diff_b": torch.zeros(112)}, True),
        ({**lora(NAME, 112, 144), f"{NAME}.diff_b": torch.zeros(144)}, False),
    ):
        assert (states(tensors, tmp_path)["ComfyUI"] == WHOLE) == complete, tensors.keys()


def test_a_dora_scale_of_one_dimension_fails_where_outputs_and_inputs_differ(tmp_path: Path):
    oblong = states(lora(NAME, 112, 144) | {f"{NAME}.dora_scale": torch.ones(112)}, tmp_path)
    assert (oblong["ComfyUI"], oblong["A1111"], oblong["Forge"]) == (DROPS, DROPS, REFUSES)
    square = states(lora(SQUARE, 112, 112) | {f"{SQUARE}.dora_scale": torch.ones(112)}, tmp_path)
    assert square["ComfyUI"] == square["Forge"] == square["A1111"] == WRONG


def test_lengths_of_outputs_are_a_wrong_result_in_tools_that_divide_by_other_norms(tmp_path: Path):
    by_output = states(lora(NAME, 112, 144) | {f"{NAME}.dora_scale": torch.ones(112, 1)}, tmp_path)
    assert {tool for tool, result in by_output.items() if result == WRONG} == {
        "ComfyUI",
        "Forge",
        "A1111",
        "InvokeAI",
    }
    by_input = states(lora(NAME, 112, 144) | {f"{NAME}.dora_scale": torch.ones(1, 144)}, tmp_path)
    assert WRONG not in by_input.values()


Alpha = Callable[[int], float | None]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("rank", "alpha"),
    [
        (lambda n: 3, lambda n: 2.0 if n % 3 else 5.0),
        (lambda n: 3 if n % 3 else 5, lambda n: 3.0 if n % 3 else 5.0),
        (lambda n: 3, lambda n: 2.0 if n % 3 else None),
        (lambda n: 3 if n % 3 else 5, lambda n: 2.0),
        (lambda n: 3 if n % 3 else 5, lambda n: None),
    ],
    ids=["alphas", "ranks and alphas", "some without alpha", "ranks", "no alpha"],
)
def test_the_verdict_names_as_many_wrong_modules_as_diffusers_scales_wrongly(
    rank: Callable[[int], int], alpha: Alpha, places, tmp_path: Path, monkeypatch, capsys
):
    path = tmp_path / "a.safetensors"
    changes = write_lora(path, places, rank=rank, alpha=alpha)
    verdict = check_file(path, base=TINY).verdicts[-1]
    assert not verdict.drops
    pipe = pipeline()
    pipe.load_lora_weights(str(path))
    wrong = sum(int(text.split()[0]) for text in verdict.wrong)
    assert wrong == len(places) - loaded(pipe, changes)
    status, out, _ = by_command_line(["lora", "check", path, "--base", "tiny-sdxl"], monkeypatch, capsys)
    assert ("wrong result" in out) == bool(wrong)
    assert status == 1 or not wrong


def test_an_alpha_without_effect_is_no_fault(tmp_path: Path):
    lokr = {f"{NAME}.lokr_w1": torch.ones(4, 4), f"{NAME}.lokr_w2": torch.ones(28, 36)}
    for alpha in (torch.tensor(9999999999.0), torch.tensor(float("inf"), dtype=torch.float16)):
        report = report_of(lokr | {f"{NAME}.alpha": alpha}, tmp_path)
        assert not report.faults
        assert state(report.verdicts[2]) == WHOLE
    halves = {f"{NAME}.lokr_w2_a": torch.ones(28, 2), f"{NAME}.lokr_w2_b": torch.ones(2, 36)}
    used = lokr | halves | {f"{NAME}.alpha": torch.tensor(float("inf"))}
    del used[f"{NAME}.lokr_w2"]
    assert report_of(used, tmp_path).faults


def keys_of(naming: Callable[[str], str]) -> Keys:
    """The keys of a LoRA of one layer, under a name that no table of names has to know."""
    suffixes = {"down": ".lora_down.weight", "up": ".lora_up.weight", "alpha": ".alpha"}
    place, name = ("unet", ATTENTION), naming(ATTENTION)
    entries = [
        Entry(name + suffix, name, role, suffix, place, True, True, (112, 144))
        for role, suffix in suffixes.items()
    ]
    return Keys(entries, {}, {}, False)


def test_comfyui_alone_takes_names_of_the_lycoris_wrapper():
    keys = keys_of(lambda path: f"lycoris_{path.replace('.', '_')}")
    verdicts = {tool.name.split()[0]: tool.read(keys) for tool in TOOLS}
    assert {name for name, verdict in verdicts.items() if verdict.is_complete} == {"ComfyUI"}
    assert verdicts["ComfyUI"].taken == 3


@pytest.mark.parametrize("start", ["unet.", ""])
def test_no_tool_takes_the_names_of_onetrainer(start: str):
    keys = keys_of(lambda path: start + sgm_path(path))
    for tool in TOOLS:
        assert tool.read(keys).taken == 0
        assert "convert the file" in str(tool.read(keys).drops)


def test_a_scale_elsewhere_is_a_wrong_result_in_tools_that_do_not_look_there(tmp_path: Path):
    write_lora(
        tmp_path / "a.safetensors",
        {("unet", ATTENTION): (112, 144)},
        alpha=lambda n: None,
        metadata=METADATA | {"ss_network_dim": "3", "ss_network_alpha": "1.5"},
    )
    report = check_file(tmp_path / "a.safetensors", base=TINY)
    assert {state(verdict) for verdict in report.verdicts} == {WRONG}
    assert not report.ok


def test_other_networks_are_named_and_comfyui_takes_glora(tmp_path: Path):
    glora = {f"{NAME}.a1.weight": (144, 2), f"{NAME}.a2.weight": (2, 144), f"{NAME}.b1.weight": (112, 2)}
    glora |= {f"{NAME}.b2.weight": (2, 144), f"{NAME}.alpha": ()}
    ia3 = {f"{NAME}.weight": (1, 144), f"{NAME}.on_input": ()}
    oft = {f"{NAME}.oft_blocks": (4, 28, 28), f"{NAME}.alpha": ()}
    peft_oft = {f"{NAME}.oft_R.weight": (4, 378)}
    for shapes, kind, comfyui in (
        (glora, "GLoRA", WHOLE),
        (ia3, "IA3", DROPS),
        (oft, "OFT or BOFT", WHOLE),
        (peft_oft, "OFTv2", DROPS),
    ):
        tensors = {key: torch.ones(shape) for key, shape in shapes.items()}
        assert states(tensors, tmp_path)["ComfyUI"] == comfyui, kind
        assert report_of(tensors, tmp_path).kinds == (kind,)
    wrong = {key: torch.ones(shape) for key, shape in glora.items()} | {f"{NAME}.b1.weight": torch.ones(8, 2)}
    assert states(wrong, tmp_path)["ComfyUI"] == DROPS
