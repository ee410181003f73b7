"""A diffusers folder with a missing or damaged file: all commands name that file in one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import MODELS, trainer

DAMAGE = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-20],
    "list": lambda data: b"[1]",
    "binary": lambda data: b"\xff\xfe\0\1" * 10,
}
CONFIGS = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
)
WEIGHTS = ("unet/diffusion_pytorch_model.safetensors", "text_encoder_2/model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODELS / "tiny-sdxl", tmp_path / "painted"))


def error_of(*arguments: str | Path) -> str:
    done = trainer(*arguments, check=False)
    assert done.returncode == 1
    assert "unexpected error" not in done.stderr
    assert done.stderr.startswith("impasto: ")
    assert done.stderr.count("\n") == 1
    assert ";" in done.stderr
    return done.stderr


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_damaged_configuration_is_named(folder: Path, name: str, how: str):
    (folder / name).write_bytes(DAMAGE[how]((folder / name).read_bytes()))
    assert f"painted is not a complete diffusers folder ({name} can't be read)" in error_of(
        "base", "check", folder
    )


def test_the_missing_key_of_a_configuration_is_named(folder: Path):
    (folder / "vae" / "config.json").write_text('{"block_out_channels": [1, 2]}')
    assert "(vae/config.json lacks scaling_factor)" in error_of("base", "check", folder)


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", WEIGHTS)
def test_damaged_weights_are_found_by_base_check(folder: Path, name: str, how: str):
    (folder / name).write_bytes(DAMAGE[how]((folder / name).read_bytes()))
    assert Path(name).name in error_of("base", "check", folder)


@pytest.mark.parametrize("how", [*DAMAGE, "gone"])
@pytest.mark.parametrize("name", ["tokenizer/vocab.json", "tokenizer_2/merges.txt"])
def test_a_damaged_vocabulary_is_named(folder: Path, ink_run: Path, name: str, how: str, tmp_path: Path):
    if how == "gone":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(DAMAGE[how]((folder / name).read_bytes()))
    drawing = (
        "preview",
        ink_run / "ink.safetensors",
        "--prompt",
        "a star",
        "--out-dir",
        tmp_path / "drawn",
        "--base",
        folder,
    )
    for arguments in (("base", "check", folder), drawing):
        assert f"painted has a damaged {name.partition('/')[0]} (" in error_of(*arguments)
    assert not (tmp_path / "drawn").exists()
