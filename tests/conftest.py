"""`script` is the module under test, each in turn; `small` makes arguments of a run of a few iterations."""

import glob
import importlib
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
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # idle threads that spin are ten times slower on a busy machine
import gymnasium as gym
import torch

torch.set_num_threads(2)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would children

import probes

import ppo_lstm_cartpole_novel
import ppo_lstm_minigrid

ROOT = Path(__file__).parent.parent
SCRIPTS = {"minigrid": ppo_lstm_minigrid, "cartpole": ppo_lstm_cartpole_novel}
SMALL = {"num_envs": 4, "num_steps": 16, "seq_len": 8, "num_minibatches": 2, "update_epochs": 2, "hidden_size": 8,
         "total_timesteps": 256, "eval_every": 0, "eval_episodes": 4, "num_threads": 1, "ema_decay": 0.0}  # fmt: skip
probes.register()

slow = pytest.mark.slow
cartpole_slowly = pytest.mark.parametrize("script", ["minigrid", pytest.param("cartpole", marks=slow)], indirect=True)


def pytest_configure(config):
    """With --script the copy takes the place of the CartPole script."""
    if path := config.getoption("--script"):
        sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
        SCRIPTS["cartpole"] = importlib.import_module(Path(path).stem)


def pytest_addoption(parser):
    parser.addoption("--script", help="a copied script: run the tests of scripts on it (pytest tests --script=...)")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--script"):
        params = ((item, getattr(item, "callspec", None)) for item in items)
        items[:] = [item for item, spec in params if spec and spec.params.get("script") == "cartpole"]


@pytest.fixture(params=SCRIPTS)
def script(request):
    return SCRIPTS[request.param]


@pytest.fixture
def small(script):
    env_id = {"env_id": "MiniGrid-MemoryS7-v0"} if script is ppo_lstm_minigrid else {}
    return lambda **overrides: script.Args(**{**env_id, **SMALL, "cuda": False, **overrides})


@pytest.fixture
def exact(script, small):
    """For tests of what only batched environments can."""
    if not isinstance(gym.registry[small().env_id].vector_entry_point, type):
        pytest.skip("its environments cannot be saved")


def tiny(script, *flags):
    env_id = ["--env-id", "MiniGrid-MemoryS7-v0"] if script is ppo_lstm_minigrid else []
    return [*env_id, *(f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()), *map(str, flags)]


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    """Runs write to ./runs. Signal handlers and torch's settings are put back."""
    monkeypatch.chdir(tmp_path)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    list(map(signal.signal, numbers, handlers))
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(2)


def command(script, *flags):
    return [sys.executable, script.__file__, *map(str, flags)]


def started(command, path="runs/*/agent.pt", **kwargs):
    """The process of a command, once there is a file at `path`."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)
    while not glob.glob(path):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


def spy(monkeypatch, owner, name, after):
    """Call after(inputs, output) each time the function `name` of `owner` is called."""
    real = getattr(owner, name)
    def wrapper(*inputs, **kwargs):
        after(inputs, output := real(*inputs, **kwargs))
        return output
    monkeypatch.setattr(owner, name, wrapper)


def one(pattern):
    (path,) = glob.glob(pattern)
    return path


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def scalars(run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(run_dir))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def results_of(run_dir):
    return json.loads(Path(run_dir, "results.json").read_text())


def saved(run_dir):
    """All that a run leaves, times aside: checkpoints, events, results."""
    files = {path.name: torch.load(path, weights_only=True) for path in Path(run_dir).glob("*.pt")}
    for checkpoint in files.values():
        del checkpoint["train_seconds"], checkpoint["args"]
    # a run killed before its results evaluates again
    events = {tag: sorted(set(x)) if tag.startswith("eval") else x for tag, x in scalars(run_dir).items()}
    del events["charts/SPS"]
    return files, events, {name: results_of(run_dir)[name] for name in ("eval", "global_step", "seed", "env_id")}
