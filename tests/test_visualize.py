"""What the viewer shows is what the agent computed, the analysis does not fool itself, bad input is one line."""

import base64
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import envs
import ppo_lstm_cartpole_novel
import ppo_lstm_minigrid
from visualize_memory import __main__ as viewer
from visualize_memory import analysis, episodes

SHIPPED = str(Path(envs.__file__).parent / "benchmark/checkpoints/MiniGrid-")
TRAINED = SHIPPED + "MemoryS13-v0.pt"
COPY = """
import probes

class Corridor(probes.Unusual):  # a cue, ten steps and the end; it draws no pictures, its actions begin with 1
    metadata = {"render_modes": []}

    def see(self):
        return [-self.secret * (self.t == 0), (self.secret - 1) * (self.t == 0)]

    def task_variables(self):
        return {"cue": self.secret, "step": self.t, "obs": [self.t, self.secret * self.t]}

gym.register("Corridor-v0", Corridor)

class Agent(Agent):
"""
ONE_TENSOR = "    def initial_state(self, n):\n        return super().initial_state(n)[0]\n"
NO_CELL = "    def get_states(self, *x):\n        h, (h_, c) = super().get_states(*x)\n        return h, (h_, 0 * c)\n"


def checkpoint(path="new.pt", script=ppo_lstm_cartpole_novel, copy="", bias=0.0, **overrides):
    """A checkpoint of an agent that has not learned anything; of copy.py, a copy of the script with `copy` at its end."""
    if copy:
        Path("copy.py").write_text(Path(script.__file__).read_text(encoding="utf-8") + copy, "utf-8")
        script = episodes.load_script("", "copy.py")
    args = script.Args(hidden_size=9, encoder_size=4, **overrides)
    weights = script.Agent(*episodes.spaces_of(script, args), args).state_dict()
    weights["actor.bias"] += bias
    torch.save({"format": 1, "script": Path(script.__file__).name, "args": asdict(args), "agent": weights}, path)
    return path


def run(flags, out="out"):
    """What analysis.json, the trace and the page hold, and the page without its data."""
    assert viewer.main([*f"{flags} --npz --analysis --out".split(), str(out)]) == 0
    text = Path(out, "memory.html").read_text(encoding="utf-8")
    data = re.search(r'(?s)<script type="application/json" id="data">(.*?)</script>', text)[1]
    result, trace = Path(out, "analysis.json").read_text(encoding="utf-8"), np.load(Path(out, "trace.npz"))
    return json.loads(result), trace, json.loads(data), text.replace(data, "")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Three episodes of the trained agent, with everything that can be written."""
    out = tmp_path_factory.mktemp("shown") / "new" / "folder"
    return out, *run(f"{TRAINED} --episodes 3 --frames --video --analysis-episodes 60", out)


def test_what_is_written_holds_the_trace(shown):
    """The recurrence, fed the whole trace at once, gives what was noted step by step; page and frames show that."""
    (out, _, trace, data, code), (agent, _) = shown, ppo_lstm_minigrid.load_agent(TRAINED)
    obs, dones = torch.from_numpy(trace["observations"]), torch.from_numpy(trace["dones"]).float()
    hidden, _ = agent.get_states(obs, agent.initial_state(1), dones)
    noted = trace["states"][:, 0], trace["logits"], trace["values"]
    for a, b in zip(noted, (hidden, agent.actor(hidden), agent.critic(hidden)[:, 0]), strict=True):
        np.testing.assert_allclose(a, b.detach(), atol=1e-5)
    ends = trace["terminated"] | trace["truncated"]
    assert ends.sum() == 3 and ends[-1] and trace["dones"].tolist() == [1, *ends[:-1]]
    assert not re.findall(r"//\w[\w.]*\.\w+/|<link[^>]+href=\"(?!data:)|<script[^>]+src=|@import|fetch\(|\{\{", code)
    assert [e["cue"] for e in data["episodes"]] == ["key", "ball", "key"]
    for n, e in enumerate(data["episodes"]):
        own = {name: trace[name][trace["episode"] == n] for name in trace.files}
        T = len(own["actions"])
        assert len(e["frames"]) == T + 1 and e["outcome"] == "success" and e["actions"] == own["actions"].tolist()
        assert not e["seen"][0] and any(e["seen"]), "the cue is behind the agent, and it looks"
        states = np.frombuffer(base64.b64decode(e["states"]), np.int16).reshape(T, 2, -1) / 32767
        np.testing.assert_allclose(states * np.array(e["scale"])[:, None], own["states"], atol=1e-3)
        policy = torch.distributions.Categorical(logits=torch.from_numpy(own["logits"]))
        for name, expected in (("probs", policy.probs), ("entropy", policy.entropy()), ("values", own["values"])):
            np.testing.assert_allclose(e[name], expected, atol=1e-3)
        assert (out / f"episode_{n}.mp4").stat().st_size > 2000
    folder, state = out / "frames/episode_2", own["states"][3]
    assert len(list(folder.iterdir())) == 3 * T and Image.open(folder / "env_0000.png").size == (416, 416)
    content = json.loads((folder / "memory_0003.json").read_bytes())
    assert (content["step"], content["width"], content["height"]) == (3, 8, 4)
    np.testing.assert_allclose((content["values"], content["cell_values"]), state, atol=1e-5)


def test_another_env_and_a_maze_with_sampled_actions():
    subject = episodes.load_subject(TRAINED, "MiniGrid-MemoryS17Random-v0", None, 1)
    a, b, again = ([e.actions.tolist() for e in episodes.play_episodes(subject, 2, seed, False)] for seed in (1, 2, 1))
    assert a == again != b and subject.about["trained_on"] == "MiniGrid-MemoryS13-v0"
    checkpoint(script=ppo_lstm_minigrid, env_id="MiniGrid-CustomMaze-S6-v0", memoryless=True)
    result, trace, data, _ = run("new.pt --episodes 1 --sampled --analysis-episodes 20")
    assert {"agent's way from its start", "position of the goal", "goal ahead and to the right"} < {*result["targets"]}
    assert (trace["actions"] != trace["logits"].argmax(-1)).any() and data["sampled"] and data["memoryless"]
    assert data["what"] == "goal" and data["episodes"][0]["seen"][0] == (envs.GOAL in trace["observations"][0, :-1:3])


def test_environment_and_network_of_a_copy():
    """Nothing renders: the observation is drawn. Its `cue` is not Memory's; what the step decides is not to be told."""
    checkpoint(copy=COPY + NO_CELL, env_id="Corridor-v0")
    result, trace, *_ = run("new.pt --script copy.py --episodes 1 --frames --analysis-episodes 20")
    assert trace["states"][:, 0].any() and not trace["states"][:, 1].any()
    assert np.asarray(Image.open("out/frames/episode_0/env_0000.png")).std() > 10
    cue, step = result["targets"]["cue"], result["targets"]["step"]
    assert cue["metric"] == "accuracy" and cue["by_lag"]["observation"][0]["value"] == 1
    assert not any(step["by_lag"].values()) and "step: nothing to tell" in result["summary"][2]
    values = [s["value"] for t in result["targets"].values() for scores in t["by_lag"].values() for s in scores]
    assert len(values) > 100 and min(values) > -10


@pytest.mark.parametrize("flags", ["--help", "new.pt --episodes 1 --analysis --analysis-episodes 20"])
def test_a_real_command_on_a_console_without_letters(flags):
    locale = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, Path(viewer.__file__).parent, *flags.replace("new.pt", checkpoint()).split()]
    done = subprocess.run(command, capture_output=True, env=os.environ | locale)
    assert (done.returncode, done.stderr) == (0, b"")
    assert flags == "--help" or Path("memory/CartPoleNoVel-v0/memory.html").exists()


def test_cue_in_view_against_minigrid():
    """Every state of S9: MiniGrid's own `agent_sees`, which asks the same of the real grid, agrees."""
    env_id, views = "MiniGrid-MemoryS9-v0", (3, 7)
    for world, seen in ((envs.make_single(env_id, v).unwrapped, episodes.cue_in_view(env_id, v)) for v in views):
        world.reset(seed=0)
        for (_, *world.agent_pos, world.agent_dir, _, _), found in seen.items():
            assert world.agent_sees(1, 3) == found
    assert all(episodes.cue_in_view(env_id, 0).values())


def test_rows_end_at_the_fork_and_folds_hold_out_whole_starts():
    rows, _ = analysis.collect(episodes.load_subject(TRAINED, None, None, 1), 40, seed=3)
    fold, v, starts = analysis.make_folds(rows, 0), rows["variables"], {}
    assert len(np.unique(fold)) == analysis.FOLDS
    for e in range(40):
        own = rows["episode"] == e
        fork, lag = rows["fork"][own], rows["lag"][own]
        assert fork.sum() == fork[-1] and (rows["step"][own] == np.arange(own.sum())).all()
        assert not fork[-1] or (v["x"][own][-1] == v["success_x"][own][-1] and v["y"][own][-1] == 6)
        assert ((lag[1:] == 0) | (lag[1:] == np.where(lag[:-1] < 0, -1, lag[:-1] + 1))).all()
        assert starts.setdefault(v["x"][own][0], fold[own][0]) == fold[own].min() == fold[own].max()


def test_probe_finds_what_is_there_and_nothing_else():
    rng, episode, lag = np.random.default_rng(0), np.repeat(np.arange(100), 20), np.zeros(2000, int)
    fold = analysis.make_folds({"episode": episode, "kind": None}, 0)

    def scored(X, target, fold):
        return analysis.score(analysis.cross_validated(X, target, fold), target, episode, lag, 0)[0][1]

    planted = analysis.Target("planted", rng.normal(size=(2000, 3)), lag, "")
    X = np.pad(planted.values @ rng.normal(size=(3, 30)) + 0.01 * rng.normal(size=(2000, 30)), ((0, 0), (0, 1)))
    X[:, 30] = np.where(fold == 0, 1, 1e-6) * rng.normal(size=2000)  # (almost) silent where it trains the first fold
    found = scored(X, planted, fold)
    assert found["value"] > 0.99 and found["low"] <= found["value"] <= found["high"] and found["steps"] == 2000
    # a coin for each episode, and inputs that tell the episode: a split by step would find the coin
    coin = analysis.Target("coin", np.eye(2)[rng.integers(2, size=100)][episode], lag, "", classes=True)
    X = rng.normal(size=(100, 40))[episode] + 0.01 * rng.normal(size=(2000, 40))
    honest, leak = scored(X, coin, fold), scored(X, coin, np.arange(2000) % 5)
    assert honest["low"] < 0.5 < honest["high"] < 0.8 < leak["value"]


def test_by_hand():
    target = analysis.Target("number", np.array([[0.0], [1], [2], [3]] * 10), np.zeros(40, int), "")
    prediction = target.values + np.array([[0.5], [0.5], [0], [0]] * 10)
    episode, bins = np.repeat(np.arange(20), 2), np.array([0, 0, 1, 1] * 10)
    (_, low), (_, high) = analysis.score(prediction, target, episode, bins, 0)
    assert (low["value"], high["value"]) == pytest.approx((0.0, 1.0)) and low["episodes"] == 10
    assert analysis.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-3)
    v = {"x": [3, 3], "y": [3, 3], "direction": [0, 3], "goal_x": [5, 5], "goal_y": [4, 4]}
    rows = {"variables": {name: np.array(value) for name, value in v.items()}, "kind": "Maze", "episode": np.arange(2)}
    goal = analysis.find_targets(rows | {"lag": np.zeros(2, int), "step": np.zeros(2, int)})[-1].values
    assert goal.tolist() == [[2, 1], [-1, 2]]  # facing right: 2 ahead, 1 to the right; facing up: 1 behind, 2 right


def test_the_whole_analysis(shown):
    """The trained agent remembers: far above the observation once the cue is out of view; amnesia at the fork hurts."""
    _, result, _, data, _ = shown
    cue, variants = result["targets"]["cue"], result["intervention"]["variants"]
    rates = {(v["units"], v["zeroed"]): v["success_rate"] for v in variants}
    hidden, bare = ({s["from"]: s for s in cue["by_lag"][kind]} for kind in ("hidden", "observation"))
    assert hidden[8]["low"] > bare[8]["high"] and hidden[-1]["low"] < 0.6 < 0.8 < hidden[8]["low"]
    assert cue["at_fork"]["cell"]["value"] > 0.95 and cue["at_fork"]["observation"]["value"] < 0.7
    assert rates["none", 0]["low"] > 0.8 > rates["best", 16]["high"]
    assert rates["best", 20]["high"] < rates["random", 20]["value"]
    assert data["analysis"]["top"] == result["units"]["ranking"][:8] and len(data["analysis"]["figure"]) > 20_000


def test_lesions_do_what_they_say(monkeypatch):
    """On CartPole all units zeroed at every step is the memoryless control, episode by episode; none is no change."""
    subject, N, kept = episodes.load_subject(checkpoint(), None, None, 1), 20, []
    subject.agent.actor.weight.data *= 300  # an opinion, so that the state matters
    lesions = None, *(lambda n, _, value=value: torch.full((len(n), 9), value) for value in (1.0, 0.0))
    plain, same, zeroed = (analysis.roll_out(subject, N, 0, lesion=lesion)[1].tolist() for lesion in lesions)
    subject.agent.memoryless = True
    assert plain == same != zeroed == analysis.roll_out(subject, N, 0)[1].tolist()

    def roll_out(_subject, number, seed, lesion):  # on Memory once, at the fork
        for x in (5, 11, 11, 5, 11):
            where = {"x": np.full(number, x), "y": np.full(number, 6), "success_x": np.full(number, 11)}
            kept.append(lesion(np.arange(number), where).numpy().reshape(-1, N, 9))
        return np.zeros(number), np.zeros(number)

    monkeypatch.setattr(analysis, "roll_out", roll_out)
    subject.args.env_id = "MiniGrid-MemoryS13-v0"
    variants = analysis.intervene(subject, N, 0, list(range(9)))["variants"]
    assert all((mask == 1).all() for n, mask in enumerate(kept) if n != 1)
    for variant, mask in zip(variants, kept[1], strict=True):
        assert (mask.sum(1) == 9 - variant["zeroed"]).all()
        assert variant["units"] != "best" or not mask[:, : variant["zeroed"]].any()
        assert variant["units"] != "random" or len(np.unique(mask, axis=0)) > 4  # other units in each episode


def test_bad_input(capsys):
    checkpoint()
    checkpoint("nan.pt", bias=float("nan"))
    checkpoint("copied.pt", copy=COPY + ONE_TENSOR)
    Path("text.pt").write_text("open('evil', 'w')\n+")
    before = sorted(Path(".").rglob("*"))
    for flags, says in (
        ("nowhere.pt", "nowhere.pt"), ("nan.pt", "finite"), ("copied.pt", "--script"),
        ("new.pt --script text.pt", "cannot import"), ("copied.pt --script copy.py", "(h, c)"),
        ("new.pt --env-id NoSuchEnv-v0", "--env-id"), ("new.pt --env-id CartPole-v1", "observation"),
        ("new.pt --episodes 0", "--episodes"), ("new.pt --out text.pt/inside", "--out"),
        (SHIPPED + "ObstructedMaze-1Dl-v0.pt --analysis", "task_variables"),
    ):  # fmt: skip
        assert viewer.main(flags.split()) == 2
        out, err = capsys.readouterr()
        assert says in err and err.startswith("error: ") and err.count("\n") == 1 and not out, flags
        assert sorted(Path(".").rglob("*")) == before, f"{flags} leaves something behind"
