"""A training leaves the machine usable."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from trainer.hardware.device import thread_count


@given(threads=st.integers(1, 256), processors=st.integers(1, 256))
def test_one_processor_is_left_to_the_rest_and_one_thread_always_works(threads: int, processors: int):
    found = thread_count(threads, processors)
    assert 1 <= found <= threads and (found < processors or processors == 1)


def test_nobody_need_say_how_many_threads_for_the_machine_to_stay_usable():
    silent = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | {
        "CUDA_VISIBLE_DEVICES": ""
    }
    said = subprocess.run(
        [sys.executable, "-m", "trainer", "device"], env=silent, capture_output=True, text=True, check=True
    )
    found = re.fullmatch(r"CPU \((\d+) threads?\)", said.stdout.strip())
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert found and 1 <= int(found[1]) <= max(1, processors - 1)


def test_who_says_how_many_threads_is_obeyed():
    wanted = os.environ | {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""}
    said = subprocess.run(
        [sys.executable, "-m", "trainer", "device"], env=wanted, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "CPU (2 threads)"
