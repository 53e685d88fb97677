"""Every bad input ends at once: one line that names the flag and the rule, exit code 2, no traceback, nothing written."""

import glob
import json
import os
import pickle
import random
import sys
from pathlib import Path

import pytest
import torch
from conftest import cartpole_slowly, one, same, tiny

import ppo_lstm_cartpole_novel
import ppo_lstm_minigrid

MINIGRID, CARTPOLE = [ppo_lstm_minigrid], [ppo_lstm_cartpole_novel]
BOTH = MINIGRID + CARTPOLE

BAD = [  # scripts, flags, what the message says
    (BOTH, "--num-envs 0", "--num-envs"),
    (BOTH, "--num-steps 0", "--num-steps"),
    (BOTH, "--seq-len 0", "--seq-len"),
    (BOTH, "--num-steps 100 --seq-len 16", "--seq-len"),
    (BOTH, "--num-minibatches 0", "--num-minibatches"),
    (BOTH, "--num-envs 3 --num-steps 16 --seq-len 8 --num-minibatches 4 --total-timesteps 10000", "--num-minibatches"),
    (BOTH, "--num-envs 1 --num-steps 16 --seq-len 16 --num-minibatches 4 --total-timesteps 10000", "--num-minibatches"),
    (BOTH, "--update-epochs -1", "--update-epochs"),
    (BOTH, "--num-threads 0", "--num-threads"),
    (BOTH, "--total-steps 10", "--total-timesteps"),
    (BOTH, "--learning-rate -1", "--learning-rate"),
    (BOTH, "--learning-rate nan", "--learning-rate"),
    (BOTH, "--reward-scale inf", "--reward-scale"),
    (BOTH, "--gamma 1.5", "--gamma"),
    (BOTH, "--gae-lambda nan", "--gae-lambda"),
    (BOTH, "--rand-move-eps -0.1", "--rand-move-eps"),
    (BOTH, "--clip-coef 0", "--clip-coef"),
    (BOTH, "--max-grad-norm 0", "--max-grad-norm"),
    (BOTH, "--ent-coef nan", "--ent-coef"),
    (BOTH, "--vf-coef -1", "--vf-coef"),
    (BOTH, "--target-kl 0", "--target-kl"),
    (BOTH, "--hidden-size 0", "--hidden-size"),
    (BOTH, "--hidden-layer-size -1", "--hidden-layer-size"),
    (BOTH, "--encoder-size -1", "--encoder-size"),
    (BOTH, "--seed -1", "--seed"),
    (BOTH, "--seed 2147483648", "--seed"),
    (BOTH, "--eval-episodes 0", "--eval-episodes"),
    (BOTH, "--eval-every -1", "--eval-every"),
    (BOTH, "--save-every -1", "--save-every"),
    (BOTH, "--exp-name a/b", "--exp-name"),
    (BOTH, "--eval-only", "--eval-only"),
    (BOTH, "--cudagraphs", "--cudagraphs"),
    (BOTH, "--num-envs four", "--num-envs"),
    (BOTH, "--env-id NoSuchEnv-v0", "--env-id"),
    (BOTH, "--eval-env-id NoSuchEnv-v0", "--eval-env-id"),
    (BOTH, "--resume nowhere.pt", "nowhere.pt"),
    (BOTH, "--resume .", "--resume"),
    (MINIGRID, "--env-id MiniGrid-MemoryS14-v0", "MiniGrid-MemoryS1"),
    (MINIGRID, "--env-id MiniGrid-CustomMaze-S4-v0", "--env-id"),
    (MINIGRID, "--env-id CartPole-v1", "--env-id"),
    (MINIGRID, "--env-id MiniGrid-GoToDoor-5x5-v0", "mission"),
    (MINIGRID, "--env-id MiniGrid-WFC-MazeSimple-v0", "--env-id"),
    (MINIGRID, "--eval-env-id MiniGrid-Fetch-5x5-N2-v0", "--eval-env-id"),
    (MINIGRID, "--eval-env-id MiniGrid-ObstructedMaze-1Dl-v0", "--eval-env-id"),
    (MINIGRID, "--view-size 4", "--view-size"),
    (MINIGRID, "--view-size 1", "--view-size"),
    (CARTPOLE, "--env-id Pendulum-v1", "discrete"),
    (CARTPOLE, "--env-id FrozenLake-v1", "--env-id"),
    (CARTPOLE, "--env-id MiniGrid-MemoryS7-v0", "--env-id"),
    (CARTPOLE, "--eval-env-id Acrobot-v1", "--eval-env-id"),
    (CARTPOLE, "--env-id ProbeNoRender-v0 --capture-video", "--env-id"),
]
CASES = [(script, flags, says) for scripts, flags, says in BAD for script in scripts]


def refused(script, flags, capsys, *says):
    capsys.readouterr()
    before = sorted(Path().rglob("*"))
    try:
        assert script.main(flags) == 2
    except SystemExit as end:  # what tyro refuses, it reports itself
        assert end.code == 2
    captured = capsys.readouterr()
    assert all(word in captured.err for word in says) and "Traceback" not in captured.err and not captured.out
    assert captured.err.count("\n") == 1 or not captured.err.startswith("error:")
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(("script", "flags", "says"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_flag(script, flags, says, capsys, probe):
    refused(script, flags.split(), capsys, says)


def test_missions_that_vary_can_be_ignored():
    script = ppo_lstm_minigrid
    flags = tiny(script, "--env-id", "MiniGrid-GoToDoor-5x5-v0", "--ignore-mission", "--total-timesteps", 64)
    assert script.main(flags) == 0


def test_a_video_writer_that_is_missing(script, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "moviepy.video.io.ffmpeg_writer", None)
    refused(script, tiny(script, "--total-timesteps", 64, "--capture-video"), capsys, "moviepy")


def test_an_unwritable_folder(script, capsys):
    Path("runs").write_text("a file where the folder should be")
    refused(script, tiny(script, "--total-timesteps", 64), capsys, "runs")


@pytest.fixture
def made(script, small):
    """A run that can be resumed: its checkpoint."""
    script.train(small(total_timesteps=64, anneal_lr=False), run_dir="made")
    return torch.load("made/agent.pt", weights_only=True)


RESUME = ["--resume", "bad.pt", "--total-timesteps", "640"]


@cartpole_slowly
@pytest.mark.parametrize("content", [
    lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"hello, I am not a checkpoint\n",
    lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
], ids=("empty", "truncated", "text", "a flipped bit"))  # fmt: skip
def test_a_damaged_file(script, made, capsys, content):
    data = Path("made/agent.pt").read_bytes()
    Path("bad.pt").write_bytes(content(data))
    refused(script, RESUME, capsys, "bad.pt")
    with pytest.raises(ValueError, match=r"bad\.pt"):
        script.load_agent("bad.pt")


def test_no_flipped_byte_loads_silently_wrong(script, made):
    """Refused, or in the few places that hold no content, loaded unchanged."""
    data, draw, damaged = Path("made/agent.pt").read_bytes(), random.Random(0), 0
    whole = script.load_checkpoint("made/agent.pt")
    for _ in range(150):
        place = draw.randrange(len(data))
        Path("bad.pt").write_bytes(data[:place] + bytes([data[place] ^ draw.randrange(1, 256)]) + data[place + 1 :])
        try:
            assert same(script.load_checkpoint("bad.pt"), whole), f"byte {place} changes what is loaded"
        except ValueError as error:
            assert "bad.pt" in str(error) and "\n" not in str(error)
            damaged += 1
    assert damaged > 75


@cartpole_slowly
@pytest.mark.parametrize("change", [
    lambda c: c.update(script="another.py"), lambda c: c.update(args=[]), lambda c: c.pop("agent"),
    lambda c: c.update(agent={}), lambda c: c["args"].update(hidden_size=9), lambda c: c["args"].update(num_envs=8),
    lambda c: c.pop("optimizer"), lambda c: c["optimizer"]["state"].pop(0),
    lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
    lambda c: c.pop("ranks"), lambda c: c["ranks"][0].pop("rng"),
    lambda c: c["ranks"][0]["envs"].update(dict.fromkeys(c["ranks"][0]["envs"], torch.zeros(1))),
], ids=range(12))  # fmt: skip
def test_a_foreign_checkpoint_or_one_that_lacks_a_part(script, made, capsys, change):
    change(made)
    torch.save(made, "bad.pt")
    refused(script, RESUME, capsys, "--")
    if "agent" not in made or not made["agent"] or made["args"] == [] or made["args"]["hidden_size"] == 9:
        refused(script, ["--resume", "bad.pt", "--eval-only"], capsys, "--")


def test_nothing_in_a_file_is_executed(script, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, ("evil",)

    Path("bad.pt").write_bytes(pickle.dumps(Evil()))
    refused(script, RESUME, capsys, "bad.pt")
    torch.save({"script": os.path.basename(script.__file__), "args": Evil(), "agent": {}}, "bad.pt")
    refused(script, RESUME, capsys, "bad.pt")
    assert not os.path.exists("evil")


def test_a_checkpoint_of_the_other_script_a_conflicting_flag_and_a_budget_that_cannot_change(script, capsys):
    assert script.main(tiny(script, "--total-timesteps", 64)) == 0
    resume = ["--resume", one("runs/*/agent.pt")]
    (other,) = set(BOTH) - {script}
    refused(other, resume, capsys, "--resume")
    refused(script, [*resume, "--gamma", "0.5"], capsys, "--gamma")
    refused(script, [*resume, "--env-id", "MiniGrid-MemoryS9-v0"], capsys, "--env-id")
    refused(script, [*resume, "--total-timesteps", "1000"], capsys, "--total-timesteps")  # the learning rate is at zero


VALUES = {
    "num-envs": [1, 2, 4, 8], "num-steps": [8, 12, 16, 32], "seq-len": [1, 3, 4, 8, 16], "num-minibatches": [1, 2, 4, 64],
    "hidden-size": [1, 33], "encoder-size": [0, 1, 16], "hidden-layer-size": [0, 1, 16], "update-epochs": [1, 3],
    "gamma": [0, 0.5, 1], "gae-lambda": [0, 1], "rand-move-eps": [0, 0.05, 1], "clip-coef": [1e-6, 5],
    "learning-rate": [1e-9, 0.1], "ent-coef": [0, 1], "vf-coef": [0, 1], "max-grad-norm": [1e-6, 1e6],
    "target-kl": [2e-6, 0.01, "None"], "reward-scale": [0.01, 100], "seed": [0, 2**31 - 1], "eval-every": [0, 1, 2],
    "save-every": [0, 1], "eval-episodes": [1, 3], "exp-name": ["a", "größe"], "eval-env-id": ["MiniGrid-MemoryS9-v0"],
    "env-id": ["MiniGrid-MemoryS7-v0", "MiniGrid-MemoryS13Random-v0", "MiniGrid-CustomMaze-S5-v0", "CartPoleNoVel-v0",
               "MiniGrid-CustomMazeRandom-S7-v0", "MiniGrid-Empty-5x5-v0", "Acrobot-v1"], "view-size": [0, 3, 5, 7],
}  # fmt: skip
SWITCHES = ["anneal-lr", "norm-adv", "clip-vloss", "memoryless", "torch-deterministic", "track", "cuda"]


@pytest.mark.parametrize("count", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_any_combination_of_flags_trains_or_is_refused(count, capsys):
    """Two iterations and their results, or exit code 2 and what is wrong, and nothing between."""
    draw, codes = random.Random(count), []
    for n in range(count):
        os.mkdir(f"trial{n}")
        os.chdir(f"trial{n}")
        script = draw.choice(BOTH)
        chosen = {name: draw.choice(VALUES[name]) for name in draw.sample(sorted(VALUES), 8)}
        chosen = {"num-envs": 2, "num-steps": 16} | chosen
        flags = [f"--{name}={value}" for name, value in chosen.items()]
        flags += draw.sample([f"--{no}{name}" for name in SWITCHES for no in ("", "no-")], 2)
        batch = chosen["num-envs"] * chosen["num-steps"]
        try:
            codes.append(script.main([*tiny(script), *flags, f"--total-timesteps={2 * batch}"]))
        except SystemExit as end:
            codes.append(end.code)
        if codes[-1] == 0:
            assert json.loads(Path(one("runs/*/results.json")).read_text())["global_step"] == 2 * batch
        else:
            assert codes[-1] == 2 and not glob.glob("runs"), flags
        os.chdir("..")
    assert codes.count(0) > count / 5 < codes.count(2) * 2
