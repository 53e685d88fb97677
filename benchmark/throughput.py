"""How many steps a second does training take, where does the time go, and what do others need for the same work?

    python benchmark/throughput.py                                            # work and split, a minute
    python benchmark/throughput.py --only vs            # beside sb3-contrib (benchmark/requirements.txt), two minutes
    python benchmark/throughput.py --only work -- --compile --num-envs 512    # flags of ppo_lstm_minigrid.py, added

work: training steps/s of a fixed piece of work (WORK); split: where its time goes; vs: the same work in sb3-contrib's
RecurrentPPO, alternating with ours. With -o FILE each part also replaces its old results in that JSON file.

A measurement is a process of its own that runs `train` and looks on from outside: steps and training seconds are those
that it logs as charts/SPS (start-up, evaluation and saving are not in them), counted from the end of a warm-up; the log
itself is not written. The split puts a clock around `envs.step`, `backward` and the optimizer's step; the update begins
when `gae` has ended. On a GPU these clocks wait for it.
"""

import argparse
import collections
import contextlib
import importlib.metadata
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import tyro
from run import ROOT, commit, load_script, split_argv

WORK = ["--env-id", "MiniGrid-MemoryS13-v0", "--view-size", "3", "--num-envs", "64", "--num-steps", "128",
        "--seq-len", "16", "--update-epochs", "4", "--num-minibatches", "4", "--hidden-size", "64",
        "--encoder-size", "0", "--hidden-layer-size", "0"]  # fmt: skip


def call(module: str, function: str, limit: float, before: tuple = (sys.executable,), **inputs):
    """module.function(**inputs) in a process of its own, in an empty folder, for `limit` seconds at most -> what it
    returns, which is JSON, or {"error": why}. `before` starts Python."""
    code = f"import json, sys; sys.path.insert(0, {str(ROOT / 'benchmark')!r}); import {module} as module; "
    code += f"print('\\n' + json.dumps(module.{function}(**json.loads(sys.argv[1]))), flush=True)"
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen([*before, "-c", code, json.dumps(inputs)], cwd=folder, start_new_session=True,
                                   env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}, encoding="utf-8",
                                   errors="replace", stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {limit:.0f} s"}
        finally:
            with contextlib.suppress(ProcessLookupError):  # with all that it has started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        return {"error": err.strip().rpartition("\n")[2] or f"exit code {process.returncode}"}
    return json.loads(out.splitlines()[-1])


def parse_flags(flags: list[str]):
    """-> the script and its Args."""
    script = load_script(ROOT / "ppo_lstm_minigrid.py")
    return script, tyro.cli(script.Args, args=flags)


def log_to(function) -> None:
    """From now on what a script logs, (name, value, step), goes to `function` and nowhere else."""
    class SummaryWriter:
        def __init__(self, *args, **kwargs):
            pass

        def __getattr__(self, name):
            return function if name == "add_scalar" else lambda *args, **kwargs: None

    module = sys.modules["torch.utils.tensorboard"] = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter


def rate(marks: list[tuple], warmup: float, seconds: float) -> dict | None:
    """marks: (steps, training seconds, {part: its seconds}) since the start, at the end of each iteration. -> steps/s and
    microseconds a step of each part without the first iteration and the warm-up; None while there is too little."""
    begin = next((mark for mark in marks if mark[1] - marks[0][1] >= warmup), marks[-1])
    steps, took = marks[-1][0] - begin[0], marks[-1][1] - begin[1]
    if not steps or took < seconds:
        return None
    result = {"SPS": steps / took, "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    t = {part: value - begin[2][part] for part, value in marks[-1][2].items()}
    if t.get("backward"):
        parts = {"environment": t["environment"], "rest of the rollout": took - t["update"] - t["environment"],
                 "update: forward and rest": t["update"] - t["backward"] - t["optimizer"],
                 "update: backward": t["backward"], "update: optimizer": t["optimizer"]}  # fmt: skip
        result["split"] = {part: 1e6 * value / steps for part, value in parts.items()}
    return result


def measure_ours(flags: list[str], warmup: float, seconds: float, split: bool) -> dict:
    """`ppo_lstm_minigrid.train`, stopped from outside."""
    import torch

    script, args = parse_flags(flags)
    cuda = args.cuda and torch.cuda.is_available()
    wait = torch.cuda.synchronize if cuda and split else lambda: None
    clocks, marks, stop = collections.Counter(environment=0, backward=0, optimizer=0, update=0), [], []

    def timed(name, function):
        def call(*args, **kwargs):
            wait()
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            wait()
            clocks[name] += time.perf_counter() - begin
            return result

        return call if split else function

    def make_envs(*inputs, make=script.make_envs):
        envs = make(*inputs)
        envs.step = timed("environment", envs.step)
        return envs

    def gae(*inputs, gae=script.gae):
        result = gae(*inputs)
        wait()
        clocks["update"] -= time.perf_counter()
        return result

    def add_scalar(name, value, step):
        if name == "charts/SPS":
            clocks["update"] += time.perf_counter()
            marks.append((step, step / value, dict(clocks)))
            if rate(marks, warmup, seconds):
                stop.append(signal.SIGTERM)

    script.make_envs, script.gae = make_envs, gae
    torch.autograd.backward = timed("backward", torch.autograd.backward)
    torch.optim.Adam.step = timed("optimizer", torch.optim.Adam.step)
    log_to(add_scalar)
    os.mkdir("run")
    script.train(args, run_dir="run", stop=stop)
    result = {"device": torch.cuda.get_device_name() if cuda else "cpu", **rate(marks, warmup, seconds)}
    return result | ({"gpu_memory_mb": torch.cuda.max_memory_allocated() / 2**20} if cuda else {})


def sb3_model(args, num_envs: int, same_flags: bool):
    """sb3-contrib's RecurrentPPO on the script's task, one-hot observations and three actions; with the script's flags as
    far as it has them (one shared LSTM, linear heads; no seq_len, its sequences are the episodes), or its defaults.
    -> the model, and the function that encodes one observation."""
    import gymnasium as gym
    import numpy as np
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    envs = load_script(ROOT / "envs.py")
    kinds = np.array([11, 6, 4] * args.view_size**2 + [4])  # numbers of a cell, then of the direction
    offsets, size = kinds.cumsum() - kinds, int(kinds.sum())

    def one_hot(obs):
        encoded = np.zeros(size, np.float32)
        encoded[offsets + obs] = 1.0
        return encoded

    def make_env():
        env = gym.wrappers.TransformObservation(envs.make_single(args.env_id, args.view_size), one_hot,
                                                gym.spaces.Box(0.0, 1.0, (size,), np.float32))  # fmt: skip
        env.action_space = gym.spaces.Discrete(3)
        return env

    flags = {} if not same_flags else {
        "learning_rate": (lambda left: args.learning_rate * left) if args.anneal_lr else args.learning_rate,
        "n_steps": args.num_steps, "batch_size": num_envs * args.num_steps // args.num_minibatches,
        "n_epochs": args.update_epochs, "gamma": args.gamma, "gae_lambda": args.gae_lambda, "clip_range": args.clip_coef,
        "normalize_advantage": args.norm_adv, "ent_coef": args.ent_coef, "vf_coef": args.vf_coef,
        "max_grad_norm": args.max_grad_norm, "policy_kwargs": {
            "net_arch": [], "lstm_hidden_size": args.hidden_size, "shared_lstm": True, "enable_critic_lstm": False}}
    vec_env = DummyVecEnv([make_env] * num_envs)
    return RecurrentPPO("MlpLstmPolicy", vec_env, seed=args.seed, device="cpu", **flags), one_hot


def measure_sb3(flags: list[str], warmup: float, seconds: float, split: bool) -> dict:
    import torch
    from stable_baselines3.common.callbacks import BaseCallback

    _, args = parse_flags(flags)
    torch.set_num_threads(args.num_threads)
    marks, begin = [], time.perf_counter()

    class Iterations(BaseCallback):
        def _on_rollout_start(self):
            marks.append((self.num_timesteps, time.perf_counter() - begin, {}))

        def _on_step(self):
            return rate(marks, warmup, seconds) is None

    sb3_model(args, args.num_envs, True)[0].learn(10**12, Iterations())
    return {"device": "cpu", **rate(marks, warmup, seconds)}


def measure(name: str, flags: list[str], side: str = "ours", seconds: float = 8.0, limit: float = 240.0, split=False) -> dict:
    """One measurement, after a warm-up of a quarter of its time; prints and returns its row."""
    flags = ["--eval-every", "0", "--total-timesteps", str(10**12), *flags]
    row = call("throughput", f"measure_{side}", limit, flags=flags, warmup=seconds / 4, seconds=seconds, split=split)
    print(f"  {name:<45}" + (f"{row['SPS']:>12,.0f} steps/s" if "SPS" in row else f"  failed: {row['error']}"), flush=True)
    return {"name": name, "side": side, **row}


def machine() -> dict:
    """What the numbers depend on; no names."""
    found = {"cpu": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        found["cpu"] = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), found["cpu"])
    packages = {distribution.metadata["Name"]: distribution.version for distribution in importlib.metadata.distributions()}
    return found | {name: packages[name] for name in ("torch", "numpy", "gymnasium", "minigrid") if name in packages}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=["work", "split", "vs"], default=["work", "split"])
    parser.add_argument("--rounds", type=int, default=3, help="repetitions in `work` and `vs` (3)")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each measurement runs (8)")
    parser.add_argument("-o", "--out", type=Path, help="JSON file to put the results into")
    argv, further = split_argv(argv)
    args, failed = parser.parse_args(argv), False
    record = json.loads(args.out.read_text(encoding="utf-8")) if args.out and args.out.exists() else {}
    for part in args.only:
        load = os.getloadavg()[0]
        print(f"{part} (load {load:.1f}):", flush=True)
        sides = ["ours", "sb3"] if part == "vs" else ["ours"]  # A B A B: what else the machine does falls on both
        rows = [measure(side, WORK + further, side, args.seconds, 30 * args.seconds + 60, part == "split")
                for _ in range(1 if part == "split" else args.rounds) for side in sides]  # fmt: skip
        medians = {side: statistics.median([row["SPS"] for row in rows if row["side"] == side and "SPS" in row] or [0])
                   for side in sides}  # fmt: skip
        print("  medians: " + ", ".join(f"{side} {value:,.0f}" for side, value in medians.items()))
        if part == "vs" and medians["sb3"]:
            print(f"  ratio of the medians: {medians['ours'] / medians['sb3']:.2f}")
        for name, value in rows[0].get("split", {}).items():
            print(f"  {name:<26}{value:>8.1f} us/step {value * rows[0]['SPS'] / 1e4:>5.1f} %")
        failed |= any("error" in row for row in rows)
        record[part] = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "machine": machine(), "load_before": load,
                        "flags": " ".join(WORK + further), "rows": rows}  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
