"""Every bad input ends at once: one line that names the flag and the rule, exit code 2, nothing written."""

import os
import pickle
import random
import sys
from pathlib import Path

import pytest
import torch
from conftest import SCRIPTS, one, same, tiny

VALUES = """
--num-envs=0 --num-envs=four --num-steps=0 --seq-len=24 --num-minibatches=3 --num-minibatches=1000 --update-epochs=-1
--total-timesteps=10 --num-threads=0 --hidden-size=0 --encoder-size=-1 --hidden-layer-size=-1 --learning-rate=-1
--learning-rate=nan --gamma=1.5 --gae-lambda=nan --rand-move-eps=-0.1 --clip-coef=0
--max-grad-norm=0 --ent-coef=nan --vf-coef=-1 --desired-kl=-1 --seed=-1 --seed=2147483648 --eval-episodes=0
--eval-every=-1 --save-every=-1 --eval-only --env-id=NoSuchEnv-v0 --eval-env-id=Acrobot-v1 --resume=nowhere.pt
"""
BAD = [(name, flag, flag.split("=")[0]) for flag in VALUES.split() for name in SCRIPTS]
BAD += [("minigrid", flag, says) for flag, says in (
    ("--env-id=MiniGrid-MemoryS14-v0", "MiniGrid-MemoryS1"), ("--env-id=MiniGrid-CustomMaze-S4-v0", "--env-id"),
    ("--env-id=CartPole-v1", "--env-id"), ("--env-id=MiniGrid-GoToDoor-5x5-v0", "mission"),
    ("--eval-env-id=MiniGrid-ObstructedMaze-1Dl-v0", "--eval-env-id"), ("--view-size=4", "--view-size"))]  # fmt: skip
BAD += [("cartpole", flags, says) for flags, says in (
    ("--env-id=Pendulum-v1", "discrete"), ("--env-id=FrozenLake-v1", "--env-id"),
    ("--env-id=My/NoRender-v0 --capture-video", "--env-id"))]  # fmt: skip


def refused(script, flags, capsys, says):
    capsys.readouterr()
    before = sorted(Path().rglob("*"))
    try:
        assert script.main(flags) == 2
    except SystemExit as end:  # what tyro refuses, it reports itself
        assert end.code == 2
    captured = capsys.readouterr()
    assert says in captured.err and "Traceback" not in captured.err and not captured.out
    assert captured.err.count("\n") == 1 or not captured.err.startswith("error:")
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(("script", "flags", "says"), BAD, indirect=["script"])
def test_bad_flag(script, flags, says, capsys):
    refused(script, [*tiny(script), *flags.split()], capsys, says)


def test_a_video_writer_that_is_missing_and_an_unwritable_folder(script, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "moviepy.video.io.ffmpeg_writer", None)
    refused(script, tiny(script, "--capture-video"), capsys, "moviepy")
    Path("runs").write_text("a file where the folder should be")
    refused(script, tiny(script), capsys, "runs")


@pytest.fixture
def made(script, small):
    script.train(small(total_timesteps=64, anneal_lr=False), run_dir="made")


RESUME = ["--resume", "bad.pt", "--total-timesteps", "640"]


def test_no_flipped_byte_loads_silently_wrong(script, made, capsys):
    """Refused, or in the few places that hold no content, loaded unchanged. So are a part of a file, and text."""
    data, draw, damaged = Path("made/agent.pt").read_bytes(), random.Random(0), 0
    whole, contents = script.load_checkpoint("made/agent.pt"), [b"", data[: len(data) // 2], b"I am not a checkpoint\n"]
    for place in (draw.randrange(len(data)) for _ in range(150)):
        contents.append(data[:place] + bytes([data[place] ^ draw.randrange(1, 256)]) + data[place + 1 :])
    for content in contents:
        Path("bad.pt").write_bytes(content)
        try:
            assert same(script.load_checkpoint("bad.pt"), whole)
        except ValueError as error:
            assert "bad.pt" in str(error) and "\n" not in str(error)
            damaged += 1
        assert damaged or len(content) == len(data)
    assert damaged > 75
    Path("bad.pt").write_bytes(contents[1])
    refused(script, RESUME, capsys, "bad.pt")


CHANGES = [  # what makes the checkpoint of another network, script or run
    lambda c: c.update(script="another.py"), lambda c: c.update(args=[]), lambda c: c.pop("agent"),
    lambda c: c["args"].update(hidden_size=9), lambda c: c.pop("optimizer"), lambda c: c.pop("weights"),
    lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
    lambda c: c["args"].update(num_envs=8), lambda c: c["ranks"][0].pop("rng"),
    lambda c: c["ranks"][0].update(envs=dict.fromkeys(c["ranks"][0]["envs"] or (), torch.zeros(1)))]  # fmt: skip


def test_a_foreign_checkpoint_or_one_that_lacks_a_part(script, made, capsys):
    for number, change in enumerate(CHANGES):
        checkpoint = torch.load("made/agent.pt", weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, "bad.pt")
        if number < 7 or checkpoint["ranks"][0]["envs"]:  # else new episodes begin
            refused(script, RESUME, capsys, "--")
        if number < 4:  # the others can be evaluated
            refused(script, ["--resume", "bad.pt", "--eval-only"], capsys, "--")


def test_a_run_goes_on_with_new_episodes_where_generators_have_another_size(script, made):
    checkpoint = torch.load("made/agent.pt", weights_only=True)
    checkpoint["ranks"][0].update(rng=torch.zeros(16, dtype=torch.uint8))  # what a GPU's generator has
    torch.save(checkpoint, "moved.pt")
    assert script.main(["--resume", "moved.pt", "--total-timesteps", "128"]) == 0


def test_nothing_in_a_file_is_executed(script, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, ("evil",)

    content = {"script": os.path.basename(script.__file__), "args": Evil(), "agent": {}}
    Path("bad.pt").write_bytes(pickle.dumps(content))
    refused(script, RESUME, capsys, "bad.pt")
    torch.save(content, "bad.pt")
    refused(script, RESUME, capsys, "bad.pt")
    assert not os.path.exists("evil")


def test_a_checkpoint_of_the_other_script_a_conflicting_flag_and_a_budget_that_cannot_change(script, capsys):
    assert script.main(tiny(script, "--total-timesteps", 64)) == 0
    resume = ["--resume", one("runs/*/agent.pt")]
    (other,) = set(SCRIPTS.values()) - {script}
    refused(other, resume, capsys, "--resume")
    for flag, value in (("--gamma", "0.5"), ("--env-id", "MiniGrid-MemoryS9-v0"), ("--total-timesteps", "1000")):
        refused(script, [*resume, flag, value], capsys, flag)  # the last: the learning rate has come to zero
