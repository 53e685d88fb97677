"""Both scripts, every test: `script` is the module under test, `args_of` makes small valid arguments for it."""

import os
import signal

import pytest

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # idle threads of two that spin are ten times slower on a busy machine
import torch

torch.set_num_threads(2)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would their children

import ppo_lstm_cartpole_novel
import ppo_lstm_minigrid

SCRIPTS = {"minigrid": ppo_lstm_minigrid, "cartpole": ppo_lstm_cartpole_novel}


# for tests of what is byte-identical in both scripts
once_is_enough = ["minigrid", pytest.param("cartpole", marks=pytest.mark.slow)]
cartpole_slowly = pytest.mark.parametrize("script", once_is_enough, indirect=True)


@pytest.fixture(params=SCRIPTS)
def script(request):
    return SCRIPTS[request.param]


@pytest.fixture
def small(script):
    """Arguments of a run of a few small iterations; keywords override."""

    def make(**overrides):
        small = {"num_envs": 4, "num_steps": 16, "seq_len": 8, "num_minibatches": 2, "update_epochs": 2, "hidden_size": 8,
                 "total_timesteps": 256, "eval_every": 0, "eval_episodes": 4, "num_threads": 1, "cuda": False}  # fmt: skip
        if script is ppo_lstm_minigrid:
            small["env_id"] = "MiniGrid-MemoryS7-v0"
        return script.Args(**{**small, **overrides})

    return make


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    """Runs write to ./runs: let that be a temporary folder. Torch's settings are global: put them back."""
    monkeypatch.chdir(tmp_path)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(2)


@pytest.fixture
def probe():
    """Registers the probe environments."""
    import probes

    probes.register()
