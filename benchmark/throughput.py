"""How many steps a second does training take, where does the time go, and what do others need for the same work?

    python benchmark/throughput.py                        # work and split, a minute
    python benchmark/throughput.py --only vs              # beside sb3-contrib (benchmark/requirements.txt)
    python benchmark/throughput.py --only work -- --compile --num-envs 512    # flags of ppo_lstm_minigrid.py, added

work: training steps/s of a fixed piece of work (WORK); split: where its time goes; vs: the same in sb3-contrib's
RecurrentPPO, alternating with ours. With -o FILE each part replaces its old results in that JSON file. What counts is
charts/SPS (no start-up, evaluation or saving), after a warm-up, in a process of its own. The split puts a clock around
`envs.step`, `backward` and the optimizer's step. On a GPU these clocks wait.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import MagicMock

import tyro
from run import ROOT, commit, load_script, split_argv

WORK = ["--env-id", "MiniGrid-MemoryS13-v0", "--view-size", "3", "--num-envs", "64", "--num-steps", "128",
        "--seq-len", "16", "--update-epochs", "4", "--num-minibatches", "4", "--hidden-size", "64",
        "--encoder-size", "0", "--hidden-layer-size", "0", "--desired-kl", "0"]  # fmt: skip


def call(module: str, function: str, limit: float, before: tuple = (sys.executable,), **inputs):
    """module.function(**inputs) in a process of its own, in an empty folder, for `limit` seconds at most -> what it
    returns, which is JSON, or {"error": why}. `before` starts Python."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is started here ends as well
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
    script = load_script(ROOT / "ppo_lstm_minigrid.py")
    return script, tyro.cli(script.Args, args=flags)


def log_to(function) -> None:
    """From now on what a script logs, (name, value, step), goes to `function` and nowhere else."""
    sys.modules["torch.utils.tensorboard"] = MagicMock()
    sys.modules["torch.utils.tensorboard"].SummaryWriter.return_value.add_scalar = function


def wrap_steps(script, wrapper) -> None:
    """Replace `step` of the environments that the script makes by wrapper(step)."""
    def make_envs(*inputs, make=script.make_envs):
        envs = make(*inputs)
        envs.step = wrapper(envs.step)
        return envs

    script.make_envs = make_envs


def rate(marks: list[tuple], seconds: float) -> dict | None:
    """marks: (steps, training seconds, {part: its seconds}) since the start, at the end of each iteration -> steps/s,
    microseconds a step of each part, after an iteration and a quarter of `seconds`; None while it is too little."""
    steps, took, parts = next((mark for mark in marks if mark[1] - marks[0][1] >= seconds / 4), marks[-1])
    steps, took = marks[-1][0] - steps, marks[-1][1] - took
    if not steps or took < seconds:
        return None
    t = {name: 1e6 * (value - parts[name]) / steps for name, value in marks[-1][2].items()}
    return {"SPS": steps / took, "split": {**t, "rest": 1e6 * took / steps - sum(t.values())}}


def measure_ours(flags: list[str], seconds: float, split: bool) -> dict:
    """`ppo_lstm_minigrid.train`, stopped from outside."""
    import torch

    script, args = parse_flags(flags)
    wait = torch.cuda.synchronize if split and args.cuda and torch.cuda.is_available() else lambda: None
    clocks, marks, stop = dict.fromkeys(("environment", "backward", "optimizer"), 0.0), [], []

    def timed(name, function):
        def call(*args, **kwargs):
            wait()
            clocks[name] -= time.perf_counter()
            result = function(*args, **kwargs)
            wait()
            clocks[name] += time.perf_counter()
            return result

        return call if split else function

    def add_scalar(name, value, step):
        if name == "charts/SPS":
            marks.append((step, step / value, dict(clocks)))
            if rate(marks, seconds):
                stop.append(signal.SIGTERM)

    wrap_steps(script, lambda step: timed("environment", step))
    torch.autograd.backward = timed("backward", torch.autograd.backward)
    torch.optim.Adam.step = timed("optimizer", torch.optim.Adam.step)
    log_to(add_scalar)
    script.train(args, run_dir="run", stop=stop)
    return rate(marks, seconds)


def train_sb3(args, num_envs: int, same_flags: bool, enough) -> None:
    """sb3-contrib's RecurrentPPO on the script's task, one-hot observations and three actions, with the script's flags
    as far as it has them (its sequences are the episodes) or its defaults, until enough(steps, model, encoder)."""
    import gymnasium as gym
    import numpy as np
    import torch
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import DummyVecEnv

    envs = load_script(ROOT / "envs.py")
    kinds = np.array([11, 6, 4] * args.view_size**2 + [4])  # numbers of a cell, then of the direction
    offsets, size = kinds.cumsum() - kinds, int(kinds.sum())
    scale = np.array(([1.0] * 4 + [6.0] * 7 + [1.0] * 10) * args.view_size**2 + [1.0] * 4) if same_flags else 1.0

    def one_hot(obs):
        return (np.bincount(offsets + obs, minlength=size) * scale).astype(np.float32)

    def make_env():
        env = gym.wrappers.TransformObservation(envs.make_single(args.env_id, args.view_size), one_hot,
                                                gym.spaces.Box(0.0, 6.0, (size,), np.float32))  # fmt: skip
        env.action_space = gym.spaces.Discrete(3)
        return env

    class Rollouts(BaseCallback):
        def _on_rollout_start(self):
            self.over = enough(self.num_timesteps, self.model, one_hot)

        def _on_step(self):
            return not self.over

    torch.set_num_threads(args.num_threads)
    flags = {} if not same_flags else {
        "learning_rate": (lambda left: args.learning_rate * left) if args.anneal_lr else args.learning_rate,
        "n_steps": args.num_steps, "batch_size": num_envs * args.num_steps // args.num_minibatches,
        "n_epochs": args.update_epochs, "gamma": args.gamma, "gae_lambda": args.gae_lambda,
        "clip_range": args.clip_coef, "normalize_advantage": args.norm_adv, "ent_coef": args.ent_coef,
        "vf_coef": args.vf_coef / 2, "max_grad_norm": args.max_grad_norm,  # its loss is not halved
        "target_kl": args.desired_kl / 0.75 or None, "policy_kwargs": {  # it stops at 1.5 times this, ours at twice
            "net_arch": [args.hidden_layer_size] * bool(args.hidden_layer_size), "activation_fn": torch.nn.ReLU,
            "optimizer_kwargs": {"betas": args.adam_betas}, "lstm_hidden_size": args.hidden_size,
            "shared_lstm": True, "enable_critic_lstm": False}}  # then the critic does not train the LSTM
    model = RecurrentPPO("MlpLstmPolicy", DummyVecEnv([make_env] * num_envs), seed=args.seed, device="cpu", **flags)
    model.learn(args.total_timesteps if same_flags else 10**12, Rollouts())


def measure_sb3(flags: list[str], seconds: float, split: bool) -> dict:
    args, marks, begin = parse_flags(flags)[1], [], time.perf_counter()

    def enough(steps, *_):
        marks.append((steps, time.perf_counter() - begin, {}))
        return rate(marks, seconds)

    train_sb3(args, args.num_envs, True, enough)
    return rate(marks, seconds)


def measure(name: str, flags: list[str], side="ours", seconds=8.0, limit=240.0, split=False) -> dict:
    flags = ["--eval-every", "0", "--total-timesteps", str(10**12), *flags]
    row = call("throughput", f"measure_{side}", limit, flags=flags, seconds=seconds, split=split)
    print(f"  {name:<45}", f"{row['SPS']:>10,.0f} steps/s" if "SPS" in row else row["error"], flush=True)
    return {"name": name, "side": side, **row}


def machine() -> dict:
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    cpu = (re.findall("model name.*: (.*)", cpuinfo) or [platform.machine()])[0]
    packages = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "gymnasium", "minigrid")}
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), **packages}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=["work", "split", "vs"], default=["work", "split"])
    parser.add_argument("--rounds", type=int, default=3, help="repetitions in `work` and `vs` (3)")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each measurement runs (8)")
    parser.add_argument("-o", "--out", type=Path, help="JSON file to put the results into")
    argv, further = split_argv(argv)
    args = parser.parse_args(argv)
    record = json.loads(args.out.read_text(encoding="utf-8")) if args.out and args.out.exists() else {}
    for part in args.only:
        print(f"{part} (load {os.getloadavg()[0]:.1f}):", flush=True)
        sides = ["ours", "sb3"] if part == "vs" else ["ours"]  # A B A B: what else the machine does falls on both
        rows = [measure(side, WORK + further, side, args.seconds, 30 * args.seconds + 60, part == "split")
                for _ in range(1 if part == "split" else args.rounds) for side in sides]  # fmt: skip
        medians = [statistics.median(row.get("SPS", 0) for row in rows if row["side"] == side) for side in sides]
        print("  medians: " + ", ".join(f"{side} {value:,.0f}" for side, value in zip(sides, medians, strict=True)))
        if part == "vs" and all(medians):
            print(f"  ratio of the medians: {medians[0] / medians[1]:.2f}")
        for name, value in rows[0].get("split", {}).items() if part == "split" else ():
            print(f"  {name:<12}{value:>8.1f} us/step {value * rows[0]['SPS'] / 1e4:>5.1f} %")
        record[part] = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "machine": machine(),
                        "flags": " ".join(WORK + further), "rows": rows}  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(any("error" in row for part in args.only for row in record[part]["rows"]))


if __name__ == "__main__":
    sys.exit(main())
