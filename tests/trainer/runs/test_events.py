"""Event logs: append, read from an offset, survive killed writers, fold into a view."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from trainer.runs import events


def test_events_are_read_from_an_offset(tmp_path: Path):
    log = tmp_path / "events.jsonl"
    events.append(log, "stage", stage="“öffnen”")
    first, offset = events.read(log)
    events.append(log, "step", step=1)
    second, _ = events.read(log, offset)
    assert [e["kind"] for e in first] == ["stage"]
    assert [e["kind"] for e in second] == ["step"]


def test_an_incomplete_line_of_a_killed_writer_loses_no_other_event(tmp_path: Path):
    log = tmp_path / "events.jsonl"
    events.append(log, "step", step=1)
    with log.open("ab") as file:
        file.write(b'{"kind": "step", "st')
    events.append(log, "step", step=2)
    assert [e["step"] for e in events.read(log)[0]] == [1, 2]


def _write_many(path: Path, writer: int) -> None:
    for number in range(200):
        events.append(path, "step", writer=writer, number=number)


def test_concurrent_writers_lose_no_line(tmp_path: Path):
    log = tmp_path / "events.jsonl"
    log.touch()
    writers = [
        multiprocessing.get_context("spawn").Process(target=_write_many, args=(log, n)) for n in range(3)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len({(e["writer"], e["number"]) for e in events.read(log)[0]}) == 600


@given(st.binary(max_size=300))
def test_reading_any_bytes_raises_nothing(data: bytes):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.write_bytes(data)
        parsed, offset = events.read(log)
        assert offset <= len(data)
        assert all(isinstance(e["kind"], str) for e in parsed)


def test_folding_in_pieces_equals_folding_at_once():
    log_events = [
        {"kind": "started"},
        {"kind": "step", "step": 1, "steps": 2, "loss": 0.5, "seconds_left": 1.0},
        {"kind": "step", "step": 2, "steps": 2, "loss": 0.4, "seconds_left": 0.0},
        {"kind": "saved", "file": "a.safetensors"},
        {"kind": "ended", "how": "finished"},
    ]
    at_once = events.fold(events.View(), log_events)
    in_pieces = events.View()
    for event in log_events:
        in_pieces = events.fold(in_pieces, [event])
    assert at_once == in_pieces
    assert at_once.ended == "finished"
    assert at_once.saved == "a.safetensors"
