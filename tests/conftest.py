"""The bundled base and sample set, and one short training that many tests look at."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No test is timed: a busy machine is not a fault.
settings.register_profile("studio", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("studio")

# Two processes with a thread each do more than one with two; trainings that a test starts inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
INK = ROOT / "datasets" / "ink-emoji"


def trainer(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`python -m trainer ...` as a user starts it."""
    command = [sys.executable, "-m", "trainer", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def ink_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps on the sample set, by the command line."""
    output = tmp_path_factory.mktemp("runs") / "ink"
    trainer(
        "train",
        INK,
        "--output",
        output,
        "--steps",
        "12",
        "--trigger",
        "ink",
        "--set",
        "network=lora",
        "--set",
        "checkpoint_every=5",
        "--set",
        "sample_steps=4",
    )
    return output


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest come first, so that two processes end together."""
    long = ("test_train.py", "test_style.py", "test_browser.py", "test_network_training.py", "test_memory.py")
    items.sort(key=lambda item: long.index(item.path.name) if item.path.name in long else len(long))
