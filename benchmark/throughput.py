"""How many steps a second does training take, and where does the time go?

    python benchmark/throughput.py                       # everything below but the comparison, nine minutes
    python benchmark/throughput.py --only split scaling  # some parts
    python benchmark/throughput.py --vs sb3              # beside sb3-contrib's RecurrentPPO (benchmark/requirements.txt)
    python benchmark/throughput.py --only work -- --compile --num-envs 512     # flags of ppo_lstm_minigrid.py, added

Parts:  work     training steps/s of one fixed piece of work (WORK below), several times
        split    the same work's time: environment, rest of the rollout, update
        floors   what its matrix products alone would take, and moving its tensors: the machine's floors beneath the split
        scaling  the same over num_envs (at most MOST_STEPS a rollout), seq_len, hidden_size, threads, one at a time
        vs       the same work in another library, alternating with ours, and the ratio of the medians
        vector   gymnasium's SyncVectorEnv and AsyncVectorEnv on a task that has no batched form

The results are printed, kept in benchmark/results/throughput.json (-o), each part with the machine that it ran on, and drawn
beside it. A part that is run again replaces its old results, the others stay.

Each measurement runs `train` itself in a process of its own and looks on from outside: steps and training seconds are
those that it logs as charts/SPS (start-up, evaluation and saving are not in them), counted from the end of a warm-up. The
split runs under a clock around `envs.step`, `backward` and the optimizer's step. A rollout lasts from its first to its last
`envs.step`; the update is what remains of the training seconds. On a GPU the clocks wait for it, in the split only.
"""

import argparse
import contextlib
import functools
import importlib.util
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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = {"env-id": "MiniGrid-MemoryS13-v0", "view-size": 3, "num-envs": 64, "num-steps": 128, "seq-len": 16, "update-epochs": 4,
        "num-minibatches": 4, "hidden-size": 64, "encoder-size": 0, "hidden-layer-size": 0}  # fmt: skip
SCALING = {  # flag: values
    "num-envs": (16, 64, 256, 1024, 4096, 16384),
    "seq-len": (8, 16, 32, 64, 128),
    "hidden-size": (16, 32, 64, 128, 256),
    "num-threads": (1, 2, 4, 8),
}
MOST_STEPS = 2**17  # of one rollout; above it num_steps shrinks, so that an iteration stays within seconds
PARTS = ("work", "split", "floors", "scaling", "vector")
VECTOR_ENV = "MiniGrid-ObstructedMaze-1Dl-v0"
VECTOR_KINDS = {"SyncVectorEnv": None, "AsyncVectorEnv, shared memory": True, "AsyncVectorEnv, pipes": False}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # told apart by colour-blind readers


# ----------------------------------------------------------------------------------------------------------------------
# One measurement, in a process of its own
# ----------------------------------------------------------------------------------------------------------------------
class Watch:
    """Notes the end of each iteration. The warm-up takes an iteration and `warmup` seconds at least, then the measurement
    an iteration and `seconds`."""

    def __init__(self, warmup: float, seconds: float, spawned: float):
        self.warmup, self.seconds, self.spawned = warmup, seconds, spawned
        self.marks, self.warm, self.first_step = [], None, None
        self.spans = {}  # name: (begin, end) of each call that was timed

    def stepped(self) -> None:
        """The first step of the training environments is about to be taken."""
        if self.first_step is None:
            self.first_step = time.time()

    def iteration(self, steps: int, seconds: float) -> bool:
        """`steps` and the training `seconds` they took, since the start; -> whether that is enough."""
        now = time.perf_counter()
        if not self.marks:
            self.began, self.first_iteration = now, time.time()
        self.marks.append((steps, seconds, now))
        if self.warm is None and now - self.began >= self.warmup:
            self.warm = len(self.marks) - 1
        return self.warm is not None and len(self.marks) > self.warm + 1 and now - self.marks[self.warm][2] >= self.seconds

    def timed(self, name: str, function, wait=lambda: None):
        """`function` with a clock around it."""
        spans = self.spans.setdefault(name, [])

        def call(*args, **kwargs):
            wait()
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            wait()
            spans.append((begin, time.perf_counter()))
            return result

        return call

    def result(self) -> dict:
        (steps, seconds, begin), (last_steps, last_seconds, end) = self.marks[self.warm], self.marks[-1]
        result = {"SPS": (last_steps - steps) / (last_seconds - seconds), "iterations": len(self.marks) - 1 - self.warm,
                  "first_step_seconds": self.first_step and self.first_step - self.spawned,
                  "first_iteration_seconds": self.first_iteration - self.spawned,
                  "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}  # fmt: skip
        if self.spans:
            spans = {name: [s for s in calls if begin <= s[0] <= end] for name, calls in self.spans.items()}
            result["split"] = split(spans, result["iterations"], last_steps - steps, last_seconds - seconds)
        return result


def split(spans: dict, iterations: int, steps: int, seconds: float) -> dict | None:
    """Microseconds per training step of each part of an iteration; None where the environment was not called step by step.

    The time before a rollout's first `envs.step` is not seen: the one forward pass in it is taken to last as long as each
    of those that follow.
    """
    calls = spans["environment"]
    T = len(calls) // iterations
    if T < 2 or len(calls) != T * iterations:
        return None
    total = {name: sum(end - begin for begin, end in calls) for name, calls in spans.items()}
    rollout = sum(calls[i + T - 1][1] - calls[i][1] for i in range(0, len(calls), T)) * T / (T - 1)
    parts = {"environment": total["environment"], "rest of the rollout": rollout - total["environment"]}
    update = seconds - rollout
    known = {name: total[name] for name in ("backward", "optimizer") if total.get(name)}
    parts |= {"update: forward and rest" if known else "update": update - sum(known.values())}
    parts |= {f"update: {name}": value for name, value in known.items()}
    return {name: 1e6 * value / steps for name, value in parts.items()}


def parse_flags(script, flags: list[str]):
    import tyro

    return tyro.cli(script.Args, args=[*flags, "--eval-every", "0", "--total-timesteps", str(10**12)])


def measure_ours(spec: dict) -> dict:
    """`ppo_lstm_minigrid.train`, stopped from outside."""
    sys.path.insert(0, str(ROOT))
    import torch
    from torch.utils.tensorboard import SummaryWriter

    import ppo_lstm_minigrid as script

    args = parse_flags(script, spec["flags"])
    watch, stop = Watch(spec["warmup"], spec["seconds"], spec["spawned"]), []
    cuda = args.cuda and torch.cuda.is_available()
    wait = torch.cuda.synchronize if cuda else lambda: None

    def add_scalar(writer, name, value, step):  # the run's own log tells what it has done
        if name == "charts/SPS" and watch.iteration(step, step / value):
            stop.append("enough")

    SummaryWriter.add_scalar = add_scalar
    make_envs = script.make_envs

    def make_watched_envs(*inputs):
        envs = make_envs(*inputs)
        step = watch.timed("environment", envs.step, wait) if spec["split"] else envs.step

        def first_step(actions):
            watch.stepped()
            envs.step = step
            return step(actions)

        envs.step = first_step
        return envs

    script.make_envs = make_watched_envs
    if spec["split"]:
        torch.autograd.backward = watch.timed("backward", torch.autograd.backward, wait)
        torch.autograd.grad = watch.timed("backward", torch.autograd.grad, wait)
        torch.optim.Adam.step = watch.timed("optimizer", torch.optim.Adam.step, wait)
    os.mkdir("run")
    with contextlib.redirect_stdout(sys.stderr):
        script.train(args, run_dir="run", stop=stop)
    result = {"device": torch.cuda.get_device_name() if cuda else "cpu", "threads": torch.get_num_threads(), **watch.result()}
    if cuda:
        result["gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return result


def measure_sb3(spec: dict) -> dict:
    """sb3-contrib's RecurrentPPO at the same work: one shared LSTM, linear heads, one-hot observations, three actions.

    It has no seq_len: its sequences are the episodes, as far as they lie within a rollout.
    """
    sys.path.insert(0, str(ROOT))
    import gymnasium as gym
    import numpy as np
    import torch
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import DummyVecEnv

    import envs as task_envs
    import ppo_lstm_minigrid as script

    class OneHot(gym.ObservationWrapper):
        """21 numbers a cell and 4 for the direction."""

        def __init__(self, env):
            super().__init__(env)
            kinds = np.array([11, 6, 4] * (env.observation_space.shape[0] // 3) + [4])
            self.offsets, self.size = kinds.cumsum() - kinds, int(kinds.sum())
            self.observation_space = gym.spaces.Box(0.0, 1.0, (self.size,), np.float32)
            self.action_space = gym.spaces.Discrete(3)

        def observation(self, obs):
            one_hot = np.zeros(self.size, np.float32)
            one_hot[self.offsets + obs] = 1.0
            return one_hot

    args = parse_flags(script, spec["flags"])
    torch.set_num_threads(args.num_threads)
    watch = Watch(spec["warmup"], spec["seconds"], spec["spawned"])

    class Iterations(BaseCallback):
        began, done, enough = None, 0, False

        def _on_rollout_start(self):
            self.began = self.began or time.perf_counter()
            if self.done:
                self.enough = watch.iteration(self.done * args.num_envs * args.num_steps, time.perf_counter() - self.began)
            self.done += 1

        def _on_step(self):
            return not self.enough

    vec_env = DummyVecEnv([lambda: OneHot(task_envs.make_single(args.env_id, args.view_size))] * args.num_envs)
    step = watch.timed("environment", vec_env.step)

    def first_step(actions):
        watch.stepped()
        vec_env.step = step
        return step(actions)

    vec_env.step = first_step
    model = RecurrentPPO(
        "MlpLstmPolicy", vec_env, learning_rate=args.learning_rate, n_steps=args.num_steps,
        batch_size=args.num_envs * args.num_steps // args.num_minibatches, n_epochs=args.update_epochs, gamma=args.gamma,
        gae_lambda=args.gae_lambda, clip_range=args.clip_coef, normalize_advantage=args.norm_adv, ent_coef=args.ent_coef,
        vf_coef=args.vf_coef, max_grad_norm=args.max_grad_norm, seed=args.seed,
        device="cuda" if args.cuda and torch.cuda.is_available() else "cpu",
        policy_kwargs={"net_arch": [], "lstm_hidden_size": args.hidden_size, "n_lstm_layers": 1, "shared_lstm": True,
                       "enable_critic_lstm": False})  # fmt: skip
    model.learn(10**12, Iterations())
    return {"device": str(model.device), "threads": torch.get_num_threads(), **watch.result()}


def measure_vector(spec: dict) -> dict:
    """Steps/s of a vector environment under random actions."""
    sys.path.insert(0, str(ROOT))
    import gymnasium as gym
    import numpy as np

    import envs as task_envs

    shared = VECTOR_KINDS[spec["kind"]]
    options = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
    begin = time.perf_counter()
    make_one = [functools.partial(task_envs.make_single, VECTOR_ENV, 7)] * spec["num_envs"]
    if shared is None:
        vec_env = gym.vector.SyncVectorEnv(make_one, **options)
    else:
        vec_env = gym.vector.AsyncVectorEnv(make_one, shared_memory=shared, **options)
    vec_env.reset(seed=1)
    made = time.perf_counter()
    actions = np.random.default_rng(1).integers(int(vec_env.single_action_space.n), size=(997, spec["num_envs"]))
    steps, start = 0, None
    while start is None or time.perf_counter() - start < spec["seconds"]:
        vec_env.step(actions[steps % len(actions)])
        steps += 1
        if start is None and time.perf_counter() - made >= spec["warmup"]:
            steps, start = 0, time.perf_counter()
    seconds = time.perf_counter() - start
    vec_env.close()
    return {"SPS": steps * spec["num_envs"] / seconds, "made_seconds": made - begin, "device": "cpu"}


def measure_floors(spec: dict) -> dict:
    """Microseconds per training step of the products of matrices in rollout and update, at their shapes, and of moving what
    the update's recurrence writes and reads, at the speed of a copy. (CPU, --encoder-size 0; distinct views are few.)"""
    sys.path.insert(0, str(ROOT))
    import torch

    import ppo_lstm_minigrid as script

    args = parse_flags(script, spec["flags"])
    torch.set_num_threads(args.num_threads)
    N, L, H, E = args.num_envs, args.seq_len, args.hidden_size, args.update_epochs
    M = N * args.num_steps // L // args.num_minibatches
    F = script.Encoder(script.make_envs(args, args.env_id, 1, "cpu").single_observation_space, 0).out_features

    def seconds(function, *inputs):
        times, end = [], time.perf_counter() + spec["seconds"] / 5
        while len(times) < 10 or time.perf_counter() < end:
            begin = time.perf_counter()
            function(*inputs)
            times.append(time.perf_counter() - begin)
        return statistics.median(times)

    def product(rows, inner, columns):
        return seconds(torch.mm, torch.rand(rows, inner), torch.rand(inner, columns))

    rollout = (product(N, F, 4 * H) + product(N, H, 4 * H)) / N
    update = (product(M, H, 4 * H) + product(M, 4 * H, H) + product(4 * H, L * M, H) / L) / M * E
    tensor = torch.rand(L * M, 4 * H)
    copied = seconds(tensor.clone) / (2 * tensor.numel())  # a number read and written
    # numbers a step and epoch: 4H projected, written and read; seven of H kept for the way back, twice; the gates' gradients,
    # written, stacked (read, written), read by two products; hidden states and their gradients
    moved = copied * E * H * (2 * 4 + 2 * 7 + 5 * 4 + 4)
    split = {"rollout: products": rollout, "update: products": update, "update: moving tensors": moved}
    return {"SPS": 1 / sum(split.values()), "split": {name: 1e6 * value for name, value in split.items()}, "device": "cpu"}


MEASURES = {"ours": measure_ours, "sb3": measure_sb3, "vector": measure_vector, "floors": measure_floors}


def worker(spec: dict) -> None:
    """Print the result of one measurement as the last line of stdout."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        result = MEASURES[spec["measure"]](spec)
        os.chdir("/")
    print("\n" + json.dumps(result), flush=True)


def measure(args, name: str, measure: str, flags: dict | None = None, limit: float | None = None, **spec) -> dict:
    """Run one measurement in a fresh process, print and return its row. It is ended after `limit` seconds."""
    flags = {**WORK, "num-threads": args.threads, **(flags or {})}
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))] + args.flags
    spec = {"measure": measure, "flags": words, "warmup": args.warmup, "seconds": args.seconds, "split": False, **spec}
    spec["spawned"] = time.time()
    threads = str(flags["num-threads"])
    process = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--worker", json.dumps(spec)], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                               env={**os.environ, "OMP_NUM_THREADS": threads})  # fmt: skip
    try:
        out, err = process.communicate(timeout=limit or args.limit)
        row = json.loads(out.splitlines()[-1]) if process.returncode == 0 else {"error": (err.strip() or "?").splitlines()[-1]}
    except subprocess.TimeoutExpired:
        row = {"error": f"not done after {limit or args.limit:g} s"}
    finally:
        with contextlib.suppress(ProcessLookupError):  # and whatever processes it has started
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    row = {"name": name, **{k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}}
    if row.get("split"):
        row["split"] = {part: float(f"{value:.4g}") for part, value in row["split"].items()}
    print(f"  {name:<34}" + (f"{row['SPS']:>12,.0f} steps/s" if "SPS" in row else f"  failed: {row['error']}"), flush=True)
    return row


# ----------------------------------------------------------------------------------------------------------------------
# Parts: each a generator of rows
# ----------------------------------------------------------------------------------------------------------------------
def part_work(args):
    for round_ in range(args.rounds):
        yield measure(args, f"round {round_ + 1}", "ours")


def part_split(args):
    yield measure(args, "under clocks", "ours", split=True)


def part_floors(args):
    yield measure(args, "products and copies alone", "floors")


def part_scaling(args):
    cores = len(os.sched_getaffinity(0))
    for flag, values in SCALING.items():
        values = [v for v in values if flag != "num-threads" or v <= (args.threads if args.quick else cores)]
        for value in values[:2] if args.quick else values:
            flags = {flag: value}
            if flag == "num-envs" and value * WORK["num-steps"] > MOST_STEPS:
                flags["num-steps"] = max(WORK["seq-len"], MOST_STEPS // value)
            name = ", ".join(f"{f.replace('-', '_')} {v}" for f, v in flags.items())
            yield {"flag": flag, "value": value, **measure(args, name, "ours", flags)}


def part_vs(args):
    for round_ in range(args.rounds):  # A B A B: what else the machine does in the meantime falls on both
        for side in ("ours", args.vs):
            yield {"side": side, **measure(args, f"{side}, round {round_ + 1}", side)}


def part_vector(args):
    for num_envs in (8,) if args.quick else (8, 32, 64):
        for kind in VECTOR_KINDS:
            yield {"kind": kind, "num_envs": num_envs,
                   **measure(args, f"{kind}, {num_envs}", "vector", kind=kind, num_envs=num_envs)}  # fmt: skip
    flags = {"env-id": VECTOR_ENV, "view-size": 7, "num-envs": 8 if args.quick else 64}
    yield {"kind": "train", "num_envs": flags["num-envs"], **measure(args, "train, under clocks", "ours", flags, split=True)}


def median(rows, **wanted) -> float | None:
    """The median steps/s of the rows that have these values."""
    values = [r["SPS"] for r in rows if "SPS" in r and all(r.get(k) == v for k, v in wanted.items())]
    return statistics.median(values) if values else None


def summary(part: str, record: dict) -> list[str]:
    """What a part's rows come to, in lines."""
    rows = [row for row in record["rows"] if "SPS" in row]
    lines = []
    if part in ("work", "vs"):
        for side in dict.fromkeys(row.get("side", "ours") for row in rows):
            own = [row for row in rows if row.get("side", "ours") == side]
            speeds = [row["SPS"] for row in own]
            lines.append(
                f"{side}: median {median(own):,.0f} steps/s ({min(speeds):,.0f} to {max(speeds):,.0f}, n = {len(own)}), "
                f"first step {statistics.median(row['first_step_seconds'] or 0 for row in own):.1f} s after process start, "
                f"first iteration done after {statistics.median(row['first_iteration_seconds'] for row in own):.1f} s, "
                f"peak memory {max(row['memory_mb'] for row in own):,.0f} MB")  # fmt: skip
    if part == "vs" and len({row["side"] for row in rows}) == 2:
        other = next(row["side"] for row in rows if row["side"] != "ours")
        ratio = median(rows, side="ours") / median(rows, side=other)
        pairs = [a["SPS"] / b["SPS"] for a, b in zip(record["rows"][::2], record["rows"][1::2], strict=False)
                 if "SPS" in a and "SPS" in b]  # fmt: skip
        lines.append(f"ratio of the medians: {ratio:.2f}; of each pair: " + ", ".join(f"{pair:.2f}" for pair in pairs))
    for row in rows[:2] if part == "vs" else rows:
        if row.get("split"):
            lines += [f"{row['name']}:"] if len(rows) > 1 else []
            total = sum(row["split"].values())
            lines += [f"{name:<26}{value:>8.1f} us/step {100 * value / total:>5.1f} %" for name, value in row["split"].items()]
        elif "split" in row:
            lines.append("no split: the environment is not called once a step")
    return lines


def machine() -> dict:
    """What the numbers depend on; no names."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), platform.machine())
    versions = {}
    for package in ("torch", "numpy", "gymnasium", "minigrid", "sb3-contrib", "stable-baselines3"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "memory_gb": round(memory, 1), "system": platform.system(),
            "python": platform.python_version(), **versions}  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# Picture
# ----------------------------------------------------------------------------------------------------------------------
def draw(record: dict, path: Path) -> None:
    """A panel for each part that has been measured, and for each flag of the scaling; no file where there is nothing."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    rows = {part: [row for row in record[part]["rows"] if "SPS" in row] for part in record}
    panels = [("scaling", flag) for flag in SCALING if any(row["flag"] == flag for row in rows.get("scaling", ()))]
    panels += [(part, None) for part in ("split", "vs", "vector") if rows.get(part)]
    if not panels and rows.get("work"):
        panels = [("work", None)]
    if not panels:
        return
    columns = min(4, len(panels))
    height = -(-len(panels) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(4 * columns, 3.1 * height), squeeze=False, layout="constrained")
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")

    def bars(ax, values: dict, unit: str, digits: int):
        drawn = ax.barh(list(values), list(values.values()), color=[COLOURS[i % len(COLOURS)] for i in range(len(values))])
        ax.bar_label(drawn, fmt=f"{{:,.{digits}f}}", padding=3, fontsize=8)
        ax.set(xlabel=unit, xlim=(0, 1.2 * max(values.values())))
        ax.invert_yaxis()

    for (part, flag), ax in zip(panels, axes.flat, strict=False):
        if part == "scaling":
            own = [row for row in rows[part] if row["flag"] == flag]
            ax.plot([row["value"] for row in own], [row["SPS"] for row in own], "o-", color=COLOURS[0])
            ax.set_xscale("log", base=2)
            ax.set_xticks([row["value"] for row in own], [f"{row['value']:,}" for row in own])
            ax.minorticks_off()
            ax.set(title=flag.replace("-", "_"), ylabel="training steps/s", ylim=(0, 1.1 * max(r["SPS"] for r in own)))
            ax.yaxis.set_major_formatter("{x:,.0f}")
        elif part == "split":
            bars(ax, next((row["split"] for row in rows[part] if row.get("split")), {"total": 1e6 / rows[part][0]["SPS"]}),
                 "microseconds per training step", 1)  # fmt: skip
            ax.set_title("where the time goes")
        elif part == "vector":
            kinds = list(dict.fromkeys(row["kind"] for row in rows[part] if row["kind"] != "train"))
            sizes = list(dict.fromkeys(row["num_envs"] for row in rows[part] if row["kind"] != "train"))
            for i, kind in enumerate(kinds):
                values = [median(rows[part], kind=kind, num_envs=size) or 0 for size in sizes]
                ax.bar([x + 0.27 * (i - 1) for x in range(len(sizes))], values, 0.25, label=kind, color=COLOURS[i])
            ax.set_xticks(range(len(sizes)), sizes)
            ax.set(title=VECTOR_ENV.removeprefix("MiniGrid-"), xlabel="environments", ylabel="steps/s")
            ax.set_ylim(0, 1.45 * ax.get_ylim()[1])  # room for the legend
            ax.legend(fontsize=8, loc="upper left")
            ax.yaxis.set_major_formatter("{x:,.0f}")
        else:
            sides = dict.fromkeys(row.get("side", "ours") for row in rows[part])
            bars(ax, {side: median([r for r in rows[part] if r.get("side", "ours") == side]) for side in sides},
                 "training steps/s", 0)  # fmt: skip
            ax.xaxis.set_major_formatter("{x:,.0f}")
            ax.xaxis.set_major_locator(MaxNLocator(4))
            ax.set_title("the same work")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="x" if part in ("split", "vs", "work") else "y", alpha=0.3)
        ax.set_axisbelow(True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


# ----------------------------------------------------------------------------------------------------------------------
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="run these parts (all)")
    parser.add_argument("--vs", choices=["sb3"], help="compare with this library; without --only nothing else runs")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions in `work` and `vs` (3)")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each measurement runs, after its warm-up (8)")
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds and at least one iteration before it (2)")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds after which a measurement is ended (240)")
    parser.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))), help="CPU threads (2)")
    parser.add_argument("--quick", action="store_true", help="a trial: a second each, two points each; not for reporting")
    parser.add_argument("--draw", action="store_true", help="measure nothing, print and draw what is there")
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmark" / "results" / "throughput.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.epilog = "What follows -- are further flags of ppo_lstm_minigrid.py."
    argv = sys.argv[1:] if argv is None else argv
    border = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:border])
    args.flags = argv[border + 1 :]
    if args.worker:
        worker(json.loads(args.worker))
        return 0
    if args.vs and importlib.util.find_spec("sb3_contrib") is None:
        parser.error("--vs sb3: sb3-contrib is not installed; see benchmark/requirements.txt")
    if args.quick:
        args.rounds, args.seconds, args.warmup = min(args.rounds, 2), min(args.seconds, 0.5), min(args.warmup, 0.1)

    parts = [*(args.only or (() if args.vs else PARTS)), *(["vs"] if args.vs else [])]
    record = json.loads(args.out.read_text()) if args.out.exists() else {}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    if load > 0.5 and not args.draw:
        print(f"warning: the machine is busy already (load {load:.1f}); the numbers will be too low", file=sys.stderr)
    for part in () if args.draw else parts:
        print(f"{part}:", flush=True)
        load = os.getloadavg()[0]
        rows = list(globals()[f"part_{part}"](args))
        flags = [word for flag, value in WORK.items() for word in (f"--{flag}", str(value))]
        record[part] = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "machine": machine(),
                        "load_before": round(load, 2), "flags": " ".join([*flags, *args.flags]),
                        "num_threads": args.threads, "quick": args.quick, "rows": rows}  # fmt: skip
        args.out.write_text(json.dumps(record, indent=1) + "\n")
        for line in summary(part, record[part]):
            print(f"  {line}")
    if args.draw:
        for part, kept in record.items():
            print(f"{part}, {kept['date']}, commit {kept['commit']}, {kept['machine']['cpu']}, {kept['num_threads']} threads:")
            for row in kept["rows"]:
                print(f"  {row['name']:<34}" + (f"{row['SPS']:>12,.0f} steps/s" if "SPS" in row else f"  {row['error']}"))
            for line in summary(part, kept):
                print(f"  {line}")
    draw(record, args.out.with_suffix(".png"))
    print(f"-> {args.out} and the picture beside it")
    return int(not args.draw and any("error" in row for part in parts for row in record[part]["rows"]))


def commit() -> str:
    done = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
