"""Every bad input ends at once: one line that names the flag and the rule, exit code 2, no traceback, nothing written."""

import glob
import os
import pickle
import random
import sys
from pathlib import Path

import pytest
import torch
from conftest import SCRIPTS, cartpole_slowly, one, results_of, same, tiny

import ppo_lstm_minigrid

FLAGS = """ flag and good values : bad values, each alone with the others as they are
--num-envs 1 2 4 8 : 0 four
--num-steps 8 12 16 32 : 0 100
--seq-len 1 2 4 8 : 0 24
--num-minibatches 1 2 4 : 0 3 1000
--update-epochs 1 3 : -1
--hidden-size 1 33 : 0
--encoder-size 0 1 16 : -1
--hidden-layer-size 0 1 16 : -1
--gamma 0 0.5 1 : 1.5
--gae-lambda 0 1 : nan
--rand-move-eps 0 0.05 1 : -0.1
--clip-coef 0.000001 5 : 0
--learning-rate 1e-9 0.1 : -1 nan
--reward-scale 0.01 100 : inf
--ent-coef 0 1 : nan
--vf-coef 0 1 : -1
--max-grad-norm 1e-6 1e6 : 0
--target-kl 2e-6 0.01 None : 0
--seed 0 2147483647 : -1 2147483648
--num-threads 1 : 0
--eval-every 0 1 2 : -1
--save-every 0 1 : -1
--eval-episodes 1 3 : 0
--exp-name a größe : a/b
--eval-env-id MiniGrid-MemoryS9-v0 CartPoleNoVel-v0 : NoSuchEnv-v0 Acrobot-v1
--env-id MiniGrid-MemoryS13Random-v0 MiniGrid-CustomMaze-S5-v0 MiniGrid-Empty-5x5-v0 Acrobot-v1 : NoSuchEnv-v0
--resume : nowhere.pt .
--total-timesteps : 10
--cudagraphs : True"""
TABLE = [[part.split() for part in line.split(":")] for line in FLAGS.splitlines()[1:]]
BAD = [(name, f"{good[0]}={value}", good[0]) for good, bad in TABLE for value in bad for name in SCRIPTS]
BAD += [("minigrid", flags, says) for flags, says in (
    ("--env-id=MiniGrid-MemoryS14-v0", "MiniGrid-MemoryS1"), ("--env-id=MiniGrid-CustomMaze-S4-v0", "--env-id"),
    ("--env-id=CartPole-v1", "--env-id"), ("--env-id=MiniGrid-GoToDoor-5x5-v0", "mission"),
    ("--env-id=MiniGrid-WFC-MazeSimple-v0", "--env-id"), ("--eval-env-id=MiniGrid-Fetch-5x5-N2-v0", "--eval-env-id"),
    ("--eval-env-id=MiniGrid-ObstructedMaze-1Dl-v0", "--eval-env-id"), ("--view-size=4", "--view-size"),
    ("--view-size=1", "--view-size"), ("--eval-only", "--eval-only"),
)]  # fmt: skip
BAD += [("cartpole", flags, says) for flags, says in (
    ("--env-id=Pendulum-v1", "discrete"), ("--env-id=FrozenLake-v1", "--env-id"), ("--eval-only", "--eval-only"),
    ("--env-id=MiniGrid-MemoryS7-v0", "--env-id"), ("--env-id=My/NoRender-v0 --capture-video", "--env-id"),
)]  # fmt: skip


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


@pytest.mark.parametrize("count", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_any_combination_of_flags_trains_or_is_refused(count):
    """Two iterations and their results, or exit code 2 and nothing written, and nothing between."""
    draw, codes = random.Random(count), []
    switches = ["anneal-lr", "norm-adv", "clip-vloss", "memoryless", "torch-deterministic", "track", "cuda", "eval-only"]
    for n in range(count):
        os.mkdir(f"trial{n}")
        os.chdir(f"trial{n}")
        script, rows = draw.choice(list(SCRIPTS.values())), draw.sample(TABLE[:26], 6)
        flags = [f"{good[0]}={draw.choice(good[1:] * 8 + bad)}" for good, bad in rows]
        flags += [f"--{draw.choice(('', 'no-'))}{name}" for name in draw.sample(switches, 2)]
        try:
            codes.append(script.main([*tiny(script), *flags]))
        except SystemExit as end:
            codes.append(end.code)
        if codes[-1] == 0:
            assert results_of(one("runs/*"))["eval"]
        assert codes[-1] == 0 or (codes[-1] == 2 and not glob.glob("runs")), flags
        os.chdir("..")
    assert min(codes.count(0), codes.count(2)) > count / 5


def test_missions_that_vary_can_be_ignored():
    flags = ("--env-id=MiniGrid-GoToDoor-5x5-v0", "--ignore-mission", "--total-timesteps=64")
    assert ppo_lstm_minigrid.main(tiny(ppo_lstm_minigrid, *flags)) == 0


def test_a_video_writer_that_is_missing_and_an_unwritable_folder(script, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "moviepy.video.io.ffmpeg_writer", None)
    refused(script, tiny(script, "--capture-video"), capsys, "moviepy")
    Path("runs").write_text("a file where the folder should be")
    refused(script, tiny(script), capsys, "runs")


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
    Path("bad.pt").write_bytes(content(Path("made/agent.pt").read_bytes()))
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
@pytest.mark.parametrize(("change", "evaluates"), [
    (lambda c: c.update(script="another.py"), False), (lambda c: c.update(args=[]), False),
    (lambda c: c.pop("agent"), False), (lambda c: c.update(agent={}), False),
    (lambda c: c["args"].update(hidden_size=9), False), (lambda c: c["args"].update(num_envs=8), True),
    (lambda c: c.pop("optimizer"), True), (lambda c: c["optimizer"]["state"].pop(0), True),
    (lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)), True),
    (lambda c: c.pop("ranks"), True), (lambda c: c["ranks"][0].pop("rng"), True),
    (lambda c: c["ranks"][0]["envs"].update(dict.fromkeys(c["ranks"][0]["envs"], torch.zeros(1))), True),
], ids=range(12))  # fmt: skip
def test_a_foreign_checkpoint_or_one_that_lacks_a_part(script, made, capsys, change, evaluates):
    change(made)
    torch.save(made, "bad.pt")
    refused(script, RESUME, capsys, "--")
    if not evaluates:
        refused(script, ["--resume", "bad.pt", "--eval-only"], capsys, "--")


def test_nothing_in_a_file_is_executed(script, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, ("evil",)

    for write in (lambda content: Path("bad.pt").write_bytes(pickle.dumps(content["args"])),
                  lambda content: torch.save(content, "bad.pt")):  # fmt: skip
        write({"script": os.path.basename(script.__file__), "args": Evil(), "agent": {}})
        refused(script, RESUME, capsys, "bad.pt")
    assert not os.path.exists("evil")


def test_a_checkpoint_of_the_other_script_a_conflicting_flag_and_a_budget_that_cannot_change(script, capsys):
    assert script.main(tiny(script, "--total-timesteps", 64)) == 0
    resume = ["--resume", one("runs/*/agent.pt")]
    (other,) = set(SCRIPTS.values()) - {script}
    refused(other, resume, capsys, "--resume")
    for flag, value in (("--gamma", "0.5"), ("--env-id", "MiniGrid-MemoryS9-v0"), ("--total-timesteps", "1000")):
        refused(script, [*resume, flag, value], capsys, flag)  # the last: the learning rate has come to zero
