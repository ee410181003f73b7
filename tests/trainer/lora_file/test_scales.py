"""The scale of a LoRA file: every command reads the same one, wherever the file keeps it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.conftest import MODELS
from tests.trainer.lora_file.lora_samples import (
    ATTENTION,
    CONVOLUTION,
    METADATA,
    TINY,
    Place,
    assert_same,
    by_command_line,
    changes_of,
    shape_of,
)
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
from trainer.lora_file.module_names import diffusers_name, kohya_name
from trainer.lora_file.reader import read_modules
from trainer.sdxl.base import open_base
from trainer.sdxl.protocols import Module
from trainer.workers.lora_tools import work

RANK, ALPHA = 4, 2.0
LAYERS = (ATTENTION, CONVOLUTION)
SCALE = {"unet.r": RANK, "unet.lora_alpha": ALPHA}
CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}
Matrices = dict[str, tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def matrices() -> Matrices:
    """(down, up) by path, of a linear layer and a convolution."""
    generator = torch.Generator().manual_seed(5)
    made = {}
    for path in LAYERS:
        outputs, *inputs = shape_of(path)
        down = 0.1 * torch.randn(RANK, *inputs, generator=generator)
        made[path] = down, 0.1 * torch.randn(outputs, RANK, *[1] * len(inputs[1:]), generator=generator)
    return made


def expected_changes(matrices: Matrices, scale: float = ALPHA / RANK) -> dict[Place, torch.Tensor]:
    return {("unet", path): scale * up.flatten(1) @ down.flatten(1) for path, (down, up) in matrices.items()}


def kohya_file(path: Path, matrices: Matrices, metadata: dict[str, str], alpha: float | None = None) -> Path:
    tensors = {}
    for layer, (down, up) in matrices.items():
        name = kohya_name("unet", layer)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path, metadata=METADATA | metadata)
    return path


def peft_file(path: Path, matrices: Matrices, prefix: str, metadata: dict[str, str]) -> Path:
    tensors = {}
    for layer, (down, up) in matrices.items():
        tensors |= {f"{prefix}{layer}.lora_A.weight": down, f"{prefix}{layer}.lora_B.weight": up}
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path, metadata=metadata)
    return path


def peft_folder(folder: Path, matrices: Matrices, config: dict) -> Path:
    peft_file(folder / "adapter_model.safetensors", matrices, "base_model.model.", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


PLACES: dict[str, Callable[[Path, Matrices], Path]] = {
    "alpha tensors": lambda folder, m: kohya_file(folder / "a.safetensors", m, {}, ALPHA),
    "lora_adapter_metadata": lambda folder, m: peft_file(
        folder / "a.safetensors", m, "unet.", {"lora_adapter_metadata": json.dumps(SCALE)}
    ),
    "lora_adapter_metadata of a UNet alone": lambda folder, m: peft_file(
        folder / "a.safetensors",
        m,
        "",
        {"lora_adapter_metadata": json.dumps({"r": RANK, "lora_alpha": ALPHA})},
    ),
    "ss_network_alpha": lambda folder, m: kohya_file(
        folder / "a.safetensors", m, {"ss_network_dim": str(RANK), "ss_network_alpha": str(ALPHA)}
    ),
    "adapter_config.json": lambda folder, m: (
        peft_folder(folder / "peft", m, CONFIG) / "adapter_model.safetensors"
    ),
    "folder of PEFT": lambda folder, m: peft_folder(folder / "peft", m, CONFIG),
}


def changes_of_adapter(adapter: Adapter) -> dict[Place, torch.Tensor]:
    return {(part, path): layer.change().detach() for part, path, layer in adapter.walk()}


def unet() -> Module:
    return open_base("tiny-sdxl", MODELS).unet(torch.device("cpu"), torch.float32)


def changes_in_file(path: Path) -> dict[Place, torch.Tensor]:
    """The changes of a file that this program wrote, computed without its reader."""
    tensors, changes = load_file(path), {}
    for layer in LAYERS:
        name, other = kohya_name("unet", layer), diffusers_name("unet", layer)
        if f"{other}.lora_A.weight" in tensors:
            down, up, scale = tensors[f"{other}.lora_A.weight"], tensors[f"{other}.lora_B.weight"], 1.0
        else:
            down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
            scale = float(tensors[f"{name}.alpha"]) / len(down)
        changes["unet", layer] = scale * up.flatten(1) @ down.flatten(1)
    return changes


@pytest.mark.parametrize("place", PLACES)
def test_every_command_reads_the_same_scale(place: str, matrices: Matrices, tmp_path: Path):
    source, expected = PLACES[place](tmp_path, matrices), expected_changes(matrices)
    assert_same(changes_of_adapter(attach_lora(source, {"unet": unet()})), expected)
    for form in ("kohya", "diffusers"):
        convert(source, tmp_path / f"{form}.safetensors", form)
        assert_same(changes_in_file(tmp_path / f"{form}.safetensors"), expected)
        assert_same(changes_of(tmp_path / f"{form}.safetensors"), expected)
    merge(tmp_path / "merged.safetensors", [Term(source, 0.5), Term(source, 0.5)])
    assert_same(changes_in_file(tmp_path / "merged.safetensors"), expected)
    resize(source, tmp_path / "resized.safetensors", energy=1)
    assert_same(changes_in_file(tmp_path / "resized.safetensors"), expected, atol=1e-5)
    report = check_file(source, base=TINY)
    assert report.scales == {"unet": (0.5, 0.5)}
    assert "at scale 0.5" in report.lines()[0]
    described = dict(describe(source))
    norms = [float(change.norm()) for change in expected.values()]
    assert f"rank {RANK}, alpha {ALPHA:g}" in described["UNet"]
    assert float(described["mean change"].split()[0]) == pytest.approx(sum(norms) / len(norms), rel=1e-3)


@pytest.mark.parametrize("place", PLACES)
def test_baking_and_starting_a_training_use_that_scale(place: str, matrices: Matrices, tmp_path: Path):
    source, expected = PLACES[place](tmp_path, matrices), expected_changes(matrices)
    bake(source, tmp_path / "baked", TINY)
    before, after = base_weights(TINY)["unet"], base_weights(tmp_path / "baked")["unet"]
    for (_, path), change in expected.items():
        old = before.tensor(path)
        exact = old.float() + change.reshape(old.shape)
        torch.testing.assert_close(after.tensor(path), exact.to(old.dtype), rtol=1e-4, atol=1e-4)
    model, adapter = unet(), Adapter()
    adapter.attach("unet", model, dict.fromkeys(LAYERS, LayerSpec(rank=RANK, alpha=3.0)))
    start_from(source, adapter)
    assert_same(changes_of_adapter(adapter), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_rank_stabilised", [False, True])
def test_a_folder_that_peft_saved_changes_the_unet_as_peft_does(is_rank_stabilised: bool, tmp_path: Path):
    model = UNet2DConditionModel.from_pretrained(TINY / "unet", local_files_only=True)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "to_k", "conv1"],
        rank_pattern={"attn2.to_k": 3},
        alpha_pattern={r"mid_block\..*conv1": 1, ATTENTION: 2},
        use_rslora=is_rank_stabilised,
    )
    peft_model = get_peft_model(model, config)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    peft_model.save_pretrained(str(tmp_path / "saved"))
    expected = {
        ("unet", name): module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert len(expected) > 20
    assert_same(changes_of(tmp_path / "saved"), expected)
    assert_same(changes_of_adapter(attach_lora(tmp_path / "saved", {"unet": unet()})), expected)


def test_alpha_tensors_win_over_the_header_and_the_header_over_the_configuration(
    matrices: Matrices, tmp_path: Path
):
    metadata = {"ss_network_alpha": "1", "lora_adapter_metadata": json.dumps({"unet.lora_alpha": 1})}
    kohya_file(tmp_path / "a.safetensors", matrices, metadata, ALPHA)
    assert_same(changes_of(tmp_path / "a.safetensors"), expected_changes(matrices))
    folder = peft_folder(tmp_path / "peft", matrices, CONFIG | {"lora_alpha": 1})
    header = {"lora_adapter_metadata": json.dumps(SCALE)}
    peft_file(folder / "adapter_model.safetensors", matrices, "base_model.model.", header)
    assert_same(changes_of(folder), expected_changes(matrices))


def test_one_alpha_tensor_switches_the_alpha_of_kohyas_metadata_off(matrices: Matrices, tmp_path: Path):
    """A module without alpha has scale 1 beside others that have one."""
    kohya_file(tmp_path / "a.safetensors", matrices, {"ss_network_alpha": "1"}, ALPHA)
    tensors = load_file(tmp_path / "a.safetensors")
    del tensors[f"{kohya_name('unet', CONVOLUTION)}.alpha"]
    save_file(tensors, tmp_path / "a.safetensors", metadata={"ss_network_alpha": "1"})
    expected = expected_changes(matrices)
    expected["unet", CONVOLUTION] *= RANK / ALPHA
    assert_same(changes_of(tmp_path / "a.safetensors"), expected)


@pytest.mark.parametrize("alpha", ["None", "Dynamic", "nan", ""])
def test_an_alpha_of_kohyas_metadata_that_is_no_number_is_ignored(
    alpha: str, matrices: Matrices, tmp_path: Path
):
    kohya_file(tmp_path / "a.safetensors", matrices, {"ss_network_alpha": alpha})
    assert_same(changes_of(tmp_path / "a.safetensors"), expected_changes(matrices, 1.0))


def test_convolutions_have_the_conv_alpha_of_kohyas_metadata(matrices: Matrices, tmp_path: Path):
    arguments = json.dumps({"conv_dim": "4", "conv_alpha": "1.0"})
    kohya_file(tmp_path / "a.safetensors", matrices, {"ss_network_alpha": "2", "ss_network_args": arguments})
    expected = expected_changes(matrices)
    expected["unet", CONVOLUTION] /= 2
    assert_same(changes_of(tmp_path / "a.safetensors"), expected)


def test_kohyas_metadata_is_a_record_only_in_a_file_with_pefts_names(matrices: Matrices, tmp_path: Path):
    """`lora convert --to diffusers` writes both: the scale is in lora_B, and must not be applied twice."""
    kohya_file(tmp_path / "a.safetensors", matrices, {}, ALPHA)
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "diffusers")
    assert read_modules(tmp_path / "b.safetensors").metadata["ss_network_alpha"] == "2"
    assert_same(changes_of(tmp_path / "b.safetensors"), expected_changes(matrices))


def test_a_configuration_beside_a_converted_file_does_not_scale_it_again(matrices: Matrices, tmp_path: Path):
    folder = peft_folder(tmp_path / "peft", matrices, CONFIG)
    convert(folder, folder / "converted.safetensors", "diffusers")
    assert_same(changes_of(folder / "converted.safetensors"), expected_changes(matrices))


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (CONFIG | {"r": 8}, "states rank 8"),
        (CONFIG | {"rank_pattern": {ATTENTION: 7}}, "states rank 7"),
        (CONFIG | {"peft_type": "OFT"}, "of type OFT"),
        (CONFIG | {"lora_alpha": "x"}, "is damaged"),
        (CONFIG | {"alpha_pattern": {"([a-z_.0-9]+)+X": 2}}, "is damaged"),
        ([1], "is damaged"),
        ("\0", "is damaged"),
    ],
    ids=["rank", "rank of a layer", "type", "alpha", "endless expression", "list", "text"],
)
def test_a_configuration_that_does_not_fit_is_refused_in_a_sentence(
    config, word: str, matrices: Matrices, tmp_path: Path, monkeypatch, capsys
):
    folder = peft_folder(tmp_path / "peft", matrices, config)
    with pytest.raises(LoraFileError, match=word):
        read_modules(folder)
    for arguments in (["inspect", folder], ["convert", folder, tmp_path / "b.safetensors", "--to", "kohya"]):
        status, _, err = by_command_line(["lora", *arguments], monkeypatch, capsys)
        assert status == 1
        assert word in err
        assert err.count("\n") == 1
    report = check_file(folder, base=TINY)
    assert not report.ok
    assert any(word in fault for fault in report.faults)


def test_many_expressions_in_a_header_end_soon(matrices: Matrices, tmp_path: Path):
    patterns = {f"{'.*' * 2}x{number}": 1 for number in range(101)}
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2, "unet.alpha_pattern": patterns})}
    peft_file(tmp_path / "a.safetensors", matrices, "unet.", metadata)
    with pytest.raises(LoraFileError, match="damaged lora_adapter_metadata"):
        read_modules(tmp_path / "a.safetensors")


@pytest.mark.parametrize("place", ["ss_network_alpha", "adapter_config.json", "lora_adapter_metadata"])
def test_check_warns_where_other_tools_do_not_find_the_scale(place: str, matrices: Matrices, tmp_path: Path):
    source = PLACES[place](tmp_path, matrices)
    (warning,) = [text for text in check_file(source, base=TINY).warnings if "scale" in text]
    assert place in warning
    assert "lora convert --to kohya" in warning
    convert(source, tmp_path / "b.safetensors", "kohya")
    assert not check_file(tmp_path / "b.safetensors", base=TINY).warnings


def test_a_peft_file_without_its_configuration_is_used_at_scale_1_with_a_notice(
    matrices: Matrices, tmp_path: Path, monkeypatch, capsys
):
    folder = peft_folder(tmp_path / "peft", matrices, CONFIG)
    (folder / "adapter_config.json").unlink()
    file = folder / "adapter_model.safetensors"
    notice = "adapter_config.json; that is not beside it"
    assert_same(changes_of(file), expected_changes(matrices, 1.0))
    assert notice in dict(describe(file))["note"]
    assert any(notice in warning for warning in check_file(file, base=TINY).warnings)
    status, _, err = by_command_line(
        ["lora", "convert", file, tmp_path / "b.safetensors", "--to", "kohya"], monkeypatch, capsys
    )
    assert status == 0
    assert notice in err
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "job.json").write_text(json.dumps({"tool": "check", "source": str(file)}))
    assert work(tmp_path / "job", MODELS) == "finished"
    assert notice in json.loads((folder / "entry.json").read_text())["problem"]


def test_a_folder_without_a_lora_is_refused_in_a_sentence(tmp_path: Path):
    with pytest.raises(LoraFileError, match=r"is a folder without adapter_model\.safetensors"):
        read_modules(tmp_path)
