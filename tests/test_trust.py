"""What the README promises of a run: killed, it resumes as if nothing had been; stopped, it saves; at a fault it ends with an
error and a whole checkpoint; a damaged file is refused; the same seed gives the same weights."""

import glob
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import cartpole_slowly
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_train import ROOT, TINY, env_flags, same, scalars

import envs as task_envs
import ppo_lstm_cartpole_novel
import ppo_lstm_minigrid

slow = pytest.mark.slow
MOMENTS = int(os.environ.get("MOMENTS", "3"))  # how often each script is killed; MOMENTS=20 once in a while
TIMES = {"train_seconds", "args", "wandb_run_id"}


def command(script, *flags):
    return [sys.executable, "-u", ROOT / os.path.basename(script.__file__), *map(str, flags)]


def started(script, *flags, **kwargs):
    """The process of a command that is about to train."""
    process = subprocess.Popen(command(script, *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)
    for line in process.stdout:
        if "first step" in line:
            return process
    raise AssertionError(process.stderr.read())


def wait_for(path, seconds=60):
    end = time.time() + seconds
    while not glob.glob(path):
        assert time.time() < end, f"no {path}"
        time.sleep(0.05)
    return glob.glob(path)[0]


# ---------------------------------------------------------------------------------------------------------- killed, resumed
def saved(run_dir):
    """Everything that a run leaves, times aside: checkpoints, events, results."""
    files = {path.name: torch.load(path, weights_only=True) for path in Path(run_dir).glob("*.pt")}
    files = {name: {key: c[key] for key in c.keys() - TIMES} for name, c in files.items()}
    events = {tag: points for tag, points in scalars(str(run_dir)).items() if tag != "charts/SPS"}
    results = json.loads(Path(run_dir, "results.json").read_text())
    return files, events, {name: results[name] for name in ("eval", "global_step", "seed", "env_id")}


@slow
def test_killed_at_any_moment_a_run_resumes_bit_for_bit(script):
    """Lines of the script, files half written, files not yet renamed, any time at all: what is left is equal."""
    flags = [*env_flags(script), *TINY, "--eval-every", "2", "--save-every", "1", "--target-kl", "0.02",
             "--rand-move-eps", "0.1", "--total-timesteps", "768", "--exp-name"]  # fmt: skip
    name = ROOT / os.path.basename(script.__file__)
    killed = [sys.executable, ROOT / "tests" / "killed.py"]
    begin = time.time()
    done = subprocess.run([*killed, "never", "0", name, *flags, "whole"], capture_output=True, text=True, check=True)
    seconds = time.time() - begin
    lines, files = map(int, done.stdout.split()[-2:])
    (whole,) = glob.glob("runs/*__whole__*")
    expected = saved(whole)
    assert len(expected[0]) == 13 and len(expected[1]["eval/success_rate"]) == 6
    draw = random.Random(0)
    for moment in range(MOMENTS):
        how = ("line", "write", "time", "line", "rename")[moment % 5]
        number = draw.randrange(1, lines) if how == "line" else draw.randrange(2, files)
        if how == "time":
            process = started(script, *flags, f"killed{moment}")
            wait_for(f"runs/*__killed{moment}__*/agent.pt")
            time.sleep(draw.uniform(0, seconds / 4))
            process.kill()
            process.communicate()
        else:
            done = subprocess.run([*killed, how, str(number), name, *flags, f"killed{moment}"], capture_output=True)
            assert done.returncode == -signal.SIGKILL, done.stderr
        (run_dir,) = glob.glob(f"runs/*__killed{moment}__*")
        if not os.path.exists(f"{run_dir}/results.json"):
            done = subprocess.run(command(script, "--resume", f"{run_dir}/agent.pt"), capture_output=True, text=True)
            assert done.returncode == 0, (how, number, done.stderr)
        left = saved(run_dir)
        for part, (a, b) in enumerate(zip(expected, left, strict=True)):
            assert a.keys() == b.keys() and all(same(a[key], b[key]) for key in a), (how, number, part)


def test_the_newest_checkpoint_is_agent_pt_and_holds_the_evaluation(script):
    """A run killed after its last checkpoint, before results.json, evaluates nothing twice and logs nothing twice."""
    flags = [*env_flags(script), *TINY, "--total-timesteps", "192", "--save-every", "2", "--eval-every", "2"]
    assert script.main(flags) == 0
    (run,) = map(Path, glob.glob("runs/*"))
    expected = saved(run)
    assert expected[0]["agent.pt"]["global_step"] == 192 and expected[0]["agent.pt"]["results"] == expected[2]["eval"]
    (run / "results.json").unlink()
    assert script.main(["--resume", str(run / "agent.pt")]) == 0
    for a, b in zip(expected, saved(run), strict=True):
        assert same(a, b)


def test_a_resumed_run_keeps_the_generators_of_gymnasiums_environments():
    script = ppo_lstm_minigrid
    flags = ["--env-id", "MiniGrid-ObstructedMaze-1Dl-v0", *TINY, "--total-timesteps", "128", "--save-every", "1"]
    assert script.main(flags) == 0
    (run,) = map(Path, glob.glob("runs/*"))
    kept = torch.load(run / "agent_64.pt", weights_only=True)["ranks"][0]["envs"]["generators"]
    args, checkpoint = script.parse(["--resume", str(run / "agent_64.pt")])
    vector = script.make_envs(args, args.env_id, args.num_envs, "cpu")
    vector.reset(seed=5)
    vector.load_state_dict(checkpoint["ranks"][0]["envs"])
    assert vector.state_dict()["generators"] == kept


# ------------------------------------------------------------------------------------------------------------------ signals
LONG_UPDATE = ["--update-epochs", "1000000", "--total-timesteps", "6400"]
LONG_EVALUATION = ["--eval-every", "2", "--total-timesteps", "6400", "--eval-episodes"]


@slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_an_iteration_that_does_not_end_is_given_up_and_the_last_checkpoint_stands(script, number):
    """The signal comes in a minibatch loop of hours: six seconds later the run ends all the same."""
    process = started(script, *env_flags(script), *TINY, *LONG_UPDATE)
    time.sleep(1)
    begin = time.time()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number and time.time() - begin < 10
    assert "not saved" in out and "no checkpoint yet" in out and "Traceback" not in err
    assert not glob.glob("runs/*/results.json")


@slow
def test_a_long_evaluation_is_given_up(script):
    env_id = ["--env-id", "MiniGrid-CustomMaze-S13-v0"] if script is ppo_lstm_minigrid else []
    process = started(script, *TINY, *env_id, *LONG_EVALUATION, 30_000 if env_id else 1_000_000)
    path = wait_for("runs/*/agent.pt")
    before = Path(path).read_bytes()
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err and path in out
    assert Path(path).read_bytes() == before and script.load_checkpoint(path)["global_step"] == 64


@slow
def test_a_second_signal_ends_at_once():
    script = ppo_lstm_cartpole_novel
    process = started(script, *env_flags(script), *TINY, *LONG_UPDATE)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    begin = time.time()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and time.time() - begin < 5 and "Traceback" not in err


@slow
def test_ctrl_c_in_a_terminal_reaches_every_process_and_the_logs_are_whole():
    """The terminal signals the whole process group, W&B's process too."""
    script = ppo_lstm_minigrid
    env = {**os.environ, "WANDB_MODE": "offline"}
    process = started(script, *env_flags(script), *TINY, "--total-timesteps", "10000000", "--track", env=env,
                      start_new_session=True)  # fmt: skip
    wait_for("runs/*/agent.pt")
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "--resume" in out and "Traceback" not in err
    (log,) = glob.glob("runs/*/wandb/offline-run-*/run-*.wandb")
    assert b"charts/SPS" in Path(log).read_bytes()


def test_handlers_are_put_back(script):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)]
    assert script.main(["--learning-rate", "nan"]) == 2
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


# ------------------------------------------------------------------------------------------------------------- rotten files
def test_no_flipped_byte_loads_silently_wrong(script, small, capsys):
    script.train(small(total_timesteps=64), run_dir="made")
    data = Path("made/agent.pt").read_bytes()
    whole = torch.load("made/agent.pt", weights_only=True)
    draw, refused = random.Random(0), 0
    for _ in range(200):
        place = draw.randrange(len(data))
        Path("bad.pt").write_bytes(data[:place] + bytes([data[place] ^ draw.randrange(1, 256)]) + data[place + 1 :])
        try:
            assert same(script.load_checkpoint("bad.pt"), whole), f"byte {place} changes what is loaded"
        except task_envs.UsageError as error:
            assert "bad.pt" in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 100
    capsys.readouterr()


@cartpole_slowly
@pytest.mark.parametrize("change", [
    lambda c: c.update(format="1"), lambda c: c.update(args=[]), lambda c: c.pop("ranks"), lambda c: c.pop("optimizer"),
    lambda c: c["ranks"][0].update(next_obs=c["ranks"][0]["next_obs"][:1]),
    lambda c: c["optimizer"]["state"].pop(0), lambda c: c.update(agent={}),
    lambda c: c["ranks"][0]["envs"].update(dict.fromkeys(c["ranks"][0]["envs"], torch.zeros(1))),
    lambda c: c.update(results=None), lambda c: c["ranks"][0].pop("rng"), lambda c: c.update(ranks="two"),
], ids=range(11))  # fmt: skip
def test_a_checkpoint_that_lacks_a_part_is_refused(script, small, capsys, change):
    script.train(small(total_timesteps=64, anneal_lr=False), run_dir="made")
    checkpoint = torch.load("made/agent.pt", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, "bad.pt")
    assert script.main(["--resume", "bad.pt", "--total-timesteps", "640"]) == 2
    err = capsys.readouterr().err
    assert "bad.pt" in err and err.count("\n") == 1 and not os.path.exists("runs")


# ------------------------------------------------------------------------------------------------------------------- faults
@pytest.mark.parametrize("fault", ["NanReward", "InfiniteReward", "NanObservation", "InfiniteObservation", "Raises"])
def test_an_environment_that_fails_ends_the_run_and_leaves_a_whole_checkpoint(probe, capsys, fault):
    script = ppo_lstm_cartpole_novel
    assert script.main(["--env-id", f"Probe{fault}-v0", *TINY, "--total-timesteps", "6400"]) == 1
    err = capsys.readouterr().err
    (path,) = glob.glob("runs/*/agent.pt")
    assert "not finite" in err or "the environment is broken" in err
    assert ("Traceback" in err) == (fault == "Raises") and path in err.splitlines()[-1]
    checkpoint = script.load_checkpoint(path)
    assert checkpoint["global_step"] >= 64 and all(value.isfinite().all() for value in checkpoint["agent"].values())
    assert not glob.glob("runs/*/results.json")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_ends_the_run(script, monkeypatch, capsys, bad):
    real, calls = script.ppo_loss, []

    def broken(*inputs):
        loss, stats = real(*inputs)
        calls.append(1)
        return loss * bad if len(calls) == 10 else loss, stats

    monkeypatch.setattr(script, "ppo_loss", broken)
    assert script.main([*env_flags(script), *TINY, "--total-timesteps", "6400", "--save-every", "1"]) == 1
    (path,) = glob.glob("runs/*/agent.pt")
    assert "gradient is not finite" in capsys.readouterr().err and script.load_checkpoint(path)["global_step"] == 128


def test_an_evaluation_that_is_not_finite_ends_the_run(probe, capsys):
    assert ppo_lstm_cartpole_novel.main(["--env-id", "ProbeNanLater-v0", *TINY, "--total-timesteps", "64"]) == 1
    assert "not finite" in capsys.readouterr().err and not glob.glob("runs/*/results.json")


@pytest.mark.parametrize("what", ["agent.pt", "results.json"])
def test_a_file_that_cannot_be_written_ends_the_run_and_the_old_one_stands(script, monkeypatch, capsys, what):
    real, written = os.replace, []

    def full(source, target):
        written.append(target)
        if what in target and (what == "results.json" or len(written) > 1):
            raise OSError(28, "No space left on device", target)
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert script.main([*env_flags(script), *TINY, "--total-timesteps", "256", "--save-every", "4"]) == 1
    err = capsys.readouterr().err
    (path,) = glob.glob("runs/*/agent.pt")
    assert err.count("\n") == 1 and "No space left" in err and path in err
    assert script.load_checkpoint(path)["global_step"] == (64 if what == "agent.pt" else 256)
    assert not glob.glob("runs/*/results.json") and not glob.glob("runs/*/*.tmp")


@pytest.fixture
def tiny_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk],
                                                       capture_output=True).returncode == 0  # fmt: skip
    if not mounted:
        pytest.skip("this user cannot mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@slow
def test_a_full_disk(script, tiny_disk):
    """A real one: logs are lost with a line, the checkpoint ends the run, and the old one goes on once there is room."""
    flags = [*env_flags(script), *TINY, "--hidden-size", "64", "--total-timesteps", "1000000", "--save-every", "50"]
    process = started(script, *flags, cwd=tiny_disk)
    wait_for(f"{tiny_disk}/runs/*/agent.pt")
    with open(tiny_disk / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"0" * 4096)
        except OSError:
            pass
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "No space left" in err.splitlines()[-1]
    (path,) = glob.glob(f"{tiny_disk}/runs/*/agent.pt")
    step = script.load_checkpoint(path)["global_step"]
    (tiny_disk / "filler").unlink()
    for kept in glob.glob(f"{tiny_disk}/runs/*/agent_*.pt"):
        os.remove(kept)
    process = started(script, "--resume", os.path.relpath(path, tiny_disk), "--save-every", 1, cwd=tiny_disk)
    wait_for(f"{tiny_disk}/runs/*/agent_*.pt")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode in (1, 143) and script.load_checkpoint(path)["global_step"] > step


@pytest.fixture
def read_only():
    """Makes a folder read-only; root, whom permissions do not stop, mounts it so."""
    made = []

    def make(folder):
        made.append(folder)
        if os.geteuid():
            os.chmod(folder, 0o555)
        elif any(subprocess.run(["mount", *how, folder], capture_output=True).returncode
                 for how in (["--bind", folder], ["-o", "remount,bind,ro"])):  # fmt: skip
            pytest.skip("this root cannot mount")

    yield make
    for folder in made:
        os.chmod(folder, 0o755) if os.geteuid() else subprocess.run(["umount", "-l", folder], check=False)


def test_a_read_only_folder(script, capsys, read_only):
    os.mkdir("runs")
    read_only("runs")
    assert script.main([*env_flags(script), *TINY, "--total-timesteps", "64"]) == 2
    err = capsys.readouterr().err
    assert "runs" in err and err.count("\n") == 1


@slow
def test_a_run_folder_that_becomes_read_only(script, read_only):
    flags = [*env_flags(script), *TINY, "--total-timesteps", "1000000", "--save-every", "20"]
    process = started(script, *flags)
    path = wait_for("runs/*/agent.pt")
    read_only(os.path.dirname(path))
    _, err = process.communicate(timeout=120)
    last = err.splitlines()[-1]  # what TensorBoard's thread says for itself comes before
    assert process.returncode == 1 and last.startswith("error:") and "Read-only" in last and path in last
    assert script.load_checkpoint(path)["global_step"] > 0


@slow
def test_wandb_that_cannot_be_reached(tmp_path):
    """A key, and a server that is not there: one line, and the run ends well."""
    script = ppo_lstm_minigrid
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    env |= {"HOME": str(tmp_path), "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    flags = [*env_flags(script), *TINY, "--total-timesteps", "128", "--track"]
    done = subprocess.run(command(script, *flags), env=env, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0 and "W&B is not available" in done.stderr and "Traceback" not in done.stderr
    assert glob.glob("runs/*/results.json")


# ---------------------------------------------------------------------------------------------------------------- bad input
VALUES = {
    "--num-envs": [1, 2, 3, 4, 8, 0, -1],
    "--num-steps": [1, 2, 8, 12, 16, 32, 0],
    "--seq-len": [1, 2, 3, 4, 8, 16, 0],
    "--num-minibatches": [1, 2, 3, 4, 8, 64, 0],
    "--update-epochs": [1, 2, 3, 0],
    "--hidden-size": [1, 2, 8, 33, 0, -8],
    "--encoder-size": [0, 1, 16, -1],
    "--hidden-layer-size": [0, 1, 16, -1],
    "--gamma": [0, 0.5, 0.999, 1, 1.1, "nan"],
    "--gae-lambda": [0, 0.9, 1, -0.5],
    "--rand-move-eps": [0, 0.05, 1, 2],
    "--clip-coef": [1e-6, 0.2, 5, 0],
    "--learning-rate": [1e-9, 1e-3, 0.1, 0, "inf"],
    "--ent-coef": [0, 0.01, 1, -1],
    "--vf-coef": [0, 1, "nan"],
    "--max-grad-norm": [1e-6, 0.5, 1e6, 0],
    "--target-kl": [1e-9, 0.01, "None", 0],
    "--reward-scale": [0.01, 100, -1],
    "--seed": [0, 1, 2**31 - 1, 2**31, "x"],
    "--view-size": [0, 3, 5, 7, 4, 1],
    "--eval-every": [0, 1, 2, -1],
    "--eval-episodes": [1, 3, 0],
    "--save-every": [0, 1, -2],
    "--num-threads": [1, 0],
    "--exp-name": ["a", "a/b"],
    "--eval-env-id": ["MiniGrid-MemoryS9-v0", "MiniGrid-MemoryS7-v0 MiniGrid-MemoryS9-v0", "CartPoleNoVel-v1", "Nothing-v0"],
    "--env-id": ["MiniGrid-MemoryS7-v0", "MiniGrid-MemoryS13Random-v0", "MiniGrid-CustomMaze-S5-v0", "CartPoleNoVel-v0",
                 "MiniGrid-CustomMazeRandom-S7-v0", "MiniGrid-Empty-5x5-v0", "Acrobot-v1", "MiniGrid-GoToDoor-5x5-v0",
                 "Pendulum-v1"],
    "--resume": ["nowhere.pt"],
}  # fmt: skip
SWITCHES = ["anneal-lr", "norm-adv", "clip-vloss", "memoryless", "torch-deterministic", "track", "cuda"]
FLAGS = {flag: st.sampled_from([[flag, *str(value).split()] for value in values]) for flag, values in VALUES.items()}
FLAGS |= {name: st.sampled_from([[f"--{name}"], [f"--no-{name}"]]) for name in [*SWITCHES, "eval-only"]}
COMBINATIONS = st.fixed_dictionaries({"script": st.sampled_from([ppo_lstm_minigrid, ppo_lstm_cartpole_novel])},
                                     optional=FLAGS).filter(lambda drawn: len(drawn) < 14)  # fmt: skip
BUDGETS = {"refused": 0, "trained": 0}


def arguments(drawn):
    """The script and its flags, for two iterations where they are valid."""
    drawn = dict(drawn)
    script = drawn.pop("script")
    flags = {"--num-envs": ["--num-envs", "2"], "--num-steps": ["--num-steps", "16"], "--seq-len": ["--seq-len", "8"],
             "--num-minibatches": ["--num-minibatches", "2"], "--hidden-size": ["--hidden-size", "8"],
             "--update-epochs": ["--update-epochs", "2"], "--eval-episodes": ["--eval-episodes", "2"]} | drawn  # fmt: skip
    batch = int(flags["--num-envs"][1]) * int(flags["--num-steps"][1])
    return script, [*(word for words in flags.values() for word in words), "--total-timesteps", str(2 * batch)], batch


def check(code, out, err, batch):
    """Two iterations and their results, or exit code 2 and what is wrong, and nothing between."""
    assert "Traceback" not in err and code in (0, 2), err
    BUDGETS["trained" if code == 0 else "refused"] += 1
    if code == 0:
        (path,) = glob.glob("runs/*/results.json")
        assert json.loads(Path(path).read_text())["global_step"] == 2 * batch and "argmax success" in out
    else:
        assert not os.path.exists("runs")
        assert (err.startswith("error:") and err.count("\n") == 1) or "--help" in err + out  # ours, or tyro's own
    shutil.rmtree("runs", ignore_errors=True)


@pytest.mark.parametrize("count", [12, pytest.param(300, marks=slow)])
def test_any_combination_of_flags_trains_or_is_refused(count, capsys):
    @settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(COMBINATIONS)
    def run(drawn):
        script, flags, batch = arguments(drawn)
        capsys.readouterr()
        code = script.main(flags)
        check(code, *capsys.readouterr(), batch)

    BUDGETS.update(refused=0, trained=0)
    run()
    with capsys.disabled():
        print(BUDGETS)


@slow
def test_any_combination_of_flags_as_a_command():
    @settings(max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(COMBINATIONS)
    def run(drawn):
        script, flags, batch = arguments(drawn)
        done = subprocess.run(command(script, *flags), capture_output=True, text=True, timeout=120)
        check(done.returncode, done.stdout, done.stderr, batch)

    run()


# -------------------------------------------------------------------------------------------------------------- determinism
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(script, small):
    first, again, other = (script.train(small(seed=seed), run_dir=name)[0].state_dict()
                           for seed, name in ((1, "a"), (1, "b"), (2, "c")))  # fmt: skip
    assert same(first, again) and not same(first, other)


@slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
def test_a_compiled_run_equals_itself_also_when_resumed_and_the_eager_one_within_tolerance(script):
    flags = [*env_flags(script), *TINY, "--total-timesteps", "256", "--eval-every", "1", "--save-every", "1"]
    for name, more in (("eager", []), ("first", ["--compile"]), ("again", ["--compile"])):
        done = subprocess.run(command(script, *flags, *more, "--exp-name", name), capture_output=True, text=True, timeout=900)
        assert done.returncode == 0 and "goes on without" not in done.stderr, done.stderr
    eager, first, again = (glob.glob(f"runs/*__{name}__*")[0] for name in ("eager", "first", "again"))
    expected = saved(first)
    assert same(expected, saved(again))
    (Path(again) / "results.json").unlink()
    done = subprocess.run(command(script, "--resume", f"{again}/agent_128.pt"), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert same(expected, saved(again))
    a, b = (torch.load(f"{run}/agent.pt", weights_only=True)["agent"] for run in (eager, first))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


# --------------------------------------------------------------------------------------------------------------------- soak
@slow
def test_memory_and_open_files_do_not_grow(script):
    """Short; an hour is `python benchmark/soak.py`."""
    done = subprocess.run([sys.executable, ROOT / "benchmark" / "soak.py", "--minutes", "0.7", "--warm-up", "0.3", "--script",
                           os.path.basename(script.__file__)], capture_output=True, text=True, check=True)  # fmt: skip
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["rss_growth"] < 0.05 and figures["descriptors"][0] == figures["descriptors"][1]
    assert np.isfinite(figures["steps_per_second"]).all()
