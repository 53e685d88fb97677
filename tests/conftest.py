"""Both scripts, every test: `script` is the module under test, `small` makes arguments of a run of a few iterations."""

import glob
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # idle threads of two that spin are ten times slower on a busy machine
import torch

torch.set_num_threads(2)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would their children

import ppo_lstm_cartpole_novel
import ppo_lstm_minigrid

ROOT = Path(__file__).parent.parent
SCRIPTS = {"minigrid": ppo_lstm_minigrid, "cartpole": ppo_lstm_cartpole_novel}
TINY = ["--num-envs", "4", "--num-steps", "16", "--seq-len", "8", "--num-minibatches", "2", "--update-epochs", "2",
        "--hidden-size", "8", "--num-threads", "1", "--eval-episodes", "4", "--eval-every", "0"]  # fmt: skip

# for tests of what is the same in both scripts
cartpole_slowly = pytest.mark.parametrize(
    "script", ["minigrid", pytest.param("cartpole", marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture(params=SCRIPTS)
def script(request):
    return SCRIPTS[request.param]


@pytest.fixture
def small(script):
    """Keywords override."""

    def make(**overrides):
        small = {"num_envs": 4, "num_steps": 16, "seq_len": 8, "num_minibatches": 2, "update_epochs": 2, "hidden_size": 8,
                 "total_timesteps": 256, "eval_every": 0, "eval_episodes": 4, "num_threads": 1, "cuda": False}  # fmt: skip
        if script is ppo_lstm_minigrid:
            small["env_id"] = "MiniGrid-MemoryS7-v0"
        return script.Args(**{**small, **overrides})

    return make


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    """Runs write to ./runs: let that be a temporary folder. Signal handlers and torch's settings are put back."""
    monkeypatch.chdir(tmp_path)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(2)


@pytest.fixture
def probe():
    """Registers the probe environments."""
    import probes

    probes.register()


def tiny(script, *flags):
    """Flags of a run of small iterations; later ones win."""
    env_id = ["--env-id", "MiniGrid-MemoryS7-v0"] if script is ppo_lstm_minigrid else []
    return [*env_id, *TINY, *map(str, flags)]


def command(script, *flags):
    return [sys.executable, "-u", str(ROOT / os.path.basename(script.__file__)), *map(str, flags)]


def wait_for(path, seconds=60):
    end = time.time() + seconds
    while not glob.glob(path):
        assert time.time() < end, f"no {path}"
        time.sleep(0.05)
    return glob.glob(path)[0]


def started(script, *flags, path="runs/*/agent.pt", **kwargs):
    """The process of a command that has written its first checkpoint."""
    kwargs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | kwargs
    process = subprocess.Popen(command(script, *flags), **kwargs)
    wait_for(path)
    return process


def spy(monkeypatch, owner, name, after):
    """Call after(inputs, output) each time the function `name` of `owner` is called."""
    real = getattr(owner, name)

    def wrapper(*inputs, **kwargs):
        output = real(*inputs, **kwargs)
        after(inputs, output)
        return output

    monkeypatch.setattr(owner, name, wrapper)


def one(pattern):
    """The one file that there is."""
    (path,) = glob.glob(pattern)
    return path


def scalars(run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def same(a, b):
    """Equal bit for bit, through dicts and lists."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def saved(run_dir):
    """All that a run leaves, times aside: checkpoints, events, results."""
    times = {"train_seconds", "args", "wandb_run_id"}
    files = {path.name: torch.load(path, weights_only=True) for path in Path(run_dir).glob("*.pt")}
    files = {name: {key: c[key] for key in c.keys() - times} for name, c in files.items()}
    events = {tag: points for tag, points in scalars(run_dir).items() if tag != "charts/SPS"}
    results = json.loads(Path(run_dir, "results.json").read_text())
    return files, events, {name: results[name] for name in ("eval", "global_step", "seed", "env_id")}
