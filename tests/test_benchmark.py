"""The tools in benchmark/: the runner and its fronts with a stand-in script, statistics by hand, report, export, gpu.sh."""

import glob
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

ROOT = Path(__file__).parent.parent
BENCH = ROOT / "benchmark"
sys.path.append(str(BENCH))
import export
import report
import run
import sweep
import throughput

LAUNCHERS = [BENCH / "ppo_lstm_minigrid.sh", BENCH / "ppo_lstm_cartpole_novel.sh"]
STANDIN = """
import json, os, signal, time
from dataclasses import asdict, dataclass
import tyro

@dataclass
class Args:
    exp_name: str = "standin"
    seed: int = 1
    env_id: str = "E"
    eval_env_id: tuple[str, ...] = ()
    num_threads: int = 1
    resume: str | None = None
    memoryless: bool = False
    anneal: bool = True
    size: float = 1.0
    do: str = "finish"

def main(args):
    run = os.path.dirname(args.resume or "") or f"runs/{args.exp_name}__{args.seed}__{time.time_ns()}"
    os.makedirs(run, exist_ok=True)
    note = {"script": "standin.py", "args": asdict(args), "env_id": args.env_id, "SPS": 10.0}
    if not args.resume:
        open(f"{run}/args.json", "w").write(json.dumps(note))
    if args.do == "crash":
        raise ValueError("no gradient: größe")
    if args.do == "wait" and not args.resume:
        signals = []
        signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
        open("waiting", "w")
        while not signals:
            time.sleep(0.02)
        open(f"{run}/agent.pt", "a").write("saved")
        return 143
    if args.do != "nothing":
        note["eval"] = {"E": {"argmax": {"success_rate": args.size}}}
        open(f"{run}/results.json", "w").write(json.dumps(note))
    if args.do == "linger":
        time.sleep(1)
    return 0

if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Args)))
"""


def start(*arguments, tool="run.py", **env):
    """A tool in its own process, in a folder with a blank and brackets in its name, where the stand-in lies."""
    os.makedirs("a [1]", exist_ok=True)
    Path("a [1]/standin.py").write_text(STANDIN, encoding="utf-8")
    command = ["bash"] if tool.endswith(".sh") else [sys.executable]
    return subprocess.Popen([*command, BENCH / tool, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            errors="replace", cwd="a [1]", env={**os.environ, "PYTHON": sys.executable, **env})  # fmt: skip


def finish(*arguments, **keywords):
    process = start(*arguments, **keywords)
    out, _ = process.communicate(timeout=60)
    return process.returncode, out


def wait_for(path):
    while not glob.glob(path):
        time.sleep(0.02)


# ---- runner
def test_runner_makes_all_tells_the_failed_and_skips_the_finished():
    rows = "x | standin.py | 1-2 | 1\nbad | standin.py --do crash\nlazy | standin.py --do nothing"
    code, out = finish("--rows", rows, "-w", "3", "-t", "2", "--", "--size", "2", PYTHONIOENCODING="ascii")
    assert code == 1 and "5 jobs: 3 finished, 2 failed" in out, out
    assert "no gradient: gr\\xf6\\xdfe" in out and "no results.json of these flags" in out
    assert "no gradient" in Path("a [1]/runs/logs/bad__1.log").read_text(encoding="utf-8")
    notes = [json.loads(Path(p).read_text())["args"] for p in glob.glob("a [[]1]/runs/*/results.json")]
    assert sorted((n["exp_name"], n["seed"], n["memoryless"]) for n in notes) == [
        ("x", 1, False), ("x", 2, False), ("x-memoryless", 1, True)]  # fmt: skip
    assert all(n["num_threads"] == 2 and n["size"] == 2 for n in notes)
    again = ("--rows", "x | standin.py --size 2.00 | 01-2", "-t", "1")
    for further in (["-s", "01 2"], ["--", "--seed", "2"], ["--", "--seed=02"], ["-j", "2"]):
        code, out = finish(*again, *further)
        assert code == 0 and "started" not in out and " finished " in out, out
    code, out = finish(*again, "--", "--size", "3")  # other flags are another run
    assert code == 0 and out.count(" done ") == 2 and len(glob.glob("a [[]1]/runs/x__*/results.json")) == 4


@pytest.mark.parametrize("arguments", [
    ["--rows", "x | standin.py --nosuch 1"], ["--rows", "x | nosuch.py"], ["--rows", "x"], ["--rows", "a | b | c | d | e"],
    ["--rows", "x | standin.py | 1-x"], ["--rows", "x | standin.py", "-g", "y"], ["--rows", "x | standin.py", "-j", "2"],
])  # fmt: skip
def test_runner_checks_before_it_runs(arguments):
    code, out = finish(*arguments)
    assert code == 2 and "error: " in out and not os.path.exists("a [1]/runs")


def test_runner_stops_shares_and_goes_on():
    rows = ("--rows", "w | standin.py --do wait | 1-2")
    first = start(*rows, "-w", "1")
    wait_for("a [[]1]/waiting")
    code, out = finish(*rows, "-j", "1")
    assert code == 0 and "1 in other runners" in out
    first.send_signal(signal.SIGINT)
    out, _ = first.communicate(timeout=20)
    assert first.returncode == 130 and "1 stopped" in out and out.count(" started ") == 1, out
    code, out = finish(*rows, "-j", "1")
    assert code == 0 and " resumed " in out and len(glob.glob("a [[]1]/runs/w__1__*")) == 1
    assert Path(glob.glob("a [[]1]/runs/w__1__*/agent.pt")[0]).read_text() == "saved"


def test_a_run_that_has_its_results_but_not_yet_ended_is_finished():
    process = start("--rows", "x | standin.py --do linger")
    wait_for("a [[]1]/runs/*/results.json")
    process.terminate()
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 143 and "1 jobs: 1 finished, 0 failed, 0 stopped" in out


def test_no_failure_is_hidden():
    rows = ("--rows", "x | standin.py | 1-2")
    assert finish(*rows, TMPDIR="/nonexistent")[0] == 0  # none is needed
    (path,) = glob.glob("a [[]1]/runs/x__1__*/results.json")
    Path(path).write_text('{"args": {"ex')
    code, out = finish(*rows)
    assert code == 1 and "1 finished, 1 failed" in out and "results.json is cut" in out
    shutil.rmtree("a [1]/runs")
    os.makedirs("a [1]/runs/logs/x__1.log")
    code, out = finish(*rows)
    assert code == 1 and "1 finished, 1 failed" in out, out
    shutil.rmtree("a [1]/runs")
    Path("a [1]/runs").touch()
    assert finish(*rows)[0] == 2


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda path: path.stem)
def test_every_row_of_a_launcher_parses(launcher):
    code, out = finish("-l", tool=launcher.name, TMPDIR="/nonexistent")
    jobs = out.splitlines()
    assert code == 0 and len(jobs) > 10 and any("--memoryless" in job for job in jobs)
    assert len({job.partition(" ")[2] for job in jobs}) == len(jobs)
    assert finish("-l", "-j", "2", tool=launcher.name) == (0, jobs[1] + "\n")


def test_slurm_task_is_saved_queued_again_and_goes_on():
    os.mkdir("bin")
    Path("bin/scontrol").write_text('#!/bin/sh\necho "$@" >>requeued\n')
    os.chmod("bin/scontrol", 0o755)
    launcher = Path("launcher.sh").resolve()
    line = LAUNCHERS[0].read_text().splitlines()[-1].replace('$(dirname "${BASH_SOURCE[0]}")', str(BENCH))
    launcher.write_text(f'rows="x | standin.py --do wait | 1-2"\n{line}\n')
    slurm = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "77", "PATH": f"{Path('bin').resolve()}:{os.environ['PATH']}"}
    task = start(launcher, tool="slurm.sh", **slurm)
    wait_for("a [[]1]/waiting")
    task.send_signal(signal.SIGUSR1)
    out, _ = task.communicate(timeout=20)
    assert task.returncode == 143 and "1 stopped" in out and Path("a [1]/requeued").read_text() == "requeue 77\n"
    code, out = finish(launcher, tool="slurm.sh", **slurm)
    assert code == 0 and "resumed   x seed 2" in out


# ---- sweeps
def sweep_file(parameters, metric="eval/success_rate", **changes):
    config = {"program": os.path.abspath("a [1]/standin.py"), "method": "random", "parameters": parameters,
              "metric": {"name": metric, "goal": "maximize"}, **changes}  # fmt: skip
    os.makedirs("a [1]", exist_ok=True)
    Path("a [1]/s.yaml").write_text(yaml.safe_dump(config))
    return "s.yaml"


def test_sweep_passes_on_what_it_drew_and_tabulates_what_was_run():
    path = sweep_file({"size": {"min": 0.1, "max": 0.9}, "anneal": {"value": False}, "memoryless": {"values": [True, False]},
                       "eval_env_id": {"values": [["E|x", "y z"], []]}, "no_such": {"value": 1}})  # fmt: skip
    assert finish(path, "-n", "3", tool="sweep.py")[0] == 2
    text = Path("a [1]/s.yaml").read_text().replace("no_such:\n    value: 1", "num_threads:\n    value: 1")
    Path("a [1]/s.yaml").write_text(text)
    code, out = finish(path, "-n", "6", "-w", "3", tool="sweep.py")
    notes = [json.loads(Path(p).read_text())["args"] for p in glob.glob("a [[]1]/runs/*/results.json")]
    assert code == 0 and not any(n["anneal"] for n in notes) and {n["memoryless"] for n in notes} == {True, False}, out
    assert sorted({str(n["eval_env_id"]) for n in notes}) == ["['E|x', 'y z']", "[]"]
    scores = [float(line.split()[0]) for line in out.splitlines()[-7:-1]]
    assert scores == sorted((round(n["size"], 4) for n in notes), reverse=True) and "6 of 6 draws" in out
    code, out = finish(path, "-n", "7", tool="sweep.py")
    assert code == 0 and out.count(" finished ") == 6 and out.count(" done ") == 1, out


@pytest.mark.parametrize(("parameters", "changes", "message"), [
    ({}, {"metric": "charts/SPS"}, "no metric"), ({}, {"metric": "eval/success_rate/F"}, "not evaluated on it"),
    ({"size": {"min": "1e-3", "max": 1}}, {}, "YAML"), ({"size": {"min": 0, "max": 1, "distribution": "q"}}, {}, "'q'"),
    ({}, {"method": "bayes"}, "method: random"),
])  # fmt: skip
def test_sweep_that_cannot_be_run_or_ranked_is_refused_before_it_runs(parameters, changes, message):
    code, out = finish(sweep_file(parameters, **changes), tool="sweep.py")
    assert code == 2 and message in out and not os.path.exists("a [1]/runs")
