"""Full disks: a tool or training fails with one sentence and leaves no partial file."""

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

EVENTS = "/runs/ink/events.jsonl"


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Makes larger writes fail with EFBIG, as a FAT disk or a quota does."""
    previous_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The default action of SIGXFSZ ends the process; ignoring it turns the signal into an OSError.
    previous_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, previous_limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, previous_limit)
        signal.signal(signal.SIGXFSZ, previous_handler)


@pytest.mark.parametrize("command", ["convert", "merge", "resize", "bake", "label"])
def test_a_tool_on_a_full_disk_reports_it_and_leaves_the_folder_unchanged(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    with file_size_limit(4096):
        status, _, err = by_command_line(["lora", command, *arguments], monkeypatch, capsys)
    assert status == 1
    assert "File too large" in err
    assert "unexpected error" not in err
    assert err.count("\n") == 1
    assert len(err) < 400
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("number", "cause", "words"),
    [
        (errno.ENOSPC, "disk", "the disk is full; free some space"),
        (errno.EFBIG, "disk", "takes no file as large as this one; choose another disk"),
        (
            errno.EROFS,
            "fault",
            f"a file can't be written or read (Read-only file system: {EVENTS}); repair that",
        ),
        (errno.EIO, "fault", f"(Input/output error: {EVENTS}); repair that"),
    ],
)
def test_an_error_of_the_disk_is_reported_with_its_remedy(number: int, cause: str, words: str):
    fields = failure_fields(OSError(number, os.strerror(number), EVENTS), config_from({}))
    assert fields["cause"] == cause
    assert words in fields["message"]
    assert fields["message"].endswith("the last checkpoint is kept")
