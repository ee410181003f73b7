"""The line: one job at a time on each device, in order, never twice, found again after any death."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.conftest import INK, MODELS
from trainer.config import config_from
from trainer.errors import RunError
from trainer.runs import events
from trainer.runs.queue import FILES, Device, Queue
from trainer.runs.run import Run, claim, create

CPU = (Device(id="cpu", words="CPU"),)


def a_run(outputs: Path, name: str) -> Path:
    """A run whose training fails within a moment: its folder of pictures is empty."""
    (outputs / "no-pictures").mkdir(parents=True, exist_ok=True)
    return create(outputs / name, config_from({"name": name}), [outputs / "no-pictures"]).path


def submitted(queue: Queue, name: str, **more: str) -> Path:
    folder = a_run(queue.outputs, name)
    queue.submit(folder, "train", ["resume", str(folder)], **more)
    return folder


def settled(queue: Queue) -> None:
    """Until nothing runs."""
    for _ in range(600):
        queue.step()
        if not [job for job in queue.all() if job.state == "running"]:
            return
        time.sleep(0.05)
    raise AssertionError([job.state for job in queue.all()])


def names(queue: Queue, state: str) -> list[str]:
    return [job.folder.name for job in queue.all() if job.state == state]


def test_jobs_wait_for_the_device_and_start_in_the_order_that_the_artist_gave(tmp_path: Path):
    queue = Queue(tmp_path, MODELS, CPU)
    with claim(Run(a_run(tmp_path, "begun-elsewhere"))):  # by a terminal, say
        queue.step()
        for name in ("first", "second", "third"):
            submitted(queue, name)
        assert names(queue, "running") == ["begun-elsewhere"] and names(queue, "waiting") == [
            "first",
            "second",
            "third",
        ]
        assert [job.queue_position for job in queue.active()] == [0, 1, 2, 3]
        queue.move(tmp_path / "third", -1)
        queue.move(tmp_path / "first", -1)  # has nobody before it
        queue.stop(tmp_path / "second")
        assert (
            names(queue, "waiting") == ["first", "third"]
            and queue.blocking_job()
            and queue.blocking_job("cpu")
        )
    settled(queue)
    assert not queue.active() and queue.blocking_job() is None
    ends = {name: events.read(tmp_path / name / "events.jsonl")[0] for name in ("first", "second", "third")}
    assert not ends["second"] and ends["first"][-1]["cause"] == ends["third"][-1]["cause"] == "pictures"
    assert ends["first"][-1]["time"] < ends["third"][0]["time"]
    assert {job.folder.name: job.state for job in queue.all()} == {
        "begun-elsewhere": "interrupted",
        "first": "failed",
        "second": "stopped",
        "third": "failed",
    }


def test_many_servers_start_a_job_once(tmp_path: Path):
    Queue(tmp_path, MODELS, CPU).pause(True)
    submitted(Queue(tmp_path, MODELS, CPU), "once")
    servers = [Queue(tmp_path, MODELS, CPU) for _ in range(6)]
    servers[0].pause(False)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: servers[n % 6].step(), range(30)))
    for server in servers:
        settled(server)
    said = events.read(tmp_path / "once" / "events.jsonl")[0]
    assert [event["kind"] for event in said].count("ended") == 1


def test_a_click_that_arrives_twenty_times_makes_one_job(tmp_path: Path):
    queue = Queue(tmp_path, MODELS, ())
    folder = a_run(tmp_path, "run")
    with ThreadPoolExecutor(8) as pool:
        jobs = list(
            pool.map(
                lambda _: queue.submit(folder, "train", ["resume", str(folder)], token="click"), range(20)
            )
        )
    assert len({job.id for job in jobs}) == 1 and len(queue.active()) == 1
    with pytest.raises(RunError, match="in the line already"):
        queue.submit(folder, "train", ["resume", str(folder)], token="another click")


@pytest.mark.parametrize("harm", ["garbage", "gone", "torn"])
def test_a_damaged_line_is_made_anew_from_its_folders(tmp_path: Path, harm: str):
    queue = Queue(tmp_path, MODELS, ())
    for name in ("a", "b", "c"):
        submitted(queue, name, token=f"click {name}")
    queue.move(tmp_path / "c", -1)
    file = tmp_path / ".queue.sqlite"
    for ending in ("-wal", "-shm"):
        (tmp_path / f".queue.sqlite{ending}").unlink(missing_ok=True)
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(b"no database" * 1000 if harm == "garbage" else file.read_bytes()[:5000])
    again = Queue(tmp_path, MODELS, ())
    assert names(again, "waiting") == ["a", "c", "b"]
    assert again.find_by_token("click b") and len(again.active()) == 3


def test_a_killed_training_is_told_and_not_started_again_by_itself(tmp_path: Path):
    queue = Queue(tmp_path, MODELS, (Device(id="1", words="CUDA", visible="1"),))
    folder = submitted(queue, "run")
    pid = queue._ledger.do(lambda db: db.execute("SELECT pid FROM job").fetchone()["pid"])
    assert psutil.Process(pid).environ()["CUDA_VISIBLE_DEVICES"] == "1"
    os.kill(pid, signal.SIGKILL)
    settled(queue)
    job = queue.find(folder)
    assert (
        job
        and (job.state, job.signal) == ("interrupted", signal.SIGKILL)
        and not (folder / ".queue.json").exists()
    )
    queue.step()
    assert not queue.active()


def test_a_training_that_is_stuck_ends_at_the_second_stop_and_not_before(tmp_path: Path):
    queue = Queue(tmp_path, MODELS, CPU)
    made = create(
        tmp_path / "run", config_from({"name": "run", "steps": 100_000, "base": "tiny-sdxl"}), [INK]
    )
    queue.submit(made.path, "train", ["resume", str(made.path)])
    worker = psutil.Process(queue._ledger.do(lambda db: db.execute("SELECT pid FROM job").fetchone()["pid"]))
    while not made.is_alive():
        time.sleep(0.05)
    worker.suspend()
    queue.stop(made.path, at_once=True)
    time.sleep(0.3)
    assert worker.status() == psutil.STATUS_STOPPED
    queue.stop(made.path, at_once=True)
    settled(queue)
    job = queue.find(made.path)
    assert (
        job
        and (job.state, job.signal, job.stops) == ("interrupted", signal.SIGKILL, 2)
        and not made.is_alive()
    )


def test_a_server_that_comes_later_finds_what_runs(tmp_path: Path):
    queue = Queue(tmp_path, MODELS, CPU)
    folder = a_run(tmp_path, "run")
    with claim(Run(folder)):
        queue.step()
        (tmp_path / ".queue.sqlite").unlink()
        later = Queue(tmp_path, MODELS, CPU)
        later.step()
        assert names(later, "running") == ["run"]
        with pytest.raises(RunError, match="in the line already"):
            later.submit(folder, "train", ["resume", str(folder)])
    later.step()
    assert names(later, "interrupted") == ["run"]


def test_work_on_files_does_not_wait_for_a_training(tmp_path: Path):
    queue = Queue(tmp_path, MODELS, CPU)
    with claim(Run(a_run(tmp_path, "training"))):
        queue.step()
        folder = submitted(queue, "files", lane=FILES)
        assert queue.blocking_job("cpu") and names(queue, "running") == ["training", "files"]
    settled(queue)
    assert json.loads((folder / "events.jsonl").read_text().splitlines()[-1])["how"] == "failed"


def test_a_stop_said_before_the_process_listens_is_heard(tmp_path: Path, capfd: pytest.CaptureFixture):
    """`resume --commands-offset 0` takes a stop that stands in commands.jsonl already."""
    from tests.conftest import trainer

    made = create(tmp_path / "run", config_from({"name": "run", "steps": 2, "base": "tiny-sdxl"}), [INK])
    events.append(made.commands, "stop")
    trainer("resume", made.path, "--models", MODELS, "--commands-offset", "0")
    said = events.read(made.events)[0]
    assert said[-1]["how"] == "stopped" and not [event for event in said if event["kind"] == "step"]
    assert len(made.manifest.items) == 24
