"""Trackers: a missing or broken package is reported before any work is done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

from tests.conftest import INK, ROOT, SMALLEST, trainer
from trainer.config import TrainConfig
from trainer.json_files import read_object
from trainer.training.trackers import start_tracker, tracker_options


def package(folder: Path, code: str) -> None:
    """Creates a package `wandb` with this code, as pip would install it."""
    (folder / "wandb").mkdir()
    (folder / "wandb" / "__init__.py").write_text(code)
    (folder / "wandb-9.dist-info").mkdir()
    (folder / "wandb-9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: wandb\nVersion: 9\n")


@pytest.mark.skipif("wandb" in sys.modules, reason="the real package is loaded already")
def test_a_broken_tracker_package_is_reported_in_one_sentence_and_leaves_no_run(tmp_path: Path, monkeypatch):
    package(tmp_path, "import a_package_that_pip_left_out")
    monkeypatch.syspath_prepend(tmp_path)
    done = trainer("train", INK, "--output", tmp_path / "run", "--set", "log_with=wandb", check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "wandb is broken" in done.stderr
    assert "a_package_that_pip_left_out" in done.stderr
    assert "set log_with to none" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_tracker_without_a_login_is_reported_in_one_sentence(tmp_path: Path):
    """wandb raises such an error where it finds no key and no terminal."""
    package(tmp_path, "def init(**options):\n    raise RuntimeError('No API key configured.\\nLog in.')")
    command = [
        sys.executable,
        "-m",
        "trainer",
        "train",
        INK,
        "--output",
        tmp_path / "run",
        *SMALLEST,
        "--steps",
        "1",
    ]
    # accelerate searches for trackers when it is imported, so the package must be on the path before.
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*command, "--set", "log_with=wandb"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (
        "wandb does not start (No API key configured. Log in.); wandb login, or set WANDB_MODE=offline"
        in done.stderr
    )


_RECORDING = """
import json, os

class config:
    update = staticmethod(lambda values, **options: None)

class Run:
    def log(self, values, **options): pass
    def finish(self): pass

def init(**options):
    with open(os.environ["RECORDED"], "a") as file:
        file.write(json.dumps(options) + "\\n")
    return Run()
"""


_START_TWICE = """
import sys
from pathlib import Path
import torch
from trainer.config import TrainConfig
from trainer.training.processes import open_accelerator

for _ in range(2):
    folder = Path(sys.argv[1])
    open_accelerator(TrainConfig(log_with="wandb"), folder, torch.device("cpu"), torch.float32).end_training()
"""


def test_a_run_that_continues_continues_its_run_in_weights_and_biases(tmp_path: Path):
    package(tmp_path, _RECORDING)
    recorded, output = tmp_path / "recorded.jsonl", tmp_path / "run"
    output.mkdir()
    # accelerate searches for trackers when it is imported, so the package must be on the path before.
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "RECORDED": str(recorded)}
    subprocess.run([sys.executable, "-c", _START_TWICE, output], env=environment, check=True)
    begun, continued = map(json.loads, recorded.read_text().splitlines())
    assert begun["id"] == continued["id"] == read_object(output / "tracker.json")["wandb"]
    assert begun["resume"] == continued["resume"] == "allow"
    assert begun["project"] == "impasto"


def test_settings_are_stored_once_in_tensorboard(tmp_path: Path):
    """TensorBoard shows settings that are stored again as a second run."""
    config = TrainConfig(log_with="tensorboard")
    for _ in range(2):
        options = tracker_options(config, tmp_path)
        accelerator = Accelerator(cpu=True, **options)
        start_tracker(accelerator, config, tmp_path)
        accelerator.end_training()
    assert len(list(tmp_path.rglob("hparams.yml"))) == 1
