"""`python -m benchmarks`: what this machine takes for the sample training and for the first page.

Every figure is a median of repeated, alternated runs in fresh processes; the machine is named above the table.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from trainer import events

ROOT = Path(__file__).resolve().parent.parent


def training(output: Path) -> dict[str, float]:
    """The README's own command, from nothing: seconds to the first step and to the end, peak resident memory in GB."""
    command = [sys.executable, "-m", "trainer", "train", str(ROOT / "datasets" / "ink-emoji"), "--preset", "style", "--output", str(output)]
    started, wall = time.monotonic(), time.time()
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    watched, peak = psutil.Process(child.pid), 0
    while child.poll() is None:
        try:
            peak = max(peak, watched.memory_info().rss)
        except psutil.Error:
            break
        time.sleep(0.05)
    seconds = time.monotonic() - started
    assert child.wait() == 0, "the training failed"
    steps = [e for e in events.read(output / "events.jsonl")[0] if e["kind"] == "step"]
    loop = steps[-1]["time"] - steps[0]["time"]
    return {
        "training, from nothing to file and strip (s)": seconds,
        "training, first step after the command (s)": steps[0]["time"] - wall,
        "training, pictures a second in the loop": 4 * (len(steps) - 1) / loop,
        "training, peak resident memory (GB)": peak / 1e9,
    }


def first_page() -> dict[str, float]:
    """Seconds from starting a bare interpreter to the first answer of the page."""
    told = (
        "import sys; from pathlib import Path; from ui.server import build_app; from fastapi.testclient import TestClient; "
        "r = Path(sys.argv[1]); app = build_app(host='127.0.0.1', datasets=r / 'datasets', outputs=r / 'outputs', models=r / 'models'); "
        "assert TestClient(app, base_url='http://127.0.0.1').get('/').status_code == 200; assert 'torch' not in sys.modules"
    )
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", told, str(ROOT)], cwd=ROOT, check=True)
    return {"page, interpreter to first answer (s)": time.monotonic() - started}


def machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, list[float]] = {}
    for _ in range(options.repeat):
        with tempfile.TemporaryDirectory() as folder:
            for name, value in {**training(Path(folder) / "ink"), **first_page()}.items():
                found.setdefault(name, []).append(value)
    print(f"{machine()}\n\n| what | median | all |\n|---|---|---|")
    for name, values in found.items():
        print(f"| {name} | {statistics.median(values):.2f} | {', '.join(f'{v:.2f}' for v in values)} |")


if __name__ == "__main__":
    main()
