"""The tooling in benchmark/: launchers (with a stand-in for Python), statistics by hand, report, export."""

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
sys.path.append(str(ROOT / "benchmark"))

import export
import report
import sweep
import throughput

LAUNCHERS = {"ppo_lstm_minigrid": "memory-s7", "ppo_lstm_cartpole_novel": "cartpole-novel"}

# Stands in for `python script.py ...`: seed 1 finishes, 2 crashes, 3 waits for the signal that lets it save.
FAKE = """#!/usr/bin/env bash
while (($#)); do
    case $1 in
        --env-id) env=$2 ;; --exp-name) name=$2 ;; --seed) seed=$2 ;; --resume) resume=$2 ;;
    esac
    shift
done
run=${resume%/agent.pt}
[[ $run ]] || { run=runs/${env}__${name}__${seed}__$(date +%s); mkdir "$run"; }
[[ $seed != 2 ]] || { echo "the gradient is not finite"; exit 1; }
if [[ $seed == 3 && ! $resume ]]; then
    trap 'echo saved >>"$run/agent.pt"' TERM
    trap 'echo interrupted >>"$run/agent.pt"' INT
    touch waiting
    while [[ ! -e $run/agent.pt ]]; do sleep 0.05; done
    sleep 0.3 # would there be a second signal?
    exit 143
fi
touch "$run/agent.pt"
echo '{"eval_only": false}' >"$run/results.json"
echo "$env after 1 steps: fine"
"""


@pytest.fixture
def launch():
    """A launcher in this folder, with the stand-in."""
    Path("fake").write_text(FAKE)
    os.chmod("fake", 0o755)

    def start(*flags, script="ppo_lstm_cartpole_novel"):
        return subprocess.Popen(["bash", ROOT / "benchmark" / f"{script}.sh", *flags], text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, env={**os.environ, "PYTHON": os.path.abspath("fake")},
                                start_new_session=True)  # fmt: skip

    return start


# ------------------------------------------------------------------------------------------------------------------ launchers
def test_launcher_runs_all_reports_the_crashed_and_skips_the_finished(launch):
    flags = ("-w", "2", "-s", "1 2", "-g", "cartpole-novel*")
    process = launch(*flags)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 1, out
    assert out.count(" done ") == 2 and out.count(" FAILED ") == 2 and "the gradient is not finite" in out
    assert "4 jobs: 2 finished, 2 failed" in out
    assert "the gradient" in Path("runs/logs/cartpole-novel-memoryless__2.log").read_text()
    (note,) = glob.glob("runs/*__cartpole-novel-memoryless__1__*/command.txt")
    command = Path(note).read_text().strip().partition(": ")[2]
    assert command == ("python ppo_lstm_cartpole_novel.py --env-id CartPoleNoVel-v0 --exp-name cartpole-novel-memoryless "
                       "--seed 1 --memoryless")  # fmt: skip
    process = launch(*flags)
    out, _ = process.communicate(timeout=20)
    assert out.count(" finished ") == 2 and out.count(" started ") == 2 and process.returncode == 1
    assert len(glob.glob("runs/*__1__*")) == 2 and len(glob.glob("runs/abandoned/*__2__*")) == 2
    process = launch("-s", "1", "-g", "cartpole-novel", "--", "--gamma", "0.5")  # it is finished, but with other flags
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 1 and "another command" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_launcher_stops_gracefully_locks_and_goes_on(launch, number):
    first = launch("-s", "3", "-g", "cartpole-novel")
    while not os.path.exists("waiting"):
        time.sleep(0.05)
    second = launch("-s", "3", "-g", "cartpole-novel")  # the job is taken
    out, _ = second.communicate(timeout=20)
    assert "1 in other launchers" in out and second.returncode == 0
    os.killpg(first.pid, number)  # as a terminal's Ctrl-C does: the launcher and all that share its group
    out, _ = first.communicate(timeout=20)
    assert first.returncode == 143 and "1 stopped" in out
    (path,) = glob.glob("runs/*/agent.pt")
    assert Path(path).read_text() == "saved\n"  # one TERM, no INT
    third = launch("-s", "3", "-g", "cartpole-novel")
    out, _ = third.communicate(timeout=20)
    assert third.returncode == 0 and " resumed " in out and len(glob.glob("runs/*__3__*")) == 1


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_row_of_the_launchers_parses(launch, name):
    script = report.load_script(name)
    listed, _ = launch("-l", "-s", "5", script=name).communicate(timeout=20)
    jobs = [line.partition(": ")[2] for line in listed.splitlines()]
    assert len(jobs) >= 2 and sum("--memoryless" in job for job in jobs) >= len(jobs) // 2 - 1
    for job in jobs:
        args, _ = script.parse(shlex.split(job))
        assert args.env_id in job
    one, _ = launch("-l", "-s", "5", "-j", "2", script=name).communicate(timeout=20)
    assert one == listed.splitlines()[1] + "\n"
    process = launch("-g", "nothing", script=name)
    assert "matches no row" in process.communicate(timeout=20)[0] and process.returncode == 2


# ---------------------------------------------------------------------------------------------------------------------- Slurm
@pytest.fixture
def array_task(launch):
    """slurm.sh as the array's task for seed 3, with the stand-in, and with an scontrol that notes what it is asked."""
    os.mkdir("bin")
    Path("bin/scontrol").write_text('#!/bin/sh\necho "$@" >>requeued\n')
    os.chmod("bin/scontrol", 0o755)

    def start(**slurm):
        env = {"PATH": f"{os.path.abspath('bin')}:{os.environ['PATH']}", "PYTHON": os.path.abspath("fake"), **slurm}
        command = ["bash", ROOT / "benchmark" / "slurm.sh", ROOT / "benchmark" / "ppo_lstm_cartpole_novel.sh"]
        return subprocess.Popen([*command, "-s", "1 3", "-g", "cartpole-novel"], text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, env={**os.environ, "SLURM_ARRAY_TASK_ID": "2", **env})  # fmt: skip

    return start


def processes_below(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(p for child in children for p in processes_below(int(child)))]


@pytest.mark.parametrize("how", ["time limit", "preempted", "no Slurm"])
def test_slurm_task_signals_the_run_once_and_goes_on(array_task, how):
    slurm = {} if how == "no Slurm" else {"SLURM_JOB_ID": "77"}
    task = array_task(**slurm)
    while not os.path.exists("waiting"):
        time.sleep(0.05)
    if how == "time limit":
        task.send_signal(signal.SIGUSR1)  # --signal=B: the batch shell alone
    elif how == "preempted":
        for pid in processes_below(task.pid):
            os.kill(pid, signal.SIGTERM)
    else:
        task.terminate()
    out, _ = task.communicate(timeout=20)
    assert task.returncode == 143 and "1 stopped" in out, out
    (path,) = glob.glob("runs/*__3__*/agent.pt")
    assert Path(path).read_text() == "saved\n"  # one TERM, no INT
    assert os.path.exists("requeued") == (how == "time limit")
    task = array_task(**slurm)
    out, _ = task.communicate(timeout=20)
    assert task.returncode == 0 and " resumed " in out and "1 finished" in out and not glob.glob("runs/*__1__*")


# ---------------------------------------------------------------------------------------------------------------------- sweeps
@pytest.mark.parametrize("name", ["minigrid", "cartpole_novel"])
def test_every_draw_of_a_sweep_parses_here_and_as_wandb_writes_it(name):
    import tyro
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    config = sweep.load(str(ROOT / "benchmark" / f"sweep_{name}.yaml"))
    script = report.load_script(config["program"])
    assert config["command"][-2:] == ["--track", "${args_no_boolean_flags}"]
    drawn = [sweep.draw(config, index) for index in range(30)]
    for draw in drawn:
        here = tyro.cli(script.Args, args=sweep.flags(draw))
        there = create_sweep_command_args({"args": {k: {"value": v} for k, v in draw.items()}})["args_no_boolean_flags"]
        assert tyro.cli(script.Args, args=there) == here
        for parameter, value in draw.items():
            if parameter.startswith("no_"):
                parameter, value = parameter[3:], not value
            assert getattr(here, parameter) == value
    for parameter, spec in config["parameters"].items():
        values = [draw[parameter] for draw in drawn]
        if "values" in spec:
            assert set(values) == set(spec["values"])
        elif "min" in spec:
            assert spec["min"] <= min(values) < max(values) <= spec["max"] and type(values[0]) is type(spec["max"])
    extremes = {k: [spec["value"]] if "value" in spec else spec.get("values") or [spec["min"], spec["max"]]
                for k, spec in config["parameters"].items()}  # fmt: skip
    smallest = {k: min(extremes[k]) for k in ("num_envs", "num_steps")} | {
        k: max(extremes[k]) for k in ("seq_len", "num_minibatches", "total_timesteps")}  # fmt: skip
    script.Args(**smallest)
    metric = config["metric"]["name"].split("/")[1]
    results = {"env_id": "x", "eval": {"x": {"argmax": {metric: 0.5}, "sampled": {metric: 0.1}}}}
    assert sweep.score(config, results) == 0.5


def test_local_sweep_runs_goes_on_and_prints_a_table(launch, monkeypatch, capfd):
    config = {"program": "ppo_lstm_cartpole_novel.py", "method": "random", "metric": {"name": "eval/a", "goal": "maximize"},
              "parameters": {"env_id": {"value": "E"}, "gamma": {"min": 0.5, "max": 0.9},
                             "seed": {"values": [1, 3]}}}  # fmt: skip
    Path("s.yaml").write_text(yaml.safe_dump(config))
    results = '{"env_id": "E", "SPS": 1000.0, "args": {"eval_only": false}, "eval": {"E": {"argmax": {"a": 0.SEED}}}}'
    stand_in = Path("fake").read_text().replace("""'{"eval_only": false}'""", f"'{results}'".replace("SEED", "'$seed'"))
    Path("fake").write_text(stand_in)
    monkeypatch.setenv("PYTHON", os.path.abspath("fake"))
    seeds = [sweep.draw(config, index)["seed"] for index in range(4)]
    assert {1, 3} == set(seeds)
    arguments = ["s.yaml", "-n", "4", "-w", "4", "--", "--gae-lambda", "0.9"]
    process = subprocess.Popen([sys.executable, ROOT / "benchmark" / "sweep.py", *arguments], text=True,
                               stdout=subprocess.PIPE)  # fmt: skip
    while len(glob.glob("runs/*/results.json")) < seeds.count(1) or not os.path.exists("waiting"):
        time.sleep(0.05)
    process.terminate()
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 143 and f"{seeds.count(3)} stopped" in out
    assert f"{seeds.count(1)} of 4 draws have finished" in out
    assert all(Path(path).read_text() == "saved\n" for path in glob.glob("runs/*__3__*/agent.pt"))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert sweep.main(arguments) == 0
    signal.signal(signal.SIGINT, before[0]), signal.signal(signal.SIGTERM, before[1])
    out = capfd.readouterr().out
    assert out.count(" finished ") >= seeds.count(1) and out.count(" resumed ") == seeds.count(3)
    lines = out[out.index("draw ") :].splitlines()
    scores = [float(line.split()[1]) for line in lines[1:-1]]
    assert len(scores) == 4 and scores == sorted(scores, reverse=True) and lines[-1] == "4 of 4 draws have finished"


@pytest.mark.parametrize(("changes", "message"), [
    ({"method": "bayes"}, "random only"), ({"metric": None}, "lacks metric"),
    ({"parameters": {"env_id": {"value": "E"}, "gamma": {"min": "1e-3", "max": 1}}}, "gamma needs"),
    ({"parameters": {"env_id": {"value": "E"}, "gamma": {"min": 0, "max": 1, "distribution": "q_normal"}}}, "q_normal"),
])  # fmt: skip
def test_sweep_file_that_cannot_be_run_here(changes, message):
    config = {"program": "ppo_lstm_minigrid.py", "method": "random", "metric": {"name": "eval/success_rate"},
              "parameters": {"env_id": {"value": "E"}}, **changes}  # fmt: skip
    Path("s.yaml").write_text(yaml.safe_dump({k: v for k, v in config.items() if v}))
    with pytest.raises(SystemExit, match=message):
        sweep.main(["s.yaml", "--list"])


def test_sweep_agents_share_the_gpus_and_are_signalled_once(tmp_path):
    os.mkdir("benchmark")
    Path("benchmark/run_sweep.sh").write_text((ROOT / "benchmark" / "run_sweep.sh").read_text())
    Path("fake").write_text("""#!/usr/bin/env bash
trap 'echo TERM; leaving=1' TERM
trap 'echo INT' INT
echo "gpu '$CUDA_VISIBLE_DEVICES' $*"
while [[ ! $leaving ]]; do sleep 0.05; done
sleep 0.3
""")
    os.chmod("fake", 0o755)
    for gpus, logs in ((["-g", "0,1"], ["0_1", "0_2", "1_1", "1_2"]), ([], ["cpu_1", "cpu_2"])):
        command = ["bash", "benchmark/run_sweep.sh", "-s", "me/it/abc", "-n", "2", *gpus]
        process = subprocess.Popen(command, env={**os.environ, "PYTHON": os.path.abspath("fake")}, start_new_session=True)
        paths = [Path(f"runs/logs/sweep_abc_{log}.log") for log in logs]
        while not all(path.exists() and path.read_text() for path in paths):
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT if gpus else signal.SIGTERM)
        assert process.wait(20) == 143
        for path, log in zip(paths, logs, strict=True):
            gpu = log[0] if gpus else ""
            assert path.read_text() == f"gpu '{gpu}' -m wandb agent --forward-signals me/it/abc\nTERM\n"


def test_a_sweep_started_again_first_finishes_its_own_unfinished_runs():
    os.mkdir("benchmark")
    Path("benchmark/run_sweep.sh").write_text((ROOT / "benchmark" / "run_sweep.sh").read_text())
    # the runs of the sweep abc: a finished one, one that never saved, two stopped ones (one resumed before); another sweep's
    for name, run_id, sweep_id in (("done", "r1", "abc"), ("empty", "r2", "abc"), ("x", "r3", "abc"), ("y", "r4", "abc"),
                                   ("x", "r3", "abc"), ("other", "r5", "xyz")):  # fmt: skip
        number = len(list(Path().glob(f"runs/{name}/wandb/*")))
        os.makedirs(f"runs/{name}/wandb/run-{number}-{run_id}")
        os.makedirs(f"wandb/sweep-{sweep_id}", exist_ok=True)
        Path(f"wandb/sweep-{sweep_id}/config-{run_id}.yaml").touch()
        if name != "empty":
            torch.save({"format": 2, "script": f"{name}.py", "args": {"exp_name": "z.py"}}, f"runs/{name}/agent.pt")
    Path("runs/done/results.json").touch()
    Path("fake").write_text("#!/usr/bin/env bash\necho $*\n[[ $1 != x.py ]]\n")
    os.chmod("fake", 0o755)
    command = ["bash", "benchmark/run_sweep.sh", "-s", "abc", "-r", "-n"]
    env = {**os.environ, "PYTHON": os.path.abspath("fake")}
    done = subprocess.run([*command, "1"], env=env, capture_output=True, text=True)
    agent = "-m wandb agent --forward-signals abc\n"
    x, y = "x.py --resume runs/x/agent.pt --track\n", "y.py --resume runs/y/agent.pt --track\n"
    assert Path("runs/logs/sweep_abc_cpu_1.log").read_text() == x + y + agent
    assert done.returncode == 1 and "1 of 1 agents failed" in done.stderr  # x.py has; the others went on
    shutil.rmtree("runs/logs")
    subprocess.run([*command, "2"], env=env, check=False)
    assert Path("runs/logs/sweep_abc_cpu_1.log").read_text() == x + agent
    assert Path("runs/logs/sweep_abc_cpu_2.log").read_text() == y + agent


# ----------------------------------------------------------------------------------------------------------------- throughput
def test_split_of_an_iterations_time_by_hand():
    # two iterations of 4 steps each (say of 10 environments): a step takes 1 s, the policy 2 s before each, the update 7 s
    calls = [(t, t + 1) for start in (2, 21) for t in range(start, start + 12, 3)]
    spans = {"environment": calls, "backward": [(15, 18), (34, 37)], "optimizer": [(18, 19), (37, 38)]}
    parts = throughput.split(spans, iterations=2, steps=80, seconds=38)
    seconds = {name: value * 80 / 1e6 for name, value in parts.items()}
    assert seconds == pytest.approx({"environment": 8, "rest of the rollout": 16, "update: forward and rest": 6,
                                     "update: backward": 6, "update: optimizer": 2})  # fmt: skip
    assert throughput.split({"environment": calls[:-1]}, 2, 80, 38) is None  # not called once a step
    assert throughput.split({"environment": []}, 2, 80, 38) is None


def test_ratio_of_the_comparison_is_that_of_the_medians():
    rows = [{"name": side, "side": side, "SPS": speed, "first_step_seconds": 1, "first_iteration_seconds": 2, "memory_mb": 3}
            for side, speed in (("ours", 10), ("sb3", 2), ("ours", 90), ("sb3", 4), ("ours", 20), ("sb3", 5))]  # fmt: skip
    assert throughput.summary("vs", {"rows": rows})[-1] == "ratio of the medians: 5.00; of each pair: 5.00, 22.50, 4.00"


@pytest.mark.slow
def test_throughput_measures_training_and_keeps_other_parts(capfd):
    kept = {"vs": {"rows": [{"side": "ours", "SPS": 2.0}, {"side": "sb3", "SPS": 1.0}]}}
    Path("t.json").write_text(json.dumps(kept))
    tiny = ["--num-envs", "8", "--num-steps", "32", "--hidden-size", "8", "--no-cuda"]
    assert throughput.main(["--quick", "--only", "split", "--threads", "1", "-o", "t.json", "--", *tiny]) == 0
    record = json.loads(Path("t.json").read_text())
    assert record.keys() == {"vs", "split"} and os.path.getsize("t.png") > 1000
    (row,) = record["split"]["rows"]
    assert sum(row["split"].values()) == pytest.approx(1e6 / row["SPS"], rel=0.01)
    assert len(row["split"]) == 5 and all(value > 0 for value in row["split"].values())
    assert row["iterations"] >= 1 and 0.1 < row["first_step_seconds"] < row["first_iteration_seconds"] < 60
    assert 50 < row["memory_mb"] < 4000 and row["threads"] == 1 and row["device"] == "cpu"
    assert record["split"]["flags"].endswith(" ".join(tiny)) and record["split"]["machine"]["torch"]
    assert "backward" in capfd.readouterr().out


def test_a_measurement_that_fails_or_hangs_is_told(capfd):
    arguments = ["--quick", "--only", "work", "--rounds", "1", "-o", "t.json"]
    assert throughput.main([*arguments, "--limit", "0.2"]) == 1
    assert "not done after 0.2 s" in capfd.readouterr().out
    assert json.loads(Path("t.json").read_text())["work"]["rows"][0]["error"]


def test_floors_are_measured():
    spec = {"seconds": 0.05, "flags": ["--num-envs", "8", "--num-steps", "32", "--encoder-size", "0", "--num-threads", "1"]}
    row = throughput.measure_floors(spec)
    assert all(value > 0 for value in row["split"].values())
    assert sum(row["split"].values()) == pytest.approx(1e6 / row["SPS"])


def test_vector_environments_are_measured():
    for kind in list(throughput.VECTOR_KINDS)[:1]:
        spec = {"kind": kind, "num_envs": 2, "seconds": 0.1, "warmup": 0.05}
        assert throughput.measure_vector(spec)["SPS"] > 10


# ----------------------------------------------------------------------------------------------------------------- statistics
def test_steps_to_a_mark_that_is_held():
    steps = [10, 20, 30, 40, 50]
    assert report.steps_to_mark(steps, [0.1, 0.98, 0.5, 0.97, 1.0], 0.97) == 40  # 20 was not held
    assert report.steps_to_mark(steps, [0.97] * 5, 0.97) == 10
    assert report.steps_to_mark(steps, [1.0, 1.0, 1.0, 1.0, 0.96], 0.97) == math.inf
    assert report.steps_to_mark(steps, [0.0, 0.0, 0.0, 0.0, 1.0], 1.0) == 50
    assert report.steps_to_mark(steps, [1.0, math.nan, 1.0, 1.0, 1.0], 1.0) == 30
    assert report.steps_to_mark([7], [float(np.float32(0.97))], 0.97) == 7
    assert report.steps_to_mark([7], [499.99], 500.0) == math.inf
    assert report.steps_to_mark([], [], 1.0) == math.inf


def test_interquartile_mean():
    assert report.iqm([0, 1, 2, 3, 4, 5, 6, 100]) == 3.5  # 2, 3, 4, 5
    assert report.iqm([0, 1, 2, 3, 100]) == 2  # one off each end
    assert report.iqm([1, 2, 9]) == 4  # three seeds: the mean
    assert report.iqm([0, 0, 1, 2, 3, 4, 5, 6, 9, 9]) == 3.5  # two off each end of ten


def test_interval_covers_and_is_stratified():
    rng = np.random.default_rng(3)
    samples = rng.normal(5.0, 1.0, size=(300, 10))
    covered = [low <= 5.0 <= high for low, high in (report.interval([sample], 400) for sample in samples)]
    assert 0.85 < np.mean(covered) < 0.97  # a percentile bootstrap of ten is somewhat narrow
    assert report.interval([[0.3]]) is None
    low, high = report.interval([np.zeros(4), np.ones(4)])  # tasks differ, seeds do not: nothing is uncertain
    assert low == high == 0.5
    low, high = report.interval([[0.0, 1.0]])
    assert (low, high) == (0.0, 1.0)
    low, high = report.interval([np.stack([np.arange(5.0), np.zeros(5)], axis=1)])  # at two points
    assert low.shape == (2,) and low[0] < 2 < high[0] and low[1] == high[1] == 0


# --------------------------------------------------------------------------------------------------------------------- report
def make_run(row, seed, curve, script="ppo_lstm_minigrid", resumed=False, **changes):
    """A run folder as the scripts write it, with an evaluation each 1,000 steps."""
    from torch.utils.tensorboard import SummaryWriter

    args = {**vars(report.load_script(script).Args()), "exp_name": row, "seed": seed, **changes}
    folder = f"runs/{args['env_id']}__{row}__{seed}__1{seed}"
    writer = SummaryWriter(folder)
    for i, value in enumerate(curve):
        if resumed and i == 2:  # what was logged past the checkpoint counts no more
            writer.add_scalar("eval/success_rate", 0.123, 1000 * (i + 1))
            writer.close()
            time.sleep(1.1)  # event files are told apart by the second
            writer = SummaryWriter(folder, purge_step=1000 * i + 1)
        for prefix in ("eval", "eval_sampled"):
            for metric in report.METRICS:
                writer.add_scalar(f"{prefix}/{metric}", value, 1000 * (i + 1))
        writer.add_scalar("charts/SPS", 100.0, 1000 * (i + 1))
    writer.close()
    final = {"success_rate": curve[-1], "episodic_return": curve[-1], "episodic_length": 5.0, "episodes": 9, "exact": True}
    results = {"env_id": args["env_id"], "seed": seed, "args": args, "global_step": 1000 * len(curve), "wall_seconds": 1e9,
               "SPS": 100.0, "eval": {args["env_id"]: {"argmax": final, "sampled": final}}}  # fmt: skip
    Path(folder, "results.json").write_text(json.dumps(results))
    Path(folder, "command.txt").write_text("abc1234: python x\n")
    return folder


def test_report_from_run_folders_and_again_from_its_files():
    for seed, curve in ((1, [0.5, 0.98, 0.5, 1.0]), (2, [0.5, 0.99, 1.0, 1.0]), (3, [0.5, 0.5, 0.5, 0.6])):
        make_run("memory-s13", seed, curve, num_envs=64, resume="/home/someone/agent.pt", norm_adv=False, num_threads=1)
    make_run("memory-s13-memoryless", 1, [0.5] * 4, num_envs=64, norm_adv=False, memoryless=True)
    make_run("cartpole-novel", 1, [100.0, 480.0, 470.0, 490.0], script="ppo_lstm_cartpole_novel")
    make_run("only-evaluated", 1, [1.0], eval_only=True)
    os.makedirs("runs/unfinished")
    assert report.main(["runs", "-o", "out"]) == 0
    assert len(glob.glob("out/raw/*.json")) == 5 and all(os.path.getsize(p) < 5000 for p in glob.glob("out/raw/*"))
    record = json.loads(Path("out/raw/memory-s13__1.json").read_text())
    assert record["args"].items() >= {"num_envs": 64, "norm_adv": False, "num_threads": 1, "gamma": 0.999}.items()
    assert record["commits"] == ["abc1234"]
    assert record["steps_to_mark"] == {"0.97": 4000, "0.99": 4000, "1": 4000}
    curve = record["curves"]["MiniGrid-MemoryS13-v0"]
    assert curve["step"] == [1000, 2000, 3000, 4000] and curve["seconds"] == [10, 20, 30, 40]
    assert curve["argmax/success_rate"] == [0.5, 0.98, 0.5, 1.0] and record["training_seconds"] == 40
    text = Path("out/README.md").read_text()
    assert "someone" not in text
    (row,) = (line for line in text.splitlines() if line.startswith("| memory-s13 |") and "python" in line)
    assert "`python ppo_lstm_minigrid.py --num-envs 64 --no-norm-adv`" in row
    assert "| 0.867 [0.600, 1.000] | 0.600 |" in row  # three seeds: the mean
    assert "| 0.004 (0.002 to 0.004), 2/3 at 0.97 |" in row and row.endswith("| 0.500 (n = 1) |")
    assert "| cartpole-novel | 475 | 1/1 | 0.004 | 0.004 to 0.004 | 0.7 |" in text
    assert "| cartpole-novel | 500 | 0/1 | never | - | never |" in text
    pictures = {p: Path(p).read_bytes() for p in glob.glob("out/*.png")}
    assert len(pictures) == 2 and all(1000 < len(picture) < 300_000 for picture in pictures.values())
    subprocess.run(["rm", "-r", "runs"], check=True)
    assert report.main(["-o", "out"]) == 0  # the same, from the JSON files alone
    assert Path("out/README.md").read_text() == text
    assert all(Path(p).read_bytes() == picture for p, picture in pictures.items())


def test_report_of_a_resumed_run_counts_nothing_twice():
    folder = make_run("memory-s13", 1, [0.1, 0.2, 0.3, 0.4], resumed=True)
    curve = report.read_run(folder)["curves"]["MiniGrid-MemoryS13-v0"]
    assert curve["step"] == [1000, 2000, 3000, 4000] and curve["argmax/success_rate"] == [0.1, 0.2, 0.3, 0.4]


def test_report_refuses_a_row_of_unequal_runs():
    make_run("memory-s13", 1, [1.0])
    make_run("memory-s13", 2, [1.0], gamma=0.5)
    with pytest.raises(SystemExit, match=r"memory-s13 differ.*--gamma"):
        report.main(["runs", "-o", "out"])
    for path in ("out/raw/memory-s13__2.json", "runs/MiniGrid-MemoryS13-v0__memory-s13__2__12/results.json"):
        os.remove(path)
    make_run("memory-s13-memoryless", 1, [0.5], memoryless=True, gamma=0.5)
    with pytest.raises(SystemExit, match="more than --memoryless"):
        report.main(["runs", "-o", "out"])


# --------------------------------------------------------------------------------------------------------------------- export
def test_export(script, small, capsys):
    run_dir = "runs/somewhere"
    os.makedirs(run_dir)
    _, results = script.train(small(wandb_entity="someone", exp_name="row", seed=3), run_dir=run_dir)
    source, target = f"{run_dir}/agent.pt", "exported.pt"
    with pytest.raises(SystemExit, match="--commit"):
        export.main([source, target])
    assert export.main([source, target, "--commit", "abc1234"]) == 0
    exported = torch.load(target, weights_only=True)
    assert {"format", "script", "args", "agent", "global_step", "results", "command", "commit"} == exported.keys()
    assert exported["results"] == results["eval"] and exported["args"]["wandb_entity"] is None
    assert "--hidden-size 8" in exported["command"] and exported["command"].endswith("--seed 3")
    assert "row" not in exported["command"] and os.path.getsize(target) < os.path.getsize(source)
    again, _ = script.parse(shlex.split(exported["command"])[2:])
    wanted = script.Args(**exported["args"])
    assert again == wanted
    assert script.main(["--resume", target, "--eval-only"]) == 0
    assert script.main(["--resume", target, "--total-timesteps", "640"]) == 2
    os.remove(f"{run_dir}/results.json")
    with pytest.raises(SystemExit, match=r"no results\.json"):
        export.main([source, target, "--commit", "abc1234"])


CHECKPOINTS = sorted((ROOT / "benchmark" / "checkpoints").glob("*.pt"))


@pytest.mark.parametrize("path", [
    pytest.param(path, id=path.stem, marks=[] if "Memory" in path.stem else [pytest.mark.slow]) for path in CHECKPOINTS
])  # fmt: skip
def test_a_published_checkpoint_does_what_it_says(path):
    assert path.stat().st_size < 1e6
    checkpoint = torch.load(path, weights_only=True)
    script = report.load_script(checkpoint["script"])
    agent, args = script.load_agent(str(path))
    assert checkpoint["command"].endswith(f"--seed {args.seed}")
    for env_id, said in checkpoint["results"].items():
        found = script.evaluate(agent, args, env_id, "cpu")
        assert abs(found["argmax"]["success_rate"] - said["argmax"]["success_rate"]) < 0.01
