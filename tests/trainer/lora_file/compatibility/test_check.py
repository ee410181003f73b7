"""`lora check`: the rules of each tool, compared with the loader of diffusers, which is installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file

from tests.conftest import MODELS, trainer
from tests.trainer.lora_file.lora_samples import (
    ATTENTION,
    METADATA,
    TINY,
    assert_same,
    by_command_line,
    changes_of,
    pipeline,
    write_lora,
)
from trainer.lora_file.compatibility.check import Report, check_file
from trainer.lora_file.compatibility.keys import Verdict
from trainer.lora_file.edit.convert import convert
from trainer.lora_file.module_names import accepted_names, kohya_name
from trainer.lora_file.sdxl_modules import sdxl
from trainer.sdxl.unet_names import sgm_path

OTHERS = ("A1111 1.10", "Forge", "ComfyUI 0.33", "InvokeAI 6.14", "sd-scripts", "diffusers 0.42")


@pytest.fixture(scope="module")
def attention(places) -> dict:
    """The layers that a training adapts: attention of the UNet and of both text encoders."""
    return {
        place: shape for place, shape in places.items() if ".attn" in place[1] or ".self_attn." in place[1]
    }


def verdicts(report: Report) -> dict[str, str]:
    return {
        v.tool: "refuses" if v.refusal else "whole" if v.is_complete else "drops" for v in report.verdicts
    }


def checked(path: Path) -> Report:
    return check_file(path, bases=MODELS)


def flat(part: str, path: str) -> str:
    """As trainers on transformers 5 write text encoders when nobody looks."""
    return kohya_name(part, path).replace("text_model_", "")


def diffusers_blocks(part: str, path: str) -> str:
    return accepted_names(part, path)[1]


def dotted(part: str, path: str) -> str:
    return accepted_names(part, path)[2]


def test_every_tool_reads_a_trained_file_completely(ink_run: Path):
    report = checked(ink_run / "ink.safetensors")
    assert report.ok
    assert verdicts(report) == dict.fromkeys(OTHERS, "whole")
    assert report.base == "tiny-sdxl"
    assert not report.warnings
    assert report.kinds == ("LoRA",)


def test_a_file_for_sdxl_is_compared_with_sdxl(tmp_path: Path):
    attention = {
        ("unet", path): shape
        for path, shape in sdxl().shapes["unet"].items()
        if ".attn" in path and len(shape) == 2
    }
    write_lora(tmp_path / "a.safetensors", attention, rank=lambda n: 1, dtype=torch.float16)
    report = checked(tmp_path / "a.safetensors")
    assert report.ok
    assert report.base == "SDXL"
    assert report.modules == {"unet": 560}
    assert {verdict.taken for verdict in report.verdicts} == {3 * 560}
    # The same file on the bundled base fits nowhere.
    assert not check_file(tmp_path / "a.safetensors", base=TINY).ok


def test_only_diffusers_reads_text_encoders_without_text_model(attention, tmp_path: Path):
    write_lora(
        tmp_path / "a.safetensors",
        {place: shape for place, shape in attention.items() if place[0] != "text_encoder_2"},
        naming=flat,
    )
    report = checked(tmp_path / "a.safetensors")
    assert verdicts(report) == dict.fromkeys(OTHERS, "drops") | {
        "Forge": "refuses",
        "diffusers 0.42": "whole",
    }
    assert any("text_model" in warning for warning in report.warnings)
    (forge,) = [verdict for verdict in report.verdicts if verdict.tool == "Forge"]
    assert forge.taken == 0
    assert "more than 12" in str(forge.refusal)


def test_forge_accepts_at_most_twelve_unknown_keys(attention, tmp_path: Path):
    for unknown in (12, 13):
        write_lora(tmp_path / "a.safetensors", attention)
        tensors = load_file(tmp_path / "a.safetensors") | {
            f"lora_unet_nothing_{n}.alpha": torch.tensor(1.0) for n in range(unknown)
        }
        save_file(tensors, tmp_path / "a.safetensors", metadata=METADATA)
        assert verdicts(checked(tmp_path / "a.safetensors"))["Forge"] == (
            "drops" if unknown == 12 else "refuses"
        )


def test_only_diffusers_reads_peft_names_completely(attention, tmp_path: Path):
    write_lora(tmp_path / "a.safetensors", attention)
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "diffusers")
    report = checked(tmp_path / "b.safetensors")
    expected = {"Forge": "refuses", "InvokeAI 6.14": "refuses", "diffusers 0.42": "whole"}
    assert verdicts(report) == dict.fromkeys(OTHERS, "drops") | expected
    # ComfyUI patches the text encoders and leaves the UNet: the worst of both.
    (comfy,) = [verdict for verdict in report.verdicts if verdict.tool.startswith("ComfyUI")]
    assert comfy.taken == sum(2 for part, _ in attention if part != "unet")


def test_block_names_of_diffusers_are_read_with_a_warning(attention, tmp_path: Path):
    write_lora(tmp_path / "a.safetensors", attention, naming=diffusers_blocks)
    report = checked(tmp_path / "a.safetensors")
    assert report.ok
    assert any("sdxl_merge_lora" in warning for warning in report.warnings)


def test_a1111_ignores_the_first_upsampler_under_its_diffusers_name(places, tmp_path: Path):
    place = ("unet", "up_blocks.0.upsamplers.0.conv")
    for naming, expected in ((kohya_name, "whole"), (diffusers_blocks, "drops")):
        write_lora(
            tmp_path / "a.safetensors",
            {place: places[place], ("unet", ATTENTION): places["unet", ATTENTION]},
            naming=naming,
        )
        assert verdicts(checked(tmp_path / "a.safetensors"))["A1111 1.10"] == expected


def test_invokeai_refuses_mixed_block_names_and_diffusers_ignores_half_of_them(attention, tmp_path: Path):
    unet = [place for place in attention if place[0] == "unet"]

    def naming(part: str, path: str) -> str:
        return (kohya_name if unet.index((part, path)) % 2 else diffusers_blocks)(part, path)

    write_lora(tmp_path / "a.safetensors", {place: attention[place] for place in unet}, naming=naming)
    result = verdicts(checked(tmp_path / "a.safetensors"))
    assert result["InvokeAI 6.14"] == "refuses"
    assert result["diffusers 0.42"] == "drops"
    assert result["ComfyUI 0.33"] == "whole"


def test_some_tools_read_the_sd15_names_of_the_text_encoder(attention, tmp_path: Path):
    def naming(part: str, path: str) -> str:
        return kohya_name(part, path).replace("lora_te1_", "lora_te_")

    write_lora(tmp_path / "a.safetensors", attention, naming=naming)
    assert verdicts(checked(tmp_path / "a.safetensors")) == {
        "A1111 1.10": "drops",
        "Forge": "whole",
        "ComfyUI 0.33": "whole",
        "InvokeAI 6.14": "refuses",
        "sd-scripts": "drops",
        "diffusers 0.42": "whole",
    }


def test_a1111_ignores_and_diffusers_refuses_text_encoder_2_without_out_proj(attention, tmp_path: Path):
    some = {place: shape for place, shape in attention.items() if "out_proj" not in place[1]}
    write_lora(tmp_path / "a.safetensors", some)
    report = checked(tmp_path / "a.safetensors")
    result = verdicts(report)
    assert result["A1111 1.10"] == "drops"
    assert result["diffusers 0.42"] == "refuses"
    assert result["ComfyUI 0.33"] == "whole"
    assert sum("out_proj" in warning for warning in report.warnings) == 2


def test_a_to_out_without_its_zero_stops_a1111(tmp_path: Path):
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
    write_lora(
        tmp_path / "a.safetensors",
        {("unet", path): (112, 112)},
        naming=lambda part, where: kohya_name(part, where).removesuffix("_0"),
    )
    report = checked(tmp_path / "a.safetensors")
    assert verdicts(report)["A1111 1.10"] == "refuses"
    assert not any(verdict.is_complete for verdict in report.verdicts)


def test_a_dora_gets_a_warning(attention, tmp_path: Path):
    write_lora(tmp_path / "a.safetensors", attention)
    scales = {
        f"{kohya_name(*place)}.dora_scale": torch.ones(1, shape[1]) for place, shape in attention.items()
    }
    save_file(load_file(tmp_path / "a.safetensors") | scales, tmp_path / "a.safetensors", metadata=METADATA)
    report = checked(tmp_path / "a.safetensors")
    dropping = {"sd-scripts": "drops", "diffusers 0.42": "drops"}
    assert verdicts(report) == dict.fromkeys(OTHERS, "whole") | dropping
    assert any("DoRA" in warning for warning in report.warnings)


def test_only_diffusers_refuses_a_lokr(tmp_path: Path):
    name = kohya_name("unet", ATTENTION)
    tensors = {
        f"{name}.lokr_w1": torch.ones(4, 4),
        f"{name}.lokr_w2": torch.ones(28, 36),
        f"{name}.alpha": torch.tensor(1.0),
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata=METADATA)
    assert verdicts(checked(tmp_path / "a.safetensors")) == dict.fromkeys(OTHERS, "whole") | {
        "diffusers 0.42": "refuses"
    }


def test_invokeai_recognises_a_file_by_modules_that_only_sdxl_has(tmp_path: Path):
    for path, expected in (
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "refuses"),
        ("down_blocks.2.attentions.0.transformer_blocks.9.attn1.to_q", "whole"),
    ):
        shape = sdxl().shapes["unet"][path]
        write_lora(tmp_path / "a.safetensors", {("unet", path): shape})
        assert verdicts(checked(tmp_path / "a.safetensors"))["InvokeAI 6.14"] == expected


def comfyui(part: str, path: str) -> str:
    """As ComfyUI's LoraSave writes a model's difference."""
    clip = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    return (
        f"diffusion_model.{sgm_path(path)}"
        if part == "unet"
        else f"text_encoders.{clip[part]}.transformer.text_model.{path}"
    )


def test_names_of_comfyui_are_read_and_need_conversion_for_other_tools(attention, tmp_path: Path):
    changes = write_lora(tmp_path / "a.safetensors", attention, naming=comfyui, alpha=lambda n: None)
    result = verdicts(checked(tmp_path / "a.safetensors"))
    assert result == dict.fromkeys(OTHERS, "refuses") | {
        "ComfyUI 0.33": "whole",
        "sd-scripts": "drops",
        "diffusers 0.42": "drops",
    }
    assert_same(changes_of(tmp_path / "a.safetensors"), changes)
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "kohya")
    assert checked(tmp_path / "b.safetensors").ok


def _verdict(
    tensors: dict[str, torch.Tensor], folder: Path, metadata: dict[str, str] = METADATA
) -> dict[str, Verdict]:
    save_file(tensors, folder / "a.safetensors", metadata=metadata)
    return {verdict.tool.split()[0]: verdict for verdict in checked(folder / "a.safetensors").verdicts}


def test_each_tool_treats_a_module_with_a_missing_matrix_in_its_own_way(attention, tmp_path: Path):
    write_lora(tmp_path / "a.safetensors", attention)
    tensors, name = load_file(tmp_path / "a.safetensors"), kohya_name("unet", ATTENTION)
    up, down = f"{name}.lora_up.weight", f"{name}.lora_down.weight"
    # (ComfyUI, Forge, A1111, sd-scripts), as their loaders did
    for missing, expected in (
        ((up,), (1, 1, None, 0)),
        ((down,), (None, None, None, 2)),
        ((up, down), (0, 0, None, 1)),
    ):
        left = {key: tensor for key, tensor in tensors.items() if key not in missing}
        result = _verdict(left, tmp_path)
        dropped = tuple(
            None if result[tool].refusal else len(left) - result[tool].taken
            for tool in ("ComfyUI", "Forge", "A1111", "sd-scripts")
        )
        assert dropped == expected, missing


def test_a_module_of_another_shape_stops_forge_and_sd_scripts(attention, tmp_path: Path):
    write_lora(tmp_path / "a.safetensors", attention)
    result = _verdict(
        load_file(tmp_path / "a.safetensors")
        | {f"{kohya_name('unet', ATTENTION)}.lora_up.weight": torch.ones(9, 3)},
        tmp_path,
    )
    assert result["Forge"].refusal
    assert result["sd-scripts"].refusal
    assert len(result["ComfyUI"].drops) == len(result["A1111"].drops) == 1


def test_the_options_of_sd_scripts_name_the_network_module_for_the_file(tmp_path: Path):
    name, metadata = (
        kohya_name("unet", ATTENTION),
        METADATA | {"ss_network_module": "lycoris.kohya"},
    )  # its weight is 112 x 144
    alpha = {f"{name}.alpha": torch.tensor(1.0)}
    up_down = {f"{name}.lora_up.weight": torch.ones(112, 2), f"{name}.lora_down.weight": torch.ones(2, 144)}
    loha = {
        f"{name}.hada_w{n}_{side}": torch.ones(112, 2) if side == "a" else torch.ones(2, 144)
        for n in (1, 2)
        for side in "ab"
    }

    def lokr(rows: int, columns: int) -> dict[str, torch.Tensor]:
        return {
            f"{name}.lokr_w1": torch.ones(rows, columns),
            f"{name}.lokr_w2": torch.ones(112 // rows, 144 // columns),
        }

    for tensors, needs in (
        (up_down, "--network_module networks.lora"),
        (loha, "--network_module networks.loha"),
        (lokr(8, 12), "--network_module networks.lokr"),
        (lokr(8, 8), "--network_module networks.lokr --network_args factor=8"),
        (lokr(2, 12), "--network_module lycoris.kohya"),  # no factor makes these
        (up_down | {f"{name}.dora_scale": torch.ones(112, 1)}, "--network_module lycoris.kohya"),
    ):
        verdict = _verdict(tensors | alpha, tmp_path, metadata)["sd-scripts"]
        assert verdict.is_complete
        assert verdict.needs == needs
    # The package makes magnitudes of each output and stops at those of each input; a LoHa without alpha stops
    # both.
    assert _verdict(up_down | alpha | {f"{name}.dora_scale": torch.ones(1, 144)}, tmp_path, metadata)[
        "sd-scripts"
    ].refusal
    assert _verdict(loha, tmp_path, metadata)["sd-scripts"].refusal


Change = Callable[[dict[str, torch.Tensor], dict[str, str]], None]


def _boxed(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    tensors |= {key: tensor.reshape(1) for key, tensor in tensors.items() if key.endswith(".alpha")}


def _without_alpha(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    for key in [key for key in tensors if key.endswith(".alpha")]:
        del tensors[key]


def _hidden(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    del metadata["ss_base_model_version"]


def _heavy(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    metadata["modelspec.thumbnail"] = "x" * (1 << 20)


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (_boxed, "alpha has a shape"),
        (_without_alpha, "no alpha"),
        (_hidden, "A1111 hides"),
        (_heavy, "1 MiB"),
    ],
)
def test_a_silent_problem_gets_a_warning_and_conversion_fixes_it(
    change: Change, warning: str, attention, tmp_path: Path
):
    write_lora(tmp_path / "a.safetensors", attention)
    tensors, metadata = load_file(tmp_path / "a.safetensors"), dict(METADATA)
    assert not checked(tmp_path / "a.safetensors").warnings
    change(tensors, metadata)
    save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
    report = checked(tmp_path / "a.safetensors")
    assert [text for text in report.warnings if warning in text]
    assert len(report.warnings) == 1
    assert report.ok
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "kohya")
    mended = checked(tmp_path / "b.safetensors").warnings
    assert (mended == ()) != (change is _heavy), "all but the author's own thumbnail"


@pytest.mark.parametrize(
    ("value", "fault"), [(float("nan"), "no numbers"), (float("inf"), "no numbers"), (1e6, "beyond fp16")]
)
def test_values_that_produce_black_images_are_a_fault(value: float, fault: str, attention, tmp_path: Path):
    write_lora(tmp_path / "a.safetensors", attention)
    tensors = load_file(tmp_path / "a.safetensors")
    tensors[next(key for key in tensors if "lora_up" in key)][0, 0] = value
    save_file(tensors, tmp_path / "a.safetensors", metadata=METADATA)
    report = checked(tmp_path / "a.safetensors")
    assert not report.ok
    assert fault in report.faults[0]


def loaded(pipe: StableDiffusionXLPipeline, changes: dict[tuple[str, str], torch.Tensor]) -> int:
    """The number of modules that the pipeline changes by the expected change."""
    count = 0
    for (part, path), change in changes.items():
        model = getattr(pipe, part)
        module = model.get_submodule(f"text_model.{path}" if hasattr(model, "text_model") else path)
        if isinstance(module, BaseTunerLayer):
            (adapter,) = module.active_adapters
            count += torch.allclose(module.get_delta_weight(adapter).flatten(1), change, atol=1e-5)  # pyright: ignore
    return count


def _no_out(part: str, path: str) -> bool:
    return "out_proj" not in path and "mlp" not in path


_FILES: dict[str, tuple[Callable[[str, str], str], Callable[[str, str], bool]]] = {
    "all of it": (kohya_name, lambda part, path: True),
    "diffusers' blocks": (diffusers_blocks, lambda part, path: True),
    "no text_model in the first": (flat, lambda part, path: part != "text_encoder_2"),
    "no text_model in the second": (flat, lambda part, path: part != "text_encoder"),
    "no text_model in half of the second": (
        lambda part, path: (flat if "layers.0" in path else kohya_name)(part, path),
        lambda part, path: part == "text_encoder_2",
    ),
    "attention without out_proj": (kohya_name, _no_out),
    "feed-forward without out_proj": (kohya_name, lambda part, path: "out_proj" not in path),
    "only out_proj": (kohya_name, lambda part, path: "out_proj" in path),
    "mixed blocks": (
        lambda part, path: (kohya_name if "to_q" in path else diffusers_blocks)(part, path),
        lambda part, path: "attn" in path,
    ),
    "a module too many": (
        lambda part, path: kohya_name(part, path).replace("blocks_0_attn1", "blocks_7_attn1"),
        lambda part, path: ".attn" in path,
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", _FILES)
def test_the_verdict_on_diffusers_agrees_with_diffusers(kind: str, places, tmp_path: Path):
    naming, is_in_file = _FILES[kind]
    path = tmp_path / "a.safetensors"
    changes = write_lora(
        path, {place: shape for place, shape in places.items() if is_in_file(*place)}, naming=naming
    )
    (verdict,) = [v for v in checked(path).verdicts if v.tool.startswith("diffusers")]
    pipe = pipeline()
    if verdict.refusal:
        with pytest.raises((ValueError, IndexError)):
            pipe.load_lora_weights(str(path))
        return
    pipe.load_lora_weights(str(path))
    assert 3 * loaded(pipe, changes) == verdict.taken, verdict


def test_the_command_ends_with_status_1_when_a_tool_ignores_a_tensor(attention, tmp_path: Path):
    write_lora(tmp_path / "bad.safetensors", attention, naming=flat)
    done = trainer("lora", "check", tmp_path / "bad.safetensors", check=False)
    assert done.returncode == 1
    assert "Forge" in done.stdout
    assert "refuses the file" in done.stdout
    assert "impasto:" not in done.stderr


def test_the_json_report_contains_the_verdicts(attention, tmp_path: Path, monkeypatch, capsys):
    write_lora(tmp_path / "a.safetensors", attention)
    arguments = ["lora", "check", tmp_path / "a.safetensors", "--json", "--base", "tiny-sdxl"]
    status, out, _ = by_command_line(arguments, monkeypatch, capsys)
    parsed = json.loads(out)
    assert status == 0
    assert parsed["ok"]
    assert parsed["base"] == "tiny-sdxl"
    assert [v["tool"] for v in parsed["verdicts"]] == list(OTHERS)


def test_a_peft_file_of_a_unet_is_read_and_needs_conversion(attention, tmp_path: Path):
    unet = {place: shape for place, shape in attention.items() if place[0] == "unet"}
    for prefix in ("", "base_model.model."):
        write_lora(
            tmp_path / "a.safetensors",
            unet,
            naming=lambda part, path, start=prefix: start + path,
            alpha=lambda n: None,
        )
        report = checked(tmp_path / "a.safetensors")
        assert not any(verdict.is_complete for verdict in report.verdicts)
        assert report.modules == {"unet": len(unet)}
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "kohya", overwrite=True)
        assert checked(tmp_path / "b.safetensors").ok
