"""The job queue: one job at a time on each device, in order, never twice, and recovered after any crash."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.conftest import INK, MODELS, trainer
from trainer.config import config_from
from trainer.errors import RunError
from trainer.runs import events
from trainer.runs.job import FILES, Device, Job
from trainer.runs.queue import Queue
from trainer.runs.run import Run, claim, create

CPU = (Device(id="cpu", words="CPU"),)
DEADLINE_SECONDS = 60.0  # far more than a job of these tests takes, also on a busy machine


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Polls until `condition` is true; fails after DEADLINE_SECONDS."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting until {what}"
        time.sleep(0.02)


def create_failing_run(outputs: Path, name: str) -> Path:
    """A run whose training fails within a moment: its folder of pictures is empty."""
    (outputs / "no-pictures").mkdir(parents=True, exist_ok=True)
    return create(outputs / name, config_from({"name": name}), [outputs / "no-pictures"]).path


def submit(queue: Queue, name: str, **options: str) -> Path:
    folder = create_failing_run(queue.outputs, name)
    queue.submit(folder, "train", ["resume", str(folder)], **options)
    return folder


def wait_until_idle(queue: Queue) -> None:
    def is_idle() -> bool:
        queue.update()
        return not names(queue, "running")

    wait_for(is_idle, f"no job runs in {queue.outputs.name}")


def names(queue: Queue, state: str) -> list[str]:
    return [job.folder.name for job in queue.jobs() if job.state == state]


def job_of(queue: Queue, folder: Path) -> Job:
    job = queue.find(folder)
    assert job is not None
    return job


def process_of(queue: Queue, folder: Path) -> psutil.Process:
    pid = job_of(queue, folder).pid
    assert pid is not None
    return psutil.Process(pid)


def test_jobs_wait_for_the_device_and_start_in_the_chosen_order(tmp_path: Path):
    queue = Queue(tmp_path, MODELS, CPU)
    with claim(Run(create_failing_run(tmp_path, "begun-elsewhere"))):  # as a training in a terminal does
        queue.update()
        for name in ("first", "second", "third"):
            submit(queue, name)
        assert names(queue, "running") == ["begun-elsewhere"]
        assert names(queue, "waiting") == ["first", "second", "third"]
        assert [job.queue_position for job in queue.active()] == [0, 1, 2, 3]
        queue.move(tmp_path / "third", -1)
        queue.move(tmp_path / "first", -1)  # is the first already
        queue.stop(tmp_path / "second")
        assert names(queue, "waiting") == ["first", "third"]
        assert queue.blocking_job()
        assert queue.blocking_job("cpu")
    wait_until_idle(queue)
    assert not queue.active()
    assert queue.blocking_job() is None
    logs = {name: events.read(tmp_path / name / "events.jsonl")[0] for name in ("first", "second", "third")}
    assert not logs["second"]
    assert logs["first"][-1]["cause"] == logs["third"][-1]["cause"] == "pictures"
    assert logs["first"][-1]["time"] < logs["third"][0]["time"]
    assert {job.folder.name: job.state for job in queue.jobs()} == {
        "begun-elsewhere": "interrupted",
        "first": "failed",
        "second": "stopped",
        "third": "failed",
    }


def test_many_servers_start_a_job_once(tmp_path: Path):
    Queue(tmp_path, MODELS, CPU).pause(True)
    submit(Queue(tmp_path, MODELS, CPU), "once")
    servers = [Queue(tmp_path, MODELS, CPU) for _ in range(6)]
    servers[0].pause(False)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: servers[number % 6].update(), range(30)))
    for server in servers:
        wait_until_idle(server)
    log = events.read(tmp_path / "once" / "events.jsonl")[0]
    assert [event["kind"] for event in log].count("ended") == 1


def test_a_click_that_arrives_twenty_times_creates_one_job(tmp_path: Path):
    queue = Queue(tmp_path, MODELS, ())
    folder = create_failing_run(tmp_path, "run")
    arguments = ["resume", str(folder)]
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda _: queue.submit(folder, "train", arguments, token="click"), range(20)))
    assert len({job.id for job in jobs}) == 1
    assert len(queue.active()) == 1
    with pytest.raises(RunError, match="in the queue already"):
        queue.submit(folder, "train", arguments, token="another click")


@pytest.mark.parametrize("damage", ["garbage", "missing", "truncated"])
def test_a_damaged_database_is_rebuilt_from_the_job_folders(tmp_path: Path, damage: str):
    queue = Queue(tmp_path, MODELS, ())
    for name in ("a", "b", "c"):
        submit(queue, name, token=f"click {name}")
    queue.move(tmp_path / "c", -1)
    file = tmp_path / ".queue.sqlite"
    for suffix in ("-wal", "-shm"):
        (tmp_path / f".queue.sqlite{suffix}").unlink(missing_ok=True)
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"no database" * 1000 if damage == "garbage" else file.read_bytes()[:5000])
    rebuilt = Queue(tmp_path, MODELS, ())
    assert names(rebuilt, "waiting") == ["a", "c", "b"]
    assert rebuilt.find_by_token("click b")
    assert len(rebuilt.active()) == 3


def test_a_killed_training_is_reported_and_not_restarted(tmp_path: Path):
    queue = Queue(tmp_path, MODELS, (Device(id="1", words="CUDA", visible="1"),))
    folder = submit(queue, "run")
    process = process_of(queue, folder)
    assert process.environ()["CUDA_VISIBLE_DEVICES"] == "1"
    os.kill(process.pid, signal.SIGKILL)
    wait_until_idle(queue)
    job = job_of(queue, folder)
    assert (job.state, job.signal) == ("interrupted", signal.SIGKILL)
    assert not (folder / ".queue.json").exists()
    queue.update()
    assert not queue.active()


def test_a_stuck_training_is_killed_by_the_second_stop_and_not_by_the_first(tmp_path: Path):
    queue = Queue(tmp_path, MODELS, CPU)
    config = config_from({"name": "run", "steps": 100_000, "base": "tiny-sdxl"})
    run = create(tmp_path / "run", config, [INK])
    queue.submit(run.path, "train", ["resume", str(run.path)])
    process = process_of(queue, run.path)
    wait_for(run.is_alive, "the process claims the run")
    process.suspend()
    wait_for(lambda: process.status() == psutil.STATUS_STOPPED, "the process is suspended")
    queue.stop(run.path, at_once=True)
    # The command is on disk, and a SIGKILL ends a suspended process too: it was not sent.
    assert events.read(run.commands)[0][-1]["kind"] == "stop"
    assert job_of(queue, run.path).stops == 1
    assert process.status() == psutil.STATUS_STOPPED
    queue.stop(run.path, at_once=True)
    wait_until_idle(queue)
    job = job_of(queue, run.path)
    assert (job.state, job.signal, job.stops) == ("interrupted", signal.SIGKILL, 2)
    assert not run.is_alive()


def test_a_server_that_starts_later_finds_running_jobs(tmp_path: Path):
    queue = Queue(tmp_path, MODELS, CPU)
    folder = create_failing_run(tmp_path, "run")
    with claim(Run(folder)):
        queue.update()
        (tmp_path / ".queue.sqlite").unlink()
        later = Queue(tmp_path, MODELS, CPU)
        later.update()
        assert names(later, "running") == ["run"]
        with pytest.raises(RunError, match="in the queue already"):
            later.submit(folder, "train", ["resume", str(folder)])
    later.update()
    assert names(later, "interrupted") == ["run"]


def test_work_on_files_does_not_wait_for_a_training(tmp_path: Path):
    queue = Queue(tmp_path, MODELS, CPU)
    with claim(Run(create_failing_run(tmp_path, "training"))):
        queue.update()
        folder = submit(queue, "files", lane=FILES)
        assert queue.blocking_job("cpu")
        assert names(queue, "running") == ["training", "files"]
    wait_until_idle(queue)
    assert json.loads((folder / "events.jsonl").read_text().splitlines()[-1])["how"] == "failed"


def test_a_stop_before_the_process_reads_commands_is_obeyed(tmp_path: Path):
    """`resume --commands-offset 0` obeys a stop that is in commands.jsonl already."""
    config = config_from({"name": "run", "steps": 2, "base": "tiny-sdxl"})
    run = create(tmp_path / "run", config, [INK])
    events.append(run.commands, "stop")
    trainer("resume", run.path, "--models", MODELS, "--commands-offset", "0")
    log = events.read(run.events)[0]
    assert log[-1]["how"] == "stopped"
    assert not [event for event in log if event["kind"] == "step"]
    assert len(run.manifest.items) == 24
