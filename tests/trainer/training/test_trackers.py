"""Trackers: a missing or broken package is reported before any work is done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import INK, ROOT, SMALLEST, trainer


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
