"""What starts runs in benchmark/, with standin.py as the script: runner, launchers, Slurm, sweeps; and gpu.sh."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

ROOT = Path(__file__).parent.parent
BENCH = ROOT / "benchmark"
sys.path.append(str(BENCH))
run, sweep = importlib.import_module("run"), importlib.import_module("sweep")


@pytest.fixture
def go(tmp_path, monkeypatch, capfd):
    """In a folder with a blank and brackets in its name, beside the stand-in: a tool's (exit code, output)."""
    (tmp_path / "a [1]").mkdir()
    monkeypatch.chdir(tmp_path / "a [1]")
    shutil.copy(ROOT / "tests" / "standin.py", ".")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield lambda *argv, tool=run: (tool.main(list(argv)), "".join(capfd.readouterr()))
    for number, handler in handlers.items():
        signal.signal(number, handler)


def start(*arguments, tool="run.py", **env):
    command = ["bash" if tool.endswith(".sh") else sys.executable, BENCH / tool, *arguments]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env={**os.environ, "PYTHON": sys.executable, **env})  # fmt: skip


def end(process):
    out, _ = process.communicate(timeout=500)
    return process.returncode, out


def stop(process, pattern, number=signal.SIGTERM):
    """Signal it when a path like `pattern` is there."""
    while not list(Path().glob(pattern)):
        time.sleep(0.02)
    process.send_signal(number)
    return end(process)


def noted():
    return [json.loads(path.read_text())["args"] for path in Path().glob("runs/*/results.json")]


def test_runner_makes_all_tells_the_failed_and_skips_the_finished(go):
    rows = "x | standin.py | 1-2 | 1\nbad | standin.py --do crash\nlazy | standin.py --do nothing"
    code, out = end(start("--rows", rows, "-w", "3", "-t", "2", "--", "--size", "2", PYTHONIOENCODING="ascii"))
    assert code == 1 and "5 jobs: 3 finished, 2 failed" in out and "gr\\xf6\\xdfe" in out, out
    assert "no results.json of these flags" in out and "größe" in Path("runs/logs/bad__1.log").read_text("utf-8")
    assert sorted((n["exp_name"], n["seed"], n["memoryless"], n["num_threads"], n["size"]) for n in noted()) == [
        ("x", 1, False, 2, 2), ("x", 2, False, 2, 2), ("x-memoryless", 1, True, 2, 2)]  # fmt: skip
    again = ("--rows", "x | standin.py --size 2.00 | 01-2", "-t", "1")
    for further in (["-s", "01 2"], ["--", "--seed", "2"], ["--", "--seed=02"], ["-j", "2"]):
        code, out = go(*again, *further)
        assert code == 0 and "started" not in out and " finished " in out, out
    code, out = go(*again, "--", "--size", "3")  # other flags are another run
    assert code == 0 and out.count(" done ") == 2 and len(noted()) == 5


def test_runner_checks_before_it_runs(go):
    for rows, *options in (["x | standin.py --nosuch 1"], ["x | nosuch.py"], ["x"], ["a | b | c | d | e"],
                           ["x | standin.py | 1-x"], ["x | standin.py", "-g", "y"], ["x | standin.py", "-j", "2"]):
        code, out = go("--rows", rows, *options)
        assert code == 2 and "error: " in out and not os.path.exists("runs")


def test_runner_stops_shares_and_goes_on(go):
    rows = ("--rows", "w | standin.py --do wait | 1-2")
    first = start(*rows)
    while not os.path.exists("waiting"):
        time.sleep(0.02)
    code, out = go(*rows, "-j", "1")
    assert code == 0 and "1 in other runners" in out
    code, out = stop(first, "waiting", signal.SIGINT)
    assert code == 130 and "1 stopped" in out and out.count(" started ") == 1, out
    code, out = go(*rows, "-j", "1")
    assert code == 0 and " resumed " in out and len(list(Path().glob("runs/w__1__*/agent.pt"))) == 1


def test_a_run_that_has_its_results_but_not_yet_ended_is_finished(go):
    code, out = stop(start("--rows", "x | standin.py --do linger"), "runs/*/results.json")
    assert code == 143 and "1 jobs: 1 finished, 0 failed, 0 stopped" in out


def test_no_failure_is_hidden(go, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nonexistent")  # none is needed
    rows = ("--rows", "x | standin.py | 1-2")
    assert go(*rows)[0] == 0
    next(Path().glob("runs/x__1__*/results.json")).write_text('{"args": {"ex')
    code, out = go(*rows)
    assert code == 1 and "1 finished, 1 failed" in out and "results.json is cut" in out
    shutil.rmtree("runs")
    os.makedirs("runs/logs/x__1.log")  # cannot be written
    code, out = go(*rows)
    assert code == 1 and "1 finished, 1 failed" in out, out
    shutil.rmtree("runs")
    Path("runs").touch()
    assert go(*rows)[0] == 2


@pytest.mark.parametrize("launcher", ["ppo_lstm_minigrid.sh", "ppo_lstm_cartpole_novel.sh"])
def test_every_row_of_a_launcher_parses(go, launcher):
    shell = 'exec() { printf "%s\\0" "${@:3}"; }; . "$0" -l'  # what it would give to run.py
    words = subprocess.run(["bash", "-c", shell, BENCH / launcher], text=True, capture_output=True, check=True).stdout
    code, out = go(*words.split("\0")[:-1])
    jobs = [line.partition(" ")[2] for line in out.splitlines()]
    assert code == 0 and len(set(jobs)) == len(jobs) > 10 and "--memoryless" in out


def test_slurm_task_is_saved_queued_again_and_goes_on(go):
    Path("scontrol").write_text('#!/bin/sh\necho "$@" >>requeued\n')
    os.chmod("scontrol", 0o755)
    last = (BENCH / "ppo_lstm_minigrid.sh").read_text().splitlines()[-1].replace("${BASH_SOURCE[0]}", f"{BENCH}/x")
    Path("launcher.sh").write_text(f'rows="x | standin.py --do wait | 1-2"\n{last}\n')
    slurm = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "77", "PATH": f"{os.getcwd()}:{os.environ['PATH']}"}
    code, out = stop(start("launcher.sh", tool="slurm.sh", **slurm), "waiting", signal.SIGUSR1)
    assert code == 143 and "1 stopped" in out and Path("requeued").read_text() == "requeue 77\n", out
    code, out = end(start("launcher.sh", tool="slurm.sh", **slurm))
    assert code == 0 and "resumed   x seed 2" in out


def sweep_file(parameters, **changes):
    config = {"program": os.path.abspath("standin.py"), "method": "random", "parameters": parameters,
              "metric": {"name": "eval/success_rate", "goal": "maximize"}, **changes}  # fmt: skip
    Path("s.yaml").write_text(yaml.safe_dump(config))
    return "s.yaml"


def test_sweep_passes_on_what_it_drew_and_tabulates_what_was_run(go):
    path = sweep_file({"size": {"min": 0.1, "max": 0.9}, "anneal": {"value": False}, "eval_env_id": {
        "values": [["E|x", "y z"], []]}, "no_memoryless": {"values": [True, False]}})  # fmt: skip
    code, out = go(path, "-n", "6", "-w", "3", tool=sweep)
    assert code == 0 and not any(n["anneal"] for n in noted()) and {n["memoryless"] for n in noted()} == {True, False}
    assert sorted({str(n["eval_env_id"]) for n in noted()}) == ["['E|x', 'y z']", "[]"]
    scores = [float(line.split()[0]) for line in out.splitlines()[-7:-1]]
    assert scores == sorted((round(n["size"], 4) for n in noted()), reverse=True) and "6 of 6 draws" in out
    code, out = go(path, "-n", "7", tool=sweep)
    assert code == 0 and out.count(" finished ") == 6 and out.count(" done ") == 1, out


def test_sweep_that_cannot_be_run_or_ranked_is_refused_before_it_runs(go):
    for parameters, changes, message in (
        ({}, {"metric": {"name": "charts/SPS"}}, "charts/SPS"), ({"nosuch": {"value": 1}}, {}, "nosuch"),
        ({}, {"metric": {"name": "eval/success_rate/F"}}, "not evaluated on it"), ({}, {"method": "grid"}, "random"),
        ({"size": {"min": "1e-3", "max": 1}}, {}, "YAML"),
        ({"size": {"min": 0, "max": 1, "distribution": "q_normal"}}, {}, "q_normal"),
    ):  # fmt: skip
        code, out = go(sweep_file(parameters, **changes), tool=sweep)
        assert code == 2 and message in out and not os.path.exists("runs")


@pytest.mark.parametrize("name", ["minigrid", "cartpole_novel"])
def test_draws_of_the_sweep_files_mean_the_same_to_wandb(name):
    config = yaml.safe_load((BENCH / f"sweep_{name}.yaml").read_text())
    assert config["command"][-2:] == ["--track", "${args_no_boolean_flags}"]
    for index, job in enumerate(sweep.make_jobs(BENCH / f"sweep_{name}.yaml", 10, 0, [])):
        rng = sweep.random.Random(f"0 {index}")
        drawn = {key: {"value": sweep.draw(rng, key, spec)} for key, spec in config["parameters"].items()}
        words = create_sweep_command_args({"args": drawn})["args_no_boolean_flags"]
        assert run.Job.parse(job.path, [*words, "--exp-name", job.args["exp_name"]]) == job


@pytest.mark.slow
def test_gpu_script_and_throughput_where_there_is_no_gpu(go):
    throughput = importlib.import_module("throughput")
    code, out = end(start("-o", "t a", tool="gpu.sh", CUDA_VISIBLE_DEVICES=""))
    rows = json.loads(Path("t a/gpu.json").read_text())["rows"]
    assert code == 0 and {row["part"] for row in rows} == {"checks", "waits", "torchrun", "speed", "solve"}, out
    assert sum(row["result"] in ("bit for bit", "equal") for row in rows) == 7
    assert all(f"| {row['what']} | {row['result']} |" in Path("t a/gpu.md").read_text() for row in rows)
    assert "not done" in throughput.call("gpu", "checks", 0.5)["error"]
    assert "nosuch" in throughput.call("gpu", "nosuch", 9)["error"]
    row = throughput.measure("x", ["--num-envs", "8", "--no-cuda"], seconds=0.3, split=True)
    assert sum(row["split"].values()) == pytest.approx(1e6 / row["SPS"]) and min(row["split"].values()) > 0
