"""What starts runs in benchmark/, with standin.py as the script: runner, launchers, Slurm, sweeps; and gpu.py. And what
it makes of finished runs: statistics by hand, report.py, export.py, the published checkpoints."""

import importlib
import json
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
from torch.utils.tensorboard import SummaryWriter
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

BENCH = Path(__file__).parent.parent / "benchmark"
sys.path.append(str(BENCH))
run, sweep, export, report = map(importlib.import_module, ("run", "sweep", "export", "report"))


@pytest.fixture
def go(tmp_path, monkeypatch, capfd):
    """In a folder with a blank and brackets in its name, beside the stand-in: a tool's (exit code, output)."""
    (tmp_path / "a [1]").mkdir()
    monkeypatch.chdir(tmp_path / "a [1]")
    shutil.copy(Path(__file__).with_name("standin.py"), ".")
    return lambda *argv, tool=run: (tool.main(list(argv)), "".join(capfd.readouterr()))


def start(*arguments, tool="run.py", **env):
    command = ["bash" if tool.endswith(".sh") else sys.executable, BENCH / tool, *arguments]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env={**os.environ, "PYTHON": sys.executable, **env})  # fmt: skip


def end(process, number=0, pattern="*"):
    """Its exit code and output; it gets the signal `number` when a path like `pattern` is there."""
    while not list(Path().glob(pattern)):
        time.sleep(0.02)
    process.send_signal(number)
    out, _ = process.communicate(timeout=500)
    return process.returncode, out


def noted(name):
    return [json.loads(path.read_text())["args"][name] for path in Path().glob("runs/*/results.json")]


def test_runner_makes_all_tells_the_failed_and_skips_the_finished(go):
    rows = "x | standin.py | 1-2 | 1\nbad | standin.py --do crash\nlazy | standin.py --do nothing"
    code, out = end(start("--rows", rows, "-w", "3", "-t", "2", "--", "--size", "2", PYTHONIOENCODING="ascii"))
    assert code == 1 and "5 jobs: 3 finished, 2 failed" in out and "gr\\xf6\\xdfe" in out, out
    assert "no results.json of these flags" in out and "größe" in Path("runs/logs/bad__1.log").read_text("utf-8")
    made = zip(*map(noted, ("exp_name", "seed", "memoryless", "num_threads", "size")), strict=True)
    assert sorted(made) == [("x", 1, False, 2, 2), ("x", 2, False, 2, 2), ("x-memoryless", 1, True, 2, 2)]
    again = ("--rows", "x | standin.py --size 2.00 | 01-2", "-t", "1")
    for further in (["-s", "01 2"], ["--", "--seed=02"], ["-j", "2"]):
        code, out = go(*again, *further)
        assert code == 0 and "started" not in out and " finished " in out, out
    code, out = go(*again, "--", "--size", "3")  # other flags are another run
    assert code == 0 and out.count(" done ") == 2 and len(noted("seed")) == 5
    for path in Path().glob("runs/x__1__*/results.json"):
        path.write_text('{"args": {"ex')
    code, out = go(*again)
    assert code == 1 and "1 finished, 1 failed" in out and "results.json is cut" in out


def test_runner_checks_before_it_runs(go):
    for row, *options in (["x | standin.py --nosuch 1"], ["x | nosuch.py"], ["x"], ["x | standin.py | 1-x"],
                          ["x | standin.py", "-g", "y"], ["x | standin.py", "-j", "2"]):  # fmt: skip
        code, out = go("--rows", row, *options)
        assert code == 2 and "error: " in out and not os.path.exists("runs")


def test_runner_stops_shares_and_goes_on(go):
    rows = ("--rows", "w | standin.py --do wait | 1-2")
    first = start(*rows)
    while not os.path.exists("waiting"):
        time.sleep(0.02)
    assert "1 in other runners" in go(*rows, "-j", "1")[1]
    code, out = end(first, signal.SIGINT)
    assert code == 130 and "1 stopped" in out and out.count(" started ") == 1, out
    assert " resumed " in go(*rows, "-j", "1")[1] and len(list(Path().glob("runs/w__1__*/agent.pt"))) == 1


@pytest.mark.parametrize("launcher", ["ppo_lstm_minigrid.sh", "ppo_lstm_cartpole_novel.sh"])
def test_every_row_of_a_launcher_can_run(go, launcher):
    shell = 'exec() { printf "%s\\0" "${@:3}"; }; . "$0" -l'  # what it would give to run.py
    words = subprocess.run(["bash", "-c", shell, BENCH / launcher], text=True, capture_output=True, check=True).stdout
    code, out = go(*words.split("\0")[:-1])
    jobs = [line.partition(" ")[2] for line in out.splitlines()]
    assert code == 0 and len(set(jobs)) == len(jobs) > 10 and "--memoryless" in out
    for script, *flags in (shlex.split(job.partition(": ")[2]) for job in jobs if " seed 1:" in job):
        importlib.import_module(Path(script).stem).parse(flags)


def test_slurm_task_is_saved_queued_again_and_goes_on(go):
    Path("scontrol").write_text('#!/bin/sh\necho "$@" >>requeued\n')
    os.chmod("scontrol", 0o755)
    last = (BENCH / "ppo_lstm_minigrid.sh").read_text().splitlines()[-1].replace("${BASH_SOURCE[0]}", f"{BENCH}/x")
    Path("launcher.sh").write_text(f'rows="x | standin.py --do wait | 1-2"\n{last}\n')
    slurm = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "77", "PATH": f"{os.getcwd()}:{os.environ['PATH']}"}
    code, out = end(start("launcher.sh", tool="slurm.sh", **slurm), signal.SIGUSR1, "waiting")
    assert code == 143 and "1 stopped" in out and Path("requeued").read_text() == "requeue 77\n", out
    code, out = end(start("launcher.sh", tool="slurm.sh", **slurm))
    assert code == 0 and "resumed   x seed 2" in out


def test_sweep_passes_on_what_it_drew_and_tabulates_what_was_run(go):
    def file(metric="eval/success_rate", **parameters):
        config = {"program": os.path.abspath("standin.py"), "method": "random", "parameters": parameters}
        Path("s.yaml").write_text(yaml.safe_dump({**config, "metric": {"name": metric, "goal": "maximize"}}))
        return "s.yaml"

    path = file(size={"min": 0.1, "max": 0.9}, eval_env_id={"values": [["E|x", "y z"], []]},
                no_memoryless={"values": [True, False]})  # fmt: skip
    code, out = go(path, "-n", "6", "-w", "3", tool=sweep)
    assert code == 0 and {*noted("memoryless")} == {True, False}
    assert {*map(str, noted("eval_env_id"))} == {"['E|x', 'y z']", "[]"} and "6 of 6 draws" in out
    scores = [float(line.split()[0]) for line in out.splitlines()[-7:-1]]
    assert scores == sorted((round(size, 4) for size in noted("size")), reverse=True)
    code, out = go(path, "-n", "7", tool=sweep)
    assert code == 0 and out.count(" finished ") == 6 and out.count(" done ") == 1, out
    shutil.rmtree("runs")
    for inputs, message in (({"metric": "charts/SPS"}, "charts/SPS"), ({"nosuch": {"value": 1}}, "nosuch"),
                            ({"metric": "eval/success_rate/F"}, "not evaluated on it"),
                            ({"size": {"min": "1e-3", "max": 1}}, "YAML")):  # fmt: skip
        code, out = go(file(**inputs), tool=sweep)
        assert code == 2 and message in out and not os.path.exists("runs")


@pytest.mark.parametrize("path", list(BENCH.glob("sweep_*.yaml")), ids=str)
def test_draws_of_the_sweep_files_mean_the_same_to_wandb(path):
    config = yaml.safe_load(path.read_text())
    assert config["command"][-2:] == ["--track", "${args_no_boolean_flags}"]
    for index, job in enumerate(sweep.make_jobs(path, 10, 0, [])):
        rng = sweep.random.Random(f"0 {index}")
        drawn = {key: {"value": sweep.draw(rng, key, spec)} for key, spec in config["parameters"].items()}
        words = create_sweep_command_args({"args": drawn})["args_no_boolean_flags"]
        assert run.Job.parse(job.path, [*words, "--exp-name", job.args["exp_name"]]) == job


@pytest.mark.slow
def test_gpu_script_where_there_is_no_gpu(go):
    code, out = end(start("-o", "t a", tool="gpu.py", CUDA_VISIBLE_DEVICES=""))
    rows = json.loads(Path("t a/gpu.json").read_text())["rows"]
    assert code == 0 and {row["part"] for row in rows} == {"checks", "waits", "torchrun", "speed", "solve"}, out
    assert sum(row["result"] in ("bit for bit", "equal") for row in rows) == 7


def test_statistics_by_hand():
    assert report.steps_to_mark([10, 20, 30, 40], [1, float("nan"), 1, 1], 1) == 30
    assert report.iqm([np.array([0, 1, 2, 3, 4, 5, 6, 100])]) == 3.5 and report.iqm([np.array([1, 2, 9])]) == 4
    assert report.improvement([np.array([1.0, 2.0]), np.array([1.0, 0.0, 3.0])]) == pytest.approx(3.5 / 6)
    samples = np.random.default_rng(3).normal(5.0, 1.0, size=(300, 10))
    covered = [low <= 5.0 <= high for low, high in (report.interval([sample], report.iqm, 400) for sample in samples)]
    assert 0.85 < np.mean(covered) < 0.97  # a percentile bootstrap of ten is somewhat narrow


def make_run(name, seed, curve, script="ppo_lstm_minigrid", **changes):
    """A run folder as the scripts write it, with an evaluation each 1,000 steps."""
    args = {**vars(importlib.import_module(script).Args()), "exp_name": name, "seed": seed, **changes}
    folder, metrics = Path(f"runs[1]/{time.time_ns()}"), ("success_rate", "episodic_return", "episodic_length")
    with SummaryWriter(folder) as writer:
        for step, value in enumerate(curve, 1):
            for key in (f"{prefix}/{metric}" for prefix in ("eval", "eval_sampled") for metric in metrics):
                writer.add_scalar(key, value, 1000 * step)
            writer.add_scalar("charts/SPS", 100.0, 1000 * step)
    evaluation = {args["env_id"]: dict.fromkeys(("argmax", "sampled"), dict.fromkeys(metrics, curve[-1]))}
    (folder / "results.json").write_text(json.dumps({
        "script": f"{script}.py", "args": args, "global_step": 1000 * len(curve), "SPS": 100.0, "eval": evaluation}))
    return folder


def test_report_of_runs(capsys):
    for seed, curve in ((1, [0.5, 0.98, 0.5, 1.0]), (2, [0.5, 0.99, 1.0, 1.0]), (3, [0.5, 0.5, 0.5, 0.6])):
        make_run("mine", seed, curve, num_envs=32, norm_adv=False)
    make_run("control", 1, [0.5, 0.5], num_envs=32, norm_adv=False, memoryless=True)
    make_run("mine", 1, [0.25, 0.25], num_envs=32)  # other flags under the same name: another row
    make_run("pole", 1, [100.0, 480.0, 470.0, 490.0], script="ppo_lstm_cartpole_novel")
    make_run("seq-len=8", 1, [1.0, 0.5], seq_len=8)
    logless = make_run("logless", 1, [1.0])
    next(logless.glob("events*")).unlink()
    assert report.main(["runs[1]"]) == 1
    assert f"{logless}: ValueError: it has no event file" in capsys.readouterr().err
    text = Path("runs[1]/report/README.md").read_text()
    (row,) = (line for line in text.splitlines() if line.startswith("| mine | `"))
    assert "`python ppo_lstm_minigrid.py --num-envs 32 --no-norm-adv` | 3 " in row
    assert "| 0.867 [0.600, 1.000] | 0.600 (seed 3) |" in row and "| 0.004 (0.002 to 0.004), 2/3 at 0.97 |" in row
    assert row.endswith("| 0.500 (n = 1) | 1.00 |")
    assert "| mine (2) | `python ppo_lstm_minigrid.py --num-envs 32` | 1 |" in text
    assert "| pole | 475 | 1/1 | 0.004 | 0.004 to 0.004 | 0.667 |" in text and "| pole | 500 | 0/1 | never |" in text
    assert "| seq-len=8 | 0/1 | never |" in text and Path("runs[1]/report/sensitivity.png").is_file()


def test_report_publishes_only_when_told_and_all_or_nothing(monkeypatch):
    monkeypatch.setattr(report, "ROOT", Path().resolve())
    os.makedirs("benchmark/results/raw")
    for path in (BENCH / "results" / "raw").glob("mazerandom-s15_*"):
        shutil.copy(path, "benchmark/results/raw")
    Path("README.md").write_text("a\n<!-- results: mazerandom-s15 mine -->\nold\n<!-- /results -->\nz\n")
    make_run("mine", 1, [0.5, 1.0])
    with pytest.raises(SystemExit):
        report.main(["runs[1]", "-o", "benchmark/results"])
    assert report.main(["runs[1]", "--publish"]) == 0
    def contents():
        return {path: path.read_bytes() for path in Path().rglob("*.*") if path.is_file()}
    first, text = contents(), Path("README.md").read_text()
    assert "old" not in text and text.endswith("\n<!-- /results -->\nz\n")
    assert text.index("| mazerandom-s15 | 5 | 0.998 [0.997, 0.999] |") < text.index("| mine | 1 | 1.000 |")
    assert report.main(["--publish"]) == 0 and first == contents()  # the same from the files in raw/ alone
    make_run("mine", 1, [0.5, 0.5], num_envs=32)
    first = contents()
    with pytest.raises(SystemExit, match=r"mine__1\.json"):
        report.main(["runs[1]", "--publish"])
    assert first == contents()


def test_exported_checkpoint_evaluates_and_says_how_it_was_made():
    script = importlib.import_module("ppo_lstm_minigrid")
    tiny = ["--num-envs=4", "--num-steps=16", "--seq-len=8", "--num-minibatches=2", "--total-timesteps=128"]
    assert script.main([*tiny, "--env-id=MiniGrid-MemoryS7-v0", "--seed=3", "--exp-name=a", "--no-cuda"]) == 0
    (source,) = map(str, Path().glob("runs/*/agent.pt"))
    assert export.main([source, "x.pt", "--commit", "abc1234"]) == 0
    exported = torch.load("x.pt", weights_only=True)
    assert exported["commit"] == "abc1234" and not {"weights", "optimizer", "ranks"} & exported.keys()
    again, _ = script.parse(exported["command"].split()[2:])
    assert again.seed == 3 and vars(again) == vars(script.load_agent("x.pt")[1]) and again.exp_name != "a"


@pytest.mark.parametrize("path", [pytest.param(path, marks=[] if "Memory" in path.stem else [pytest.mark.slow])
                                  for path in (BENCH / "checkpoints").glob("*.pt")], ids=str)  # fmt: skip
def test_a_published_checkpoint_does_what_it_says(path):
    checkpoint = torch.load(path, weights_only=True)
    script = importlib.import_module(checkpoint["script"].removesuffix(".py"))
    agent, args = script.load_agent(str(path))
    assert path.stat().st_size < 1e6 and checkpoint["command"].endswith(f"--seed {args.seed}")
    for env_id, said in checkpoint["results"].items():
        found, said = script.evaluate(agent, args, env_id, "cpu")["argmax"], said["argmax"]
        assert abs(found["success_rate"] - said["success_rate"]) < 0.01
