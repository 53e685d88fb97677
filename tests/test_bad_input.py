"""Every bad input ends at once: one line that names the flag and the remedy, exit code 2, no traceback, no run folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import cartpole_slowly

import ppo_lstm_cartpole_novel
import ppo_lstm_minigrid

ROOT = Path(__file__).parent.parent
MINIGRID, CARTPOLE = [ppo_lstm_minigrid], [ppo_lstm_cartpole_novel]
BOTH = MINIGRID + CARTPOLE
TINY = ["--num-envs", "4", "--num-steps", "16", "--seq-len", "8", "--num-minibatches", "2", "--total-timesteps", "64",
        "--hidden-size", "8", "--num-threads", "1", "--eval-episodes", "2"]  # fmt: skip

BAD = [
    (BOTH, "--num-steps 100 --seq-len 16", "--seq-len"),
    (BOTH, "--num-envs 1 --num-steps 16 --seq-len 16 --num-minibatches 4 --total-timesteps 10000", "--num-minibatches"),
    (BOTH, "--num-envs 3 --num-steps 16 --seq-len 8 --num-minibatches 4 --total-timesteps 10000", "--num-minibatches"),
    (BOTH, "--num-envs 0", "--num-envs"),
    (BOTH, "--num-envs -4", "--num-envs"),
    (BOTH, "--num-steps 0", "--num-steps"),
    (BOTH, "--seq-len 0", "--seq-len"),
    (BOTH, "--num-minibatches 0", "--num-minibatches"),
    (BOTH, "--update-epochs 0", "--update-epochs"),
    (BOTH, "--num-threads 0", "--num-threads"),
    (BOTH, "--total-timesteps 10", "--total-timesteps"),
    (BOTH, "--total-steps 10", "--total-timesteps"),
    (BOTH, "--env-id NoSuchEnv-v0", "--env-id"),
    (MINIGRID, "--env-id MiniGrid-MemoryS14-v0", "MiniGrid-MemoryS1"),
    (MINIGRID, "--env-id MiniGrid-CustomMaze-S4-v0", "--env-id"),
    (MINIGRID, "--env-id MiniGrid-CustomMazeRandom-S5-v0", "--env-id"),
    (MINIGRID, "--env-id CartPole-v1", "--env-id"),
    (MINIGRID, "--env-id BabyAI-GoToObj-v0", "mission"),
    (MINIGRID, "--env-id MiniGrid-GoToDoor-5x5-v0", "mission"),
    (MINIGRID, "--env-id MiniGrid-Fetch-5x5-N2-v0", "mission"),
    (MINIGRID, "--eval-env-id MiniGrid-GoToDoor-5x5-v0", "--eval-env-id"),
    (MINIGRID, "--eval-env-id NoSuchEnv-v0", "--eval-env-id"),
    (MINIGRID, "--eval-env-id MiniGrid-ObstructedMaze-1Dl-v0", "--eval-env-id"),
    (CARTPOLE, "--env-id Pendulum-v1", "discrete"),
    (CARTPOLE, "--env-id MiniGrid-MemoryS7-v0", "ppo_lstm_minigrid.py"),
    (CARTPOLE, "--env-id FrozenLake-v1", "--env-id"),
    (CARTPOLE, "--eval-env-id Acrobot-v1", "--eval-env-id"),
    (MINIGRID, "--view-size 4", "--view-size"),
    (MINIGRID, "--view-size 1", "--view-size"),
    (MINIGRID, "--view-size -3", "--view-size"),
    (BOTH, "--learning-rate -1", "--learning-rate"),
    (BOTH, "--learning-rate nan", "--learning-rate"),
    (BOTH, "--learning-rate inf", "--learning-rate"),
    (BOTH, "--gamma 1.5", "--gamma"),
    (BOTH, "--gamma nan", "--gamma"),
    (BOTH, "--gae-lambda -0.1", "--gae-lambda"),
    (BOTH, "--rand-move-eps 2", "--rand-move-eps"),
    (BOTH, "--clip-coef 0", "--clip-coef"),
    (BOTH, "--max-grad-norm 0", "--max-grad-norm"),
    (BOTH, "--reward-scale 0", "--reward-scale"),
    (BOTH, "--ent-coef nan", "--ent-coef"),
    (BOTH, "--vf-coef -1", "--vf-coef"),
    (BOTH, "--target-kl 0", "--target-kl"),
    (BOTH, "--hidden-size 0", "--hidden-size"),
    (BOTH, "--hidden-layer-size -1", "--hidden-layer-size"),
    (BOTH, "--encoder-size -1", "--encoder-size"),
    (BOTH, "--seed -1", "--seed"),
    (BOTH, "--seed 99999999999", "--seed"),
    (BOTH, "--eval-episodes 0", "--eval-episodes"),
    (BOTH, "--eval-every -1", "--eval-every"),
    (BOTH, "--save-every -1", "--save-every"),
    (BOTH, "--exp-name a/b", "--exp-name"),
    (BOTH, "--eval-only", "--eval-only"),
    (BOTH, "--cudagraphs", "--cudagraphs"),
    (BOTH, "--num-envs 2 --num-steps 16 --seq-len 1 --num-minibatches 32 --total-timesteps 1000", "--norm-adv"),
    (BOTH, "--no-such-flag 1", "--no-such-flag"),
    (BOTH, "--num-envs four", "--num-envs"),
    (BOTH, "--resume nowhere.pt", "nowhere.pt"),
    (BOTH, "--resume .", "--resume"),
]
CASES = [(script, flags, says) for scripts, flags, says in BAD for script in scripts]


def refused(script, flags, capsys, says):
    capsys.readouterr()
    assert script.main(flags) == 2
    captured = capsys.readouterr()
    assert says in captured.err + captured.out
    assert "Traceback" not in captured.err
    if captured.err.startswith("error:"):
        assert captured.err.count("\n") == 1


@pytest.mark.parametrize(("script", "flags", "says"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_flag(script, flags, says, capsys):
    refused(script, flags.split(), capsys, says)
    assert not os.path.exists("runs")


@pytest.fixture
def checkpoint(script, small):
    script.train(small(total_timesteps=64, anneal_lr=False), run_dir="made")
    return torch.load("made/agent.pt", weights_only=True)


BROKEN = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "text": lambda data: b"hello, I am not a checkpoint\n",
    "flipped bit": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
}


@cartpole_slowly
@pytest.mark.parametrize("kind", BROKEN)
def test_rotten_file(script, checkpoint, capsys, kind):
    data = Path("made/agent.pt").read_bytes()
    Path("bad.pt").write_bytes(BROKEN[kind](data))
    refused(script, ["--resume", "bad.pt"], capsys, "bad.pt")


@cartpole_slowly
@pytest.mark.parametrize(("change", "says"), [
    (lambda c: c.update(format=99), "newer"),
    (lambda c: c.update(script="another.py"), "another.py"),
    (lambda c: c.pop("agent"), "not a checkpoint"),
    (lambda c: c["args"].update(hidden_size=9), "shapes"),
    (lambda c: c["args"].update(no_such_argument=1), "--resume"),
    (lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)), "shapes"),
    (lambda c: c["args"].update(num_envs=8), "shapes"),
], ids=range(7))  # fmt: skip
def test_foreign_checkpoint(script, checkpoint, capsys, change, says):
    checkpoint["args"]["total_timesteps"] = 10_000
    change(checkpoint)
    torch.save(checkpoint, "bad.pt")
    refused(script, ["--resume", "bad.pt"], capsys, says)
    assert not os.path.exists("runs")


def test_foreign_pickle_does_not_run(script, capsys):
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, ("evil",)

    Path("bad.pt").write_bytes(pickle.dumps(Evil()))
    refused(script, ["--resume", "bad.pt"], capsys, "bad.pt")
    torch.save({"format": 1, "script": "x", "args": Evil(), "agent": {}}, "bad.pt")
    refused(script, ["--resume", "bad.pt"], capsys, "bad.pt")
    assert not os.path.exists("evil")


def test_conflicting_flag_and_finished_run(script, checkpoint, capsys):
    resume = ["--resume", "made/agent.pt"]
    refused(script, resume, capsys, "--total-timesteps")
    refused(script, [*resume, "--total-timesteps", "1000", "--gamma", "0.5"], capsys, "--gamma")
    other = "MiniGrid-MemoryS9-v0" if script is ppo_lstm_minigrid else "CartPoleNoVel-v1"
    refused(script, [*resume, "--total-timesteps", "1000", "--env-id", other], capsys, "--env-id")
    assert not os.path.exists("runs")


def test_unwritable_directory(script, capsys):
    Path("runs").write_text("a file where the folder should be")
    flags = [*TINY, *(["--env-id", "MiniGrid-MemoryS7-v0"] if script is ppo_lstm_minigrid else [])]
    refused(script, flags, capsys, "runs")


@cartpole_slowly
def test_a_real_command(script):
    command = [sys.executable, ROOT / os.path.basename(script.__file__), "--learning-rate", "nan"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "--learning-rate" in done.stderr
    assert not os.path.exists("runs")


@pytest.mark.slow
def test_track_without_a_key_goes_on(tmp_path):
    """No account and no network: one line says how to log offline, and the run ends well."""
    script = ppo_lstm_minigrid
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {"HOME": str(tmp_path)}
    flags = [*TINY, "--track", "--env-id", "MiniGrid-MemoryS7-v0"]
    command = [sys.executable, ROOT / os.path.basename(script.__file__), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "WANDB_MODE=offline" in done.stderr and "Traceback" not in done.stderr
