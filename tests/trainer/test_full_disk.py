"""A disk that takes no more: one sentence, and nothing half-written is left."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.trainer.lora_file.lora_samples import ATTENTION, by_command_line, shape_of, write_lora
from trainer.config import config_from
from trainer.runs.failures import failure_fields


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """As a FAT disk or a quota does it."""
    before, told = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, told)


@pytest.mark.parametrize("command", ["convert", "merge", "resize", "bake", "label"])
def test_a_tool_that_runs_out_of_disk_says_so_and_leaves_the_folder_as_it_was(
    command: str, tmp_path: Path, monkeypatch, capsys
):
    file, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_lora(file, {("unet", ATTENTION): shape_of(ATTENTION)}, rank=lambda n: 16)
    before = file.read_bytes()
    arguments = {
        "convert": [file, out, "--to", "kohya"],
        "merge": [out, file],
        "resize": [file, out, "--rank", "9"],
        "bake": [file, tmp_path / "base"],
        "label": [file, "--title", "x"],
    }[command]
    with files_of_at_most(4096):
        status, _, err = by_command_line(["lora", command, *arguments], monkeypatch, capsys)
    assert (
        status == 1
        and "File too large" in err
        and err.count("\n") == 1
        and len(err) < 400
        and "unexpected error" not in err
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"] and file.read_bytes() == before


@pytest.mark.parametrize(
    ("number", "cause", "words"),
    [
        (errno.ENOSPC, "disk", "the disk is full; free some space"),
        (errno.EFBIG, "disk", "takes no file as large as this one; choose another disk"),
        (
            errno.EROFS,
            "fault",
            "a file can't be written or read (Read-only file system: /runs/ink/events.jsonl); repair that",
        ),
        (errno.EIO, "fault", "(Input/output error: /runs/ink/events.jsonl); repair that"),
    ],
)
def test_a_training_that_its_disk_ends_says_what_to_do(number: int, cause: str, words: str):
    told = failure_fields(OSError(number, os.strerror(number), "/runs/ink/events.jsonl"), config_from({}))
    assert (
        told["cause"] == cause
        and words in told["message"]
        and told["message"].endswith("the last checkpoint is kept")
    )
