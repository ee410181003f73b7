"""Commands that only read headers, files or pictures start without the libraries that take seconds to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.headers.base_model import BUNDLED_BASE

_SLOW = ("torch", "diffusers", "transformers", "accelerate", "scipy")
_LORA = Path(__file__).parents[2] / "golden" / "recorded" / "files" / "style.safetensors"
_PROGRAM = f"""
import sys
from trainer.__main__ import main

sys.argv[0] = "trainer"
status = main()
print("status", status, "imported", *(name for name in {_SLOW} if name in sys.modules), file=sys.stderr)
"""


def _run(*arguments: str | Path) -> tuple[int, set[str], str]:
    """(exit status, slow libraries that the command imported, output) of a command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    _, status, _, *imported = done.stderr.splitlines()[-1].split()
    return int(status), set(imported), done.stdout


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    (folder / "a.txt").write_text("a cat", encoding="utf-8")
    return folder


def test_dataset_check_imports_no_slow_library(pictures: Path):
    status, imported, output = _run("dataset", "check", pictures)
    assert (status, imported) == (0, set())
    assert "a.png: 128x96" in output


@pytest.mark.parametrize(
    "arguments", [("base", "check", BUNDLED_BASE), ("base", "list"), ("settings",), ("lora", "--help")]
)
def test_reading_a_base_or_the_settings_imports_no_slow_library(arguments: tuple[str, ...]):
    status, imported, output = _run(*arguments)
    assert (status, imported) == (0, set())
    assert output


@pytest.mark.parametrize("command", ["inspect", "label", "check"])
def test_reading_a_lora_file_imports_no_slow_library(command: str):
    status, imported, output = _run(
        "lora", command, _LORA
    )  # the change of a LoHa or LoKr is computed with PyTorch
    assert (status, imported) == (0, set())
    assert output


def test_device_imports_torch_alone():
    status, imported, _ = _run("device")
    assert (status, imported) == (0, {"torch"})


def test_base_check_counts_the_parameters_of_the_models():
    from trainer.cli import MODELS
    from trainer.sdxl.base import open_base
    from trainer.sdxl.describe import describe_base
    from trainer.sdxl.weights import build

    base = open_base(BUNDLED_BASE, MODELS)
    described = dict(describe_base(base))
    for part, label in (("unet", "UNet"), ("vae", "VAE"), ("text_encoder_2", "text encoder 2")):
        count = sum(parameter.numel() for parameter in build(part, base.configs).parameters())
        assert described[label] == f"{count:,} parameters"
