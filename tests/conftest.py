"""The bundled base and sample set, and one short training that many tests look at."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock  # torch and huggingface_hub bring it
from hypothesis import HealthCheck, settings

# No test is timed: a busy machine is not a fault.
settings.register_profile(
    "studio", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("studio")

# Two processes with a thread each do more than one with two; trainings that a test starts inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
INK = ROOT / "datasets" / "ink-emoji"
# Of a training that is only to happen: the least that still is one.
SMALLEST = (
    "--batch",
    "2",
    "--resolution",
    "64",
    "--precision",
    "fp32",
    "--sample-prompt",
    "a star --w 64 --h 64 --s 1",
)


def trainer(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`python -m trainer ...` as a user types it, in this process: each one of its own would load torch anew."""
    from accelerate.state import AcceleratorState

    from trainer.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    previous, sys.argv = sys.argv, ["python -m trainer", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main()
    finally:
        sys.argv = previous
        for number, handle in handlers.items():
            signal.signal(number, handle)
        AcceleratorState._reset_state(reset_partial_state=True)  # what a process forgets when it ends
    done = subprocess.CompletedProcess(list(map(str, arguments)), status, out.getvalue(), err.getvalue())
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one temporary folder that all processes of this run of the tests share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def warm_cache(common_folder: Path) -> Path:
    """One cache of latents, texts and plans for all tests: what one has prepared serves the others, as in a user's folder."""
    folder = common_folder / "runs" / ".cache"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def shared_cache(tmp_path: Path, warm_cache: Path) -> None:
    """A training into `tmp_path / "run"` finds the warm cache beside it."""
    (tmp_path / ".cache").symlink_to(warm_cache)


@pytest.fixture(scope="session")
def ink_run(common_folder: Path, warm_cache: Path) -> Path:
    """A run of 12 steps on the sample set, by the command line; whichever process asks first makes it for all."""
    output = warm_cache.parent / "ink"
    with FileLock(common_folder / "ink.lock"):
        if not (output / "ink.safetensors").exists():
            chosen = ("network=lora", "precision=fp32", "checkpoint_every=5", "sample_steps=2")
            options = [word for setting in chosen for word in ("--set", setting)]
            trainer("train", INK, "--output", output, "--steps", "12", "--trigger", "ink", *options)
    return output


LONGEST = (
    "test_golden.py",
    "test_browser_everyone.py",
    "test_train.py",
    "test_browser_train.py",
    "test_network_training.py",
    "test_browser.py",
    "test_style.py",
    "test_browser_try_it.py",
    "test_plan.py",
    "test_browser_library.py",
    "test_tight_memory.py",
    "test_counted_work.py",
    "test_browser_pictures.py",
    "test_lora_file.py",
    "test_bases.py",
    "test_preview.py",
    "test_validate.py",
    "test_memory.py",
    "test_compiled.py",
    "test_between.py",
    "test_benchmarks.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest come first, so that all processes end together; those that wait for a browser beside those that compute."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_collection_finish() -> None:
    """What imports have made stays to the end, so that collecting garbage, thrice in each training, need not go through it."""
    gc.collect()
    gc.freeze()
