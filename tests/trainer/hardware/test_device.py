"""The number of threads leaves a processor for other programs."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from trainer.hardware.device import thread_count


@given(threads=st.integers(1, 256), processors=st.integers(1, 256))
def test_one_processor_is_free_and_there_is_at_least_one_thread(threads: int, processors: int):
    found = thread_count(threads, processors)
    assert 1 <= found <= threads
    assert found < processors or processors == 1


def test_by_default_one_processor_is_free():
    silent = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | {
        "CUDA_VISIBLE_DEVICES": ""
    }
    output = subprocess.run(
        [sys.executable, "-m", "trainer", "device"], env=silent, capture_output=True, text=True, check=True
    )
    found = re.fullmatch(r"CPU \((\d+) threads?\)", output.stdout.splitlines()[0])
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert found
    assert 1 <= int(found[1]) <= max(1, processors - 1)


def test_omp_num_threads_sets_the_number_of_threads():
    expected = os.environ | {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""}
    output = subprocess.run(
        [sys.executable, "-m", "trainer", "device"], env=expected, capture_output=True, text=True, check=True
    )
    assert output.stdout.splitlines()[0] == "CPU (2 threads)"
