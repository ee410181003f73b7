"""Files of other makers: every command reads the same change in each form, or names the form that it rejects."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import MODELS
from tests.trainer.lora_file import maker_files as makers
from tests.trainer.lora_file.lora_samples import (
    ATTENTION,
    CONVOLUTION,
    TINY,
    Place,
    by_command_line,
    changed_by_diffusers,
)
from tests.trainer.lora_file.maker_files import CONVOLUTIONS, LINEAR, RANK, TEXT, UNET, Form, write
from trainer.adapter.lora import Adapter, LayerSpec
from trainer.errors import LoraFileError
from trainer.lora_file.attach import attach_lora, start_from
from trainer.lora_file.base_weights import base_weights
from trainer.lora_file.compatibility.check import check_file
from trainer.lora_file.describe import describe
from trainer.lora_file.edit.bake import bake
from trainer.lora_file.edit.convert import convert
from trainer.lora_file.edit.merge import Term, merge
from trainer.lora_file.edit.resize import resize
from trainer.lora_file.module_names import kohya_name
from trainer.lora_file.reader import read_modules
from trainer.sdxl.base import open_base
from trainer.sdxl.protocols import Module

HUGE = 9999999999.0  # ai-toolkit's alpha of a LoKr of whole factors
SIMPLETUNER = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 2})}
_CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2}
ALONE = {**_CONFIG, "auto_mapping": {"base_model_class": "CLIPTextModelWithProjection"}}
FOLDER = "peft/adapter_model.safetensors"
PEFT = Form(makers.lora, makers.peft, UNET, "peft", alpha=None, file=FOLDER, config=_CONFIG)
FORMS = {
    "sd-scripts": Form(makers.lora),
    "sd-scripts, fp16, alpha 1.3": Form(makers.lora, alpha=1.3, scale=1.3 / RANK, dtype=torch.float16),
    "sd-scripts, bf16, alpha 1.3": Form(makers.lora, alpha=1.3, scale=1.3 / RANK, dtype=torch.bfloat16),
    "sd-scripts, fp8, alpha 3": Form(makers.lora, alpha=3, scale=3 / RANK, dtype=torch.float8_e4m3fn),
    "sd-scripts, fp8, alpha 2": Form(makers.lora, dtype=torch.float8_e4m3fn),
    "LyCORIS LoHa": Form(makers.loha),
    "LyCORIS LoKr": Form(makers.lokr),
    "LyCORIS LoCon, Tucker": Form(makers.tucker_lora, places=CONVOLUTIONS[:1]),
    "LyCORIS LoHa, Tucker": Form(makers.tucker_loha, places=CONVOLUTIONS[:1]),
    "LyCORIS LoKr, Tucker": Form(makers.tucker_lokr, places=CONVOLUTIONS[:1]),
    "LyCORIS DoRA by inputs": Form(makers.lora, dora="inputs"),
    "LyCORIS DoRA by outputs": Form(makers.lora, dora="outputs"),
    "LyCORIS DoRA of LoHa": Form(makers.loha, dora="inputs"),
    "LyCORIS DoRA of a Tucker LoCon": Form(makers.tucker_lora, places=CONVOLUTIONS[:1], dora="outputs"),
    "OneTrainer OMI": Form(makers.lora, makers.omi),
    "OneTrainer OMI, LoHa": Form(makers.onetrainer_loha, makers.omi),
    "OneTrainer OMI, DoRA": Form(makers.lora, makers.omi, dora="inputs"),
    "OneTrainer ORIGINAL": Form(
        makers.lora, lambda part, path: makers.sgm_path(path), UNET, suffixes="comfyui"
    ),
    "OneTrainer COMFY": Form(makers.lora, makers.comfyui, suffixes="comfyui"),
    "OneTrainer DIFFUSERS": Form(makers.lora, makers.dotted, suffixes="peft", alpha=None, scale=1),
    "OneTrainer DIFFUSERS, DoRA": Form(
        makers.lora, makers.dotted, suffixes="peft", alpha=None, scale=1, dora="peft"
    ),
    "OneTrainer LEGACY": Form(makers.lora, makers.legacy),
    "OneTrainer LoHa": Form(makers.onetrainer_loha, makers.legacy),
    "ai-toolkit": Form(makers.lora, makers.legacy, dtype=torch.float16),
    "ai-toolkit LoKr": Form(makers.whole_lokr, makers.legacy, alpha=HUGE, scale=1),
    "ai-toolkit LoKr, fp16": Form(makers.whole_lokr, makers.legacy, alpha=HUGE, scale=1, dtype=torch.float16),
    "SimpleTuner": Form(makers.lora, makers.dotted, UNET, "peft", alpha=None, metadata=SIMPLETUNER),
    "SimpleTuner LoKr": Form(makers.lokr, makers.lycoris, UNET),
    "SimpleTuner LyCORIS LoRA": Form(makers.lora, makers.lycoris, UNET),
    "diffusers before 0.22": Form(makers.lora, makers.dotted, suffixes="diffusers", alpha=None, scale=1),
    "PEFT": PEFT,
    "PEFT, DoRA": replace(PEFT, dora="peft"),
    "PEFT of a pipeline": Form(makers.lora, makers.nested, suffixes="peft", alpha=None, scale=1),
    "PEFT of a text encoder": replace(PEFT, places=TEXT[1:], config=ALONE),
    "PEFT, LoHa": replace(PEFT, network=makers.loha, config={"peft_type": "LOHA", "r": RANK, "alpha": 2}),
    "PEFT, LoKr": replace(PEFT, network=makers.lokr, config={"peft_type": "LOKR", "r": RANK, "alpha": 2}),
    "PEFT, LoKr of whole factors": replace(
        PEFT, network=makers.whole_lokr, config={"peft_type": "LOKR", "r": RANK, "alpha": 2}
    ),
}


@functools.cache  # adapters are detached from it after use
def model(part: str) -> Module:
    base, device = open_base("tiny-sdxl", MODELS), torch.device("cpu")
    if part == "unet":
        return base.unet(device, torch.float32)
    return base.text_encoders(device, torch.float32)[part != "text_encoder"]


def models_of(places: Mapping[Place, object]) -> dict[str, Module]:
    return {part: model(part) for part in dict.fromkeys(part for part, _ in places)}


def assert_same(actual: Mapping[Place, torch.Tensor], expected: Mapping[Place, torch.Tensor]) -> None:
    assert set(actual) == set(expected)
    for place, change in expected.items():
        error = (actual[place].double().flatten(1) - change).norm() / change.norm()
        assert error < 1e-4, f"{place}: {error:.2e}"


def detached(adapter: Adapter, models: Mapping[str, Module]) -> dict[Place, torch.Tensor]:
    """The changes of an adapter, which is detached from its models."""
    changes = {
        (part, path.removeprefix("text_model.")): layer.change().detach()
        for part, path, layer in adapter.walk()
    }
    for part in list(adapter.layers):
        adapter.detach(part, models[part])
    return changes


def changes_of(path: Path) -> dict[Place, torch.Tensor]:
    base = base_weights(TINY)
    return {
        module.place: module.change(base[module.part].tensor(module.path).float()).flatten(1)
        for module in read_modules(path).modules
    }


@pytest.mark.parametrize("name", FORMS)
def test_every_command_reads_the_change_of_the_form(name: str, tmp_path: Path):
    form = FORMS[name]
    source, expected = write(form, tmp_path)
    models = models_of(expected)
    assert_same(detached(attach_lora(source, models), models), expected)
    described = dict(describe(source))
    labels = {"unet": "UNet", "text_encoder": "text encoder 1", "text_encoder_2": "text encoder 2"}
    for part in {part for part, _ in expected}:
        assert f"{sum(place[0] == part for place in expected)} modules" in described[labels[part]]
    report = check_file(source, base=TINY)
    assert sum(report.modules.values()) == len(expected)
    assert not report.faults
    for form_of_file in ("kohya", "kohya-diffusers"):
        convert(source, tmp_path / f"{form_of_file}.safetensors", form_of_file)
        assert_same(changes_of(tmp_path / f"{form_of_file}.safetensors"), expected)
    base = TINY if form.dora else None
    resize(source, tmp_path / "resized.safetensors", energy=1, dtype=torch.float32, base=base)
    assert_same(changes_of(tmp_path / "resized.safetensors"), expected)
    terms = [Term(source, 0.75), Term(source, 0.25)]
    merge(tmp_path / "svd.safetensors", terms, method="svd", rank=2000, dtype=torch.float32, base=base)
    assert_same(changes_of(tmp_path / "svd.safetensors"), expected)


PLAIN = [name for name, form in FORMS.items() if "down" in form.network((4, 4, 3, 3), torch.Generator())[0]]


@pytest.mark.parametrize("name", PLAIN)
def test_a_lora_of_the_form_is_joined_and_converted_to_diffusers(name: str, tmp_path: Path):
    form = FORMS[name]
    source, expected = write(form, tmp_path)
    if form.dora == "inputs":
        with pytest.raises(LoraFileError, match="resize --base BASE"):
            convert(source, tmp_path / "b.safetensors", "diffusers")
    else:
        convert(source, tmp_path / "b.safetensors", "diffusers")
        assert_same(changes_of(tmp_path / "b.safetensors"), expected)
    joined = tmp_path / "c.safetensors"
    if form.dora:
        with pytest.raises(LoraFileError, match="--method svd --rank 32 --base BASE"):
            merge(joined, [Term(source, 1)])
    else:
        merge(joined, [Term(source, 0.5), Term(source, 0.5)], dtype=torch.float32)
        assert_same(changes_of(joined), expected)


NETWORKS: dict[Any, str] = {
    makers.lora: "lora",
    makers.tucker_lora: "lora",
    makers.lokr: "lokr",
    makers.whole_lokr: "lokr",
}
STARTS = [
    name
    for name, form in FORMS.items()
    if not form.dora and form.network not in (makers.tucker_loha, makers.tucker_lokr)
]


@pytest.mark.parametrize("name", [*STARTS, "LyCORIS DoRA by inputs", "OneTrainer OMI, DoRA"])
def test_a_training_starts_from_the_form(name: str, tmp_path: Path):
    form = FORMS[name]
    source, expected = write(form, tmp_path)
    network = "dora" if form.dora else NETWORKS.get(form.network, "loha")
    rank = 1000 if form.network is makers.whole_lokr else RANK
    spec = LayerSpec(rank=rank, alpha=3.0, network=network, factor=2)
    models, adapter = models_of(expected), Adapter()
    for part, trained in models.items():
        spelled = {path.removeprefix("text_model."): path for path, _ in trained.named_modules()}
        paths = [spelled[path] for of_part, path in expected if of_part == part]
        adapter.attach(part, trained, dict.fromkeys(paths, spec))
    start_from(source, adapter)
    assert_same(detached(adapter, models), expected)


@pytest.mark.parametrize(
    "name", ["LyCORIS LoKr, Tucker", "PEFT, DoRA", "OneTrainer OMI", "ai-toolkit LoKr, fp16"]
)
def test_baking_adds_the_change_of_the_form(name: str, tmp_path: Path):
    source, expected = write(FORMS[name], tmp_path)
    bake(source, tmp_path / "baked", TINY)
    before, after = base_weights(TINY), base_weights(tmp_path / "baked")
    for (part, path), change in expected.items():
        old = before[part].tensor(path)
        exact = (old.double() + change.reshape(old.shape)).to(old.dtype)
        torch.testing.assert_close(after[part].tensor(path), exact, rtol=2e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["PEFT, DoRA", "LyCORIS LoCon, Tucker", "OneTrainer ORIGINAL", "PEFT"])
def test_diffusers_reads_the_change_of_a_converted_form(name: str, tmp_path: Path, caplog):
    source, expected = write(FORMS[name], tmp_path)
    convert(source, tmp_path / "b.safetensors", "diffusers")
    assert_same(changed_by_diffusers({tmp_path / "b.safetensors": 1.0}, expected, caplog), expected)


OTHERS = {
    "GLoRA": {
        f"{kohya_name('unet', ATTENTION)}.{role}.weight": torch.ones(4, 4)
        for role in ("a1", "a2", "b1", "b2")
    },
    "IA3": {
        f"{kohya_name('unet', ATTENTION)}.weight": torch.ones(112, 1),
        f"{kohya_name('unet', ATTENTION)}.on_input": torch.tensor(False),
    },
    "IA3 of PEFT": {f"base_model.model.{ATTENTION}.ia3_l": torch.ones(112, 1)},
    "OFT or BOFT": {f"{kohya_name('unet', ATTENTION)}.oft_blocks": torch.ones(4, 28, 28)},
    "OFTv2": {f"{kohya_name('unet', ATTENTION)}.oft_R.weight": torch.ones(4, 28)},
    "BOFT of PEFT": {f"base_model.model.{ATTENTION}.boft_R": torch.ones(1, 4, 28, 28)},
    "change of a bias": {
        f"{kohya_name('unet', CONVOLUTION)}.lora_down.weight": torch.ones(2, 112, 3, 3),
        f"{kohya_name('unet', CONVOLUTION)}.lora_up.weight": torch.ones(112, 2, 1, 1),
        f"{kohya_name('unet', CONVOLUTION)}.diff_b": torch.ones(112),
    },
    "AdaLoRA": {f"base_model.model.{ATTENTION}.lora_E": torch.ones(4, 1)},
    "modules_to_save": {f"base_model.model.{ATTENTION}.modules_to_save.weight": torch.ones(4, 1)},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_form_that_is_not_computed_with_is_named(kind: str, tmp_path: Path, monkeypatch, capsys):
    file, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(OTHERS[kind], file)
    for arguments in (
        ["resize", file, out, "--rank", "4"],
        ["merge", out, file],
        ["merge", out, file, "--method", "svd", "--rank", "4"],
        ["bake", file, tmp_path / "baked"],
    ):
        status, _, err = by_command_line(["lora", *arguments], monkeypatch, capsys)
        assert (status, err.count("\n")) == (1, 1), err
        assert kind in err, err
    with pytest.raises(LoraFileError, match=kind):
        attach_lora(file, {"unet": model("unet")})


def test_a_folded_scale_keeps_the_type_where_that_is_exact_and_is_reported_otherwise(
    tmp_path: Path, monkeypatch, capsys
):
    """alpha 2 of rank 4 is a power of two: only fp8 and fp16 values near the type's smallest one are rounded."""
    for alpha, dtype, expected in (
        (2.0, torch.bfloat16, torch.bfloat16),
        (3.0, torch.float8_e4m3fn, torch.float32),
    ):
        source, _ = write(Form(makers.lora, alpha=alpha, dtype=dtype, places=LINEAR), tmp_path)
        out = tmp_path / f"{alpha}.safetensors"
        status, text, _ = by_command_line(
            ["lora", "convert", source, out, "--to", "diffusers"], monkeypatch, capsys
        )
        assert status == 0
        ups = {tensor.dtype for key, tensor in load_file(out).items() if "lora_B" in key}
        assert len(ups) == 1
        if dtype == torch.bfloat16:
            assert ups == {expected}
            assert "wider type" not in text
        else:
            assert ups <= {torch.float16, torch.float32}
            assert "wider type" in text


def test_merging_two_types_reports_the_type_of_the_result(tmp_path: Path, monkeypatch, capsys):
    files = []
    for name, dtype in (("a", torch.bfloat16), ("b", torch.float16)):
        files.append(
            write(Form(makers.lora, dtype=dtype, file=f"{name}.safetensors", places=LINEAR), tmp_path)[0]
        )
    status, text, _ = by_command_line(
        ["lora", "merge", tmp_path / "c.safetensors", *files], monkeypatch, capsys
    )
    assert status == 0
    assert "saved in fp32 (the files have bf16 and fp16)" in text
    status, text, _ = by_command_line(
        ["lora", "resize", files[1], tmp_path / "d.safetensors", "--rank", "4"], monkeypatch, capsys
    )
    assert "saved in fp16; rounding moves a module's change by up to 0.0" in text
    assert "--precision fp32" in text


def test_a_text_encoder_that_nothing_names_is_rejected_with_what_to_do(tmp_path: Path):
    form = replace(FORMS["PEFT of a text encoder"], config=_CONFIG)
    with pytest.raises(LoraFileError, match="put it into a folder named text_encoder or text_encoder_2"):
        read_modules(write(form, tmp_path)[0])
    source, expected = write(replace(form, file="text_encoder_2/adapter_model.safetensors"), tmp_path)
    assert_same(changes_of(source.parent), expected)


@pytest.mark.parametrize("start", ["pissa", "olora", "corda"])
def test_an_adapter_of_peft_for_a_changed_base_is_rejected(start: str, tmp_path: Path):
    source, _ = write(replace(PEFT, config={**_CONFIG, "init_lora_weights": start}), tmp_path)
    with pytest.raises(LoraFileError, match=start):
        read_modules(source)
