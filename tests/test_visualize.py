"""What the viewer shows is what the agent computed, the analysis does not fool itself, bad input is one line."""

import base64
import json
import os
import re
import subprocess
import sys
import time
import tracemalloc
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from PIL import Image

import envs
import ppo_lstm_cartpole_novel
import ppo_lstm_minigrid
from visualize_memory import __main__ as viewer
from visualize_memory import analysis, episodes, page

SHIPPED = str(Path(envs.__file__).parent / "benchmark/checkpoints/MiniGrid-")
TRAINED = SHIPPED + "MemoryS13-v0.pt"
TMAZE = """
class TMaze(gym.Env):  # a cue, nine steps and the end; it draws no pictures
    observation_space, action_space = gym.spaces.Box(-1, 1, (3,), "float64"), gym.spaces.Discrete(2, start=1)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.cue, self.at = int(self.np_random.choice((-1, 1))), -1
        return self.step(1)[0], {}

    def step(self, action):
        self.at += action in (1, 2)
        obs = torch.tensor([self.cue * (self.at == 0), self.at == 9, 1.0]).double().numpy()
        return obs, float(self.at == 10), self.at == 10, False, {}

    def task_variables(self):
        return {"cue": self.cue, "step": self.at, "obs": [self.at, self.cue * self.at]}

gym.register("TMaze-v0", TMaze, reward_threshold=1.0)

class Agent(Agent):
"""
ONE_TENSOR = "    def initial_state(self, n):\n        return super().initial_state(n)[0]\n"
NO_CELL = "    def get_states(self, *x):\n        h, (h_, c) = super().get_states(*x)\n        return h, (h_, 0 * c)\n"


def copy_of_script(tail):
    """copy.py, a copy with `tail` at its end, as a module."""
    Path("copy.py").write_text(Path(ppo_lstm_cartpole_novel.__file__).read_text(encoding="utf-8") + tail, "utf-8")
    return episodes.load_script("", "copy.py")


def checkpoint(path="new.pt", script=ppo_lstm_cartpole_novel, change=lambda content: None, **overrides):
    """A checkpoint of an agent that has not learned anything."""
    args = script.Args(hidden_size=9, encoder_size=4, **overrides)
    weights = script.Agent(*episodes.spaces_of(script, args), args).state_dict()
    content = {"format": 1, "script": Path(script.__file__).name, "args": asdict(args), "agent": weights}
    change(content)
    torch.save(content, path)
    return path


def run(flags):
    assert viewer.main(flags.split()) == 0


def parts_of(path):
    """A page's code and data."""
    text = Path(path).read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1)
    return text.replace(data, ""), json.loads(data)


# ---- the page, the pictures and the trace
@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Three episodes of the trained agent, with everything that can be written."""
    out = tmp_path_factory.mktemp("shown") / "new" / "folder"
    run(f"{TRAINED} --episodes 3 --frames --video --npz --analysis --analysis-episodes 60 --out {out}")
    return out


def test_what_is_written_holds_the_trace(shown):
    """The recurrence, fed the whole trace at once, gives what was noted step by step; page and frames show that."""
    trace, (agent, _) = np.load(shown / "trace.npz"), ppo_lstm_minigrid.load_agent(TRAINED)
    obs, dones = torch.from_numpy(trace["observations"]), torch.from_numpy(trace["dones"]).float()
    hidden, _ = agent.get_states(obs, agent.initial_state(1), dones)
    found = {"logits": agent.actor(hidden), "values": agent.critic(hidden)[:, 0], "states": hidden}
    for name, values in found.items():
        noted = trace[name][:, 0] if name == "states" else trace[name]
        np.testing.assert_allclose(values.detach(), noted, atol=1e-5)
    ends = trace["terminated"] | trace["truncated"]
    assert ends.sum() == 3 and ends[-1] and trace["dones"].tolist() == [1, *ends[:-1]]
    code, data = parts_of(shown / "memory.html")
    assert not re.findall(r"//\w[\w.]*\.\w+/|<link[^>]+href=\"(?!data:)|<script[^>]+src=|@import|fetch\(|\{\{", code)
    assert [e["cue"] for e in data["episodes"]] == ["key", "ball", "key"]
    for n, e in enumerate(data["episodes"]):
        own = {name: trace[name][trace["episode"] == n] for name in trace.files}
        T = len(own["actions"])
        assert len(e["frames"]) == T + 1 and e["outcome"] == "success" and e["actions"] == own["actions"].tolist()
        assert not e["seen"][0] and any(e["seen"]), "the cue is behind the agent, and it looks"
        states = np.frombuffer(base64.b64decode(e["states"]), np.int16).reshape(T, 2, -1) / 32767
        np.testing.assert_allclose(states * np.array(e["scale"])[:, None], own["states"], atol=1e-3)
        assert np.abs(states).max((0, 2)) == pytest.approx([1, 1])  # the scale is the episode's largest magnitude
        policy = torch.distributions.Categorical(logits=torch.from_numpy(own["logits"]))
        for name, expected in (("probs", policy.probs), ("entropy", policy.entropy()), ("values", own["values"])):
            np.testing.assert_allclose(e[name], expected, atol=1e-3)
        assert (shown / f"episode_{n}.mp4").stat().st_size > 2000
    folder, state = shown / "frames/episode_2", own["states"][3]
    assert len(list(folder.iterdir())) == 3 * T and Image.open(folder / "env_0000.png").size == (416, 416)
    content = json.loads((folder / "memory_0003.json").read_bytes())
    assert (content["step"], content["width"], content["height"]) == (3, 8, 4)
    np.testing.assert_allclose((content["values"], content["cell_values"]), state, atol=1e-5)
    unit_13 = page.paint(state[0, 13], np.abs(own["states"][:, 0]).max())
    assert (np.asarray(Image.open(folder / "memory_0003.png"))[22 + 32 * 1 + 16, 32 * 5 + 16] == unit_13).all()


def test_another_env_sampled_actions_and_a_rerun():
    flags, actions = f"{TRAINED} --episodes 2 --npz --out out --env-id MiniGrid-MemoryS17Random-v0 --seed ", []
    for seed in "12":
        run(flags + seed)
        actions.append(np.load("out/trace.npz")["actions"].tolist())
    assert actions[0] != actions[1] and parts_of("out/memory.html")[1]["trained_on"] == "MiniGrid-MemoryS13-v0"
    checkpoint(script=ppo_lstm_minigrid, env_id="MiniGrid-CustomMaze-S6-v0", memoryless=True)
    run("new.pt --episodes 1 --sampled --npz --analysis --analysis-episodes 20 --out out")
    names = json.loads(Path("out/analysis.json").read_bytes())["targets"].keys()
    assert {"agent's way from its start", "position of the goal", "goal ahead and to the right"} < names
    trace, (_, data) = np.load("out/trace.npz"), parts_of("out/memory.html")
    assert (trace["actions"] != trace["logits"].argmax(-1)).any() and data["sampled"] and data["memoryless"]
    assert data["what"] == "goal" and data["episodes"][0]["seen"][0] == (envs.GOAL in trace["observations"][0, :-1:3])


def test_environment_and_network_of_a_copy():
    """Nothing renders: the observation is drawn. Its `cue` is not Memory's; what the step decides is not to be told."""
    checkpoint(script=copy_of_script(TMAZE + NO_CELL), env_id="TMaze-v0")
    run("new.pt --script copy.py --frames --video --npz --analysis --analysis-episodes 20 --out out")
    result, states = json.loads(Path("out/analysis.json").read_bytes()), np.load("out/trace.npz")["states"]
    assert states[:, 0].any() and not states[:, 1].any()
    assert np.asarray(Image.open("out/frames/episode_0/env_0000.png")).std() > 10
    cue, step = result["targets"]["cue"], result["targets"]["step"]
    assert cue["metric"] == "accuracy" and cue["by_lag"]["observation"][0]["value"] == 1
    assert not any(step["by_lag"].values()) and "step: nothing to tell" in result["summary"][2]
    values = [s["value"] for t in result["targets"].values() for scores in t["by_lag"].values() for s in scores]
    assert len(values) > 100 and min(values) > -10


def test_a_video_is_written_frame_by_frame(tmp_path):
    frames = [page.webp(np.full((400, 600, 3), t, np.uint8)) for t in range(101)]
    tracemalloc.start()
    page.write_video(tmp_path / "long.mp4", episodes.Episode(0, states=np.ones((100, 2, 8)), frames=frames), 10)
    assert tracemalloc.get_traced_memory()[1] < 20e6  # all pictures have 90 MB
    tracemalloc.stop()


@pytest.mark.parametrize(("encoding", "flags"), [
    ("ascii", "--help"),
    ("ascii", "new.pt --episodes 1 --analysis --analysis-episodes 20"),
    ("cp1252", "new.pt --episodes 1 --frames"),
])
def test_a_real_command_on_a_console_without_letters(encoding, flags):
    checkpoint()
    locale = {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, Path(viewer.__file__).parent, *flags.split()]
    done = subprocess.run(command, capture_output=True, env=os.environ | locale)
    assert (done.returncode, done.stderr) == (0, b"")
    assert flags == "--help" or Path("memory/CartPoleNoVel-v0/memory.html").exists()


# ---- the analysis
@pytest.mark.parametrize("view", [3, 7])
def test_cue_in_view_against_minigrid(view):
    """Every state of S9: MiniGrid's own `agent_sees`, which asks the same of the real grid, agrees."""
    env_id = "MiniGrid-MemoryS9-v0"
    world, seen = envs.make_single(env_id, view).unwrapped, episodes.cue_in_view(env_id, view)
    world.reset(seed=0)
    for (_, *world.agent_pos, world.agent_dir, _, _), found in seen.items():
        assert world.agent_sees(1, 3) == found
    assert 0 < sum(seen.values()) < len(seen) and all(episodes.cue_in_view(env_id, 0).values())


def test_rows_end_at_the_fork_and_folds_hold_out_whole_starts():
    rows, returns = analysis.collect(episodes.load_subject(TRAINED, None, None, 1), 40, seed=3)
    fold, v, starts = analysis.make_folds(rows, 0), rows["variables"], {}
    assert (returns > 0).mean() > 0.9 and len(np.unique(fold)) == analysis.FOLDS
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
    bins, stretches = analysis.lag_bins(np.array([-1, 0, 5, 16, 17, 40]))
    assert [stretches[b] for b in bins[:4]] == [(-1, -1), (0, 0), (5, 5), (16, 16)] and stretches[bins[5]][0] <= 40
    v = {"x": [3, 3], "y": [3, 3], "direction": [0, 3], "goal_x": [5, 5], "goal_y": [4, 4]}
    rows = {"variables": {name: np.array(value) for name, value in v.items()}, "kind": "Maze", "episode": np.arange(2)}
    goal = analysis.find_targets(rows | {"lag": np.zeros(2, int), "step": np.zeros(2, int)})[-1].values
    assert goal.tolist() == [[2, 1], [-1, 2]]  # facing right: 2 ahead, 1 to the right; facing up: 1 behind, 2 right
    below, zero, above = page.paint(np.array([-2.0, 0.0, 2.0]), 2.0)
    assert below[2] > below[0] and above[0] > above[2] and zero.min() > 230
    assert [page.heatmap_shape(n) for n in (1, 8, 9, 32, 37, 64)] == [(1, 1), (2, 4), (3, 3), (4, 8), (6, 7), (8, 8)]


def test_the_whole_analysis(shown):
    """The trained agent remembers: far above the observation once the cue is out of view; amnesia at the fork hurts."""
    result = json.loads((shown / "analysis.json").read_bytes())
    cue, rates = result["targets"]["cue"], {(v["units"], v["zeroed"]): v["success_rate"] for v in
                                            result["intervention"]["variants"]}
    hidden, bare = ({s["from"]: s for s in cue["by_lag"][kind]} for kind in ("hidden", "observation"))
    assert hidden[8]["low"] > bare[8]["high"] and hidden[-1]["low"] < 0.6 < 0.8 < hidden[8]["low"]
    assert cue["at_fork"]["cell"]["value"] > 0.95 and cue["at_fork"]["observation"]["value"] < 0.7
    assert rates["none", 0]["low"] > 0.8 > rates["best", 16]["high"]
    assert rates["best", 20]["high"] < rates["random", 20]["value"]
    assert np.asarray(Image.open(shown / "analysis.png")).std() > 10
    assert parts_of(shown / "memory.html")[1]["analysis"]["top"] == result["units"]["ranking"][:8]


def test_lesions_do_what_they_say(monkeypatch):
    """On CartPole all units zeroed at every step is the memoryless control, episode by episode; none is no change."""
    subject, N, kept = episodes.load_subject(checkpoint(), None, None, 1), 20, []
    subject.agent.actor.weight.data *= 300  # an opinion, so that the state matters
    _, plain = analysis.roll_out(subject, N, 0)
    _, same = analysis.roll_out(subject, N, 0, lesion=lambda n, _: torch.ones(len(n), 9))
    _, zeroed = analysis.roll_out(subject, N, 0, lesion=lambda n, _: torch.zeros(len(n), 9))
    subject.agent.memoryless = True
    assert (zeroed == analysis.roll_out(subject, N, 0)[1]).all() and (plain == same).all() and (plain != zeroed).any()

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
        assert variant["units"] != "best" or (mask[:, : variant["zeroed"]] == 0).all()
        assert variant["units"] != "random" or len(np.unique(mask, axis=0)) > 4  # other units in each episode


# ---- bad input
@pytest.mark.parametrize(("flags", "says"), [
    ("nowhere.pt", "nowhere.pt"),
    ("shapes.pt", "shapes.pt"),
    ("nan.pt", "finite"),
    ("elsewhere.pt", "--script"),
    ("new.pt --script text.pt", "cannot import"),
    ("copied.pt --script copy.py", "(h, c)"),
    ("new.pt --env-id NoSuchEnv-v0", "--env-id"),
    ("new.pt --env-id CartPole-v1", "observation"),
    ("new.pt --episodes 0", "--episodes"),
    ("new.pt --out text.pt/inside", "--out"),
    ("new.pt --no-such-flag", "--no-such-flag"),
    (SHIPPED + "ObstructedMaze-1Dl-v0.pt --analysis", "task_variables"),
], ids=lambda v: v.split("/")[-1])
def test_bad_input(flags, says, capsys):
    checkpoint()
    checkpoint("shapes.pt", change=lambda c: c["args"].update(hidden_size=10))
    checkpoint("nan.pt", change=lambda c: c["agent"]["actor.bias"].fill_(float("nan")))
    checkpoint("elsewhere.pt", change=lambda c: c.update(script=os.path.abspath("text.pt")))
    checkpoint("copied.pt", copy_of_script(TMAZE + ONE_TENSOR))
    Path("text.pt").write_text("open('evil', 'w')\n+")
    before = sorted(Path(".").rglob("*"))
    assert viewer.main(flags.split()) == 2
    out, err = capsys.readouterr()
    assert says in out + err and "Traceback" not in err and (err.count("\n") == 1 or not err.startswith("error:"))
    assert sorted(Path(".").rglob("*")) == before, "something is left behind"


# ---- in a real browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
def test_in_a_browser(shown, tmp_path):
    with Browser(tmp_path / "profile") as browser:
        def now():
            return browser.js("[$('frame'), ...heats].map(c => c.toDataURL()).concat(step, number + 1)")

        browser.open(f"file://{shown}/memory.html#episode=1")
        start = now()
        assert start[3:] == [0, 1] and len(start[0]) > 2000
        box = browser.js("$('slider').getBoundingClientRect().toJSON()")
        y = (box["top"] + box["bottom"]) / 2
        browser.drag(box["left"] + 8, y, box["left"] + 0.6 * box["width"], y)
        dragged = now()
        assert dragged[3] > 3 and all(a != b for a, b in zip(start[:3], dragged[:3], strict=True))
        browser.key("ArrowRight", 39)
        assert now()[3] == dragged[3] + 1
        browser.key("ArrowDown", 40)
        assert now()[3:] == [0, 2] and now()[0] != start[0]
        browser.key("End", 35)
        assert browser.js("document.body.classList.contains('over')")
        browser.key("Home", 36)
        browser.key(" ", 32)
        time.sleep(0.7)
        browser.key(" ", 32)
        played = now()[3]
        browser.settle()
        assert 0 < played < 8 and now()[3] == played, "played, and paused"
        for width, height, dark in ((1280, 800, False), (390, 844, False), (1280, 800, True)):
            browser.open(f"file://{shown}/memory.html#episode=2&step=6", width, height, dark)
            assert now()[3:] == [6, 2]
            assert browser.js("document.documentElement.scrollWidth") <= width, "nothing sticks out"
            assert browser.js("$('slider').getBoundingClientRect().bottom") <= height, "the slider is in view"
            browser.screenshot(tmp_path / "page.png")
            assert np.asarray(Image.open(tmp_path / "page.png")).std() > 20
        assert browser.errors == []
