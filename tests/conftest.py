"""Fixtures of all tests: the bundled base, the sample set, and one short training that many tests share."""

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

# No deadlines for examples: a test must not fail on a busy machine.
settings.register_profile(
    "studio", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("studio")

# Two processes with one thread each are faster than one with two; child processes inherit the variable.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
INK = ROOT / "datasets" / "ink-emoji"
# Options of the smallest possible training.
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
    """Runs `python -m trainer ...` in this process, since a process of its own would load torch again.

    Args:
        check: fails the test if the exit status is not 0.
    """
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
        AcceleratorState._reset_state(
            reset_partial_state=True
        )  # global state, which would otherwise end with the process
    done = subprocess.CompletedProcess(list(map(str, arguments)), status, out.getvalue(), err.getvalue())
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Temporary folder shared by all worker processes of this test session."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def warm_cache(common_folder: Path) -> Path:
    """Cache of latents, text embeddings and plans, shared by all tests as the runs of a user share theirs."""
    folder = common_folder / "runs" / ".cache"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def shared_cache(tmp_path: Path, warm_cache: Path) -> None:
    """Puts the shared cache beside `tmp_path / "run"`."""
    (tmp_path / ".cache").symlink_to(warm_cache)


@pytest.fixture(scope="session")
def ink_run(common_folder: Path, warm_cache: Path) -> Path:
    """A run of 12 steps on the sample set through the command line, created by the first process that needs
    it.
    """
    output = warm_cache.parent / "ink"
    with FileLock(common_folder / "ink.lock"):
        if not (output / "ink.safetensors").exists():
            chosen = ("network=lora", "precision=fp32", "checkpoint_every=5", "sample_steps=2")
            options = [word for setting in chosen for word in ("--set", setting)]
            trainer("train", INK, "--output", output, "--steps", "12", "--trigger", "ink", *options)
    return output


# Test files that take longest, the longest first, relative to tests/.
LONGEST = (
    "ui/test_browser_everyone.py",
    "trainer/test_train.py",
    "ui/test_browser_train.py",
    "trainer/training/test_networks.py",
    "ui/test_browser.py",
    "trainer/test_style.py",
    "ui/test_browser_try_it.py",
    "trainer/planning/test_plan.py",
    "ui/test_browser_library.py",
    "trainer/planning/test_tight_memory.py",
    "trainer/test_counted_work.py",
    "ui/test_browser_pictures.py",
    "trainer/lora_file/test_writer.py",
    "trainer/headers/test_base_model.py",
    "trainer/sampling/test_sampler.py",
    "trainer/training/test_validation.py",
    "trainer/planning/test_memory.py",
    "trainer/hardware/test_compile.py",
    "trainer/training/test_live_preview.py",
    "benchmarks/test_benchmarks.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the longest test files to the front, so that all worker processes end at about the same time.

    In this order a process that waits for a browser runs beside one that computes. Raises UsageError for a
    file that does not exist, since a renamed file would silently lose its place.
    """
    tests = ROOT / "tests"
    stale = [name for name in LONGEST if not (tests / name).is_file()]
    if stale:
        raise pytest.UsageError(
            f"LONGEST in tests/conftest.py names files that do not exist: {', '.join(stale)}"
        )
    rank = {tests / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish() -> None:
    """Excludes the objects of imported modules from garbage collection.

    Each training collects garbage three times, and traversing the modules' objects takes most of that time.
    """
    gc.collect()
    gc.freeze()
