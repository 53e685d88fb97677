"""Train for an hour and watch the process: memory, open files and speed must stay flat.

    python benchmark/soak.py --minutes 60 --script ppo_lstm_minigrid.py -- --env-id MiniGrid-CustomMaze-S13-v0

Flags after -- go to the script. The run is stopped by a signal when the time is over. The last line printed is JSON: rss_mb and
descriptors at the end of the warm-up and at the end of the run, rss_growth between them, steps_per_second of each tenth of
the time between. Linux only (/proc).
"""

import argparse
import glob
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def watched(pid: int) -> tuple[float, int]:
    """Resident memory in MB and the number of open file descriptors of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024, len(os.listdir(f"/proc/{pid}/fd"))


def steps_per_second(run_dir: str, begin: float, end: float, parts: int = 10) -> list[float]:
    """From the times at which the run logged its steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(run_dir, size_guidance={"scalars": 0})
    events.Reload()
    points = [(e.wall_time, e.step) for e in events.Scalars("charts/SPS") if begin <= e.wall_time <= end]
    edges = [points[i * (len(points) - 1) // parts] for i in range(parts + 1)]
    return [round((b[1] - a[1]) / max(b[0] - a[0], 1e-9)) for a, b in itertools.pairwise(edges)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="length of the run, warm-up included")
    parser.add_argument("--warm-up", type=float, default=2, help="minutes before the first look")
    parser.add_argument("--script", default="ppo_lstm_minigrid.py")
    parser.add_argument("flags", nargs="*", help="flags of the script, after --")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / args.script, "--total-timesteps", str(10**10), *args.flags]
        with open(Path(folder, "log"), "w") as log:
            process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        looks, begin = [], time.time()
        try:
            while process.poll() is None and time.time() - begin < 60 * args.minutes:
                time.sleep(1)
                if time.time() - begin >= 60 * args.warm_up:
                    looks.append((time.time(), *watched(process.pid)))
                if len(looks) % 300 == 1:
                    print(f"{(looks[-1][0] - begin) / 60:6.1f} min {looks[-1][1]:8.1f} MB {looks[-1][2]:4} files", flush=True)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
        if process.returncode != 128 + signal.SIGTERM or len(looks) < 2:
            print(Path(folder, "log").read_text()[-2000:], file=sys.stderr)
            return 1
        (run_dir,) = glob.glob(f"{glob.escape(folder)}/runs/*")
        first, last = looks[0], looks[-1]
        print(json.dumps({
            "minutes": round((last[0] - first[0]) / 60, 1), "rss_mb": [round(first[1], 1), round(last[1], 1)],
            "rss_growth": round(last[1] / first[1] - 1, 4), "rss_peak_mb": round(max(look[1] for look in looks), 1),
            "descriptors": [first[2], last[2]], "steps_per_second": steps_per_second(run_dir, first[0], last[0])}))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
