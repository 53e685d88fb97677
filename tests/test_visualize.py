"""What the viewer shows is what the agent computed; the analysis does not fool itself; bad input leaves nothing behind."""

import base64
import itertools
import json
import re
import shutil
import subprocess
import sys
import time
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
import visualize_memory as viewer
import visualize_memory_analysis as analysis

ROOT = Path(__file__).parent.parent
TRAINED = str(ROOT / "benchmark/checkpoints/MiniGrid-MemoryS13-v0.pt")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make_checkpoint(path, script=ppo_lstm_cartpole_novel, change=None, **overrides):
    """A checkpoint of an agent that has not learned anything."""
    args = script.Args(**{"hidden_size": 9, "cuda": False, "num_threads": 1, **overrides})
    batched = script.make_envs(args, args.env_id, 1, "cpu")
    agent = script.Agent(batched.single_observation_space, int(batched.single_action_space.n), args)
    checkpoint = {"format": 1, "script": Path(script.__file__).name, "args": asdict(args), "agent": agent.state_dict()}
    if change:
        change(checkpoint)
    torch.save(checkpoint, path)
    return str(path)


def subject_of(path, **flags):
    return viewer.load_subject(viewer.Args(path, **flags))


def data_of(page):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', Path(page).read_text(), re.S).group(1)
    return json.loads(text)


# ---- the page, the pictures and the trace
@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Three episodes of the trained agent, with everything that can be written."""
    out = tmp_path_factory.mktemp("shown") / "new" / "folder"
    flags = ["--episodes", "3", "--frames", "--video", "--npz", "--analysis", "--analysis-episodes", "60", "--out", str(out)]
    assert viewer.main([TRAINED, *flags]) == 0
    return out


def test_what_is_written(shown):
    videos = {f"episode_{n}.mp4" for n in range(3)}
    others = {"memory.html", "frames", "trace.npz", "analysis.png", "analysis.json"}
    assert {path.name for path in shown.iterdir()} == videos | others
    assert not [path for path in shown.parent.iterdir() if path != shown]
    assert (shown / "memory.html").stat().st_size < 2e6
    assert (shown / "episode_0.mp4").stat().st_size > 2000


def test_page_is_self_contained(shown):
    page = (shown / "memory.html").read_text()
    assert "{{DATA}}" not in page
    code = page.replace(re.search(r'id="data">(.*?)</script>', page, re.S).group(1), "")
    assert not re.findall(r"(?:https?:)?//\w[\w.]*\.\w+/", code)
    assert not re.findall(r"<link[^>]+href=\"(?!data:)|<script[^>]+src=|@import|fetch\(", code)


def test_trace_replays(shown):
    """The recurrence, fed the whole trace at once, gives the states, logits and values that the page was made from."""
    trace, (agent, _) = np.load(shown / "trace.npz"), ppo_lstm_minigrid.load_agent(TRAINED)
    obs, dones = torch.from_numpy(trace["observations"]), torch.from_numpy(trace["dones"]).float()
    with torch.no_grad():
        logits, _ = agent.get_logits(obs, agent.initial_state(1), dones)
        values = agent.get_value(obs, agent.initial_state(1), dones)
        hidden, _ = agent.get_states(obs, agent.initial_state(1), dones)
    np.testing.assert_allclose(logits, trace["logits"], atol=1e-5)
    np.testing.assert_allclose(values, trace["values"], atol=1e-5)
    np.testing.assert_allclose(hidden, trace["states"][:, 0], atol=1e-5)
    assert (trace["actions"] == trace["logits"].argmax(-1)).all()
    ends = trace["terminated"] | trace["truncated"]
    assert ends.sum() == 3 and ends[-1] and (trace["dones"][1:] == ends[:-1]).all() and trace["dones"][0] == 1
    assert (np.diff(trace["episode"]) == ends[:-1]).all()


def test_page_holds_the_trace(shown):
    data, trace = data_of(shown / "memory.html"), np.load(shown / "trace.npz")
    assert [e["cue"] for e in data["episodes"]] == ["key", "ball", "key"]
    for n, e in enumerate(data["episodes"]):
        mine = {name: trace[name][trace["episode"] == n] for name in trace.files}
        T = len(mine["actions"])
        assert len(e["frames"]) == T + 1 and e["outcome"] == "success" and e["actions"] == mine["actions"].tolist()
        assert not e["seen"][0] and any(e["seen"]), "the cue is behind the agent, and it looks"
        states = np.frombuffer(base64.b64decode(e["states"]), np.int16).reshape(T, 2, -1) / 32767
        np.testing.assert_allclose(states * np.array(e["scale"])[:, None], mine["states"], atol=1e-3)
        assert np.abs(states).max((0, 2)) == pytest.approx([1, 1])  # the scale is the episode's largest magnitude
        policy = torch.distributions.Categorical(logits=torch.from_numpy(mine["logits"]))
        np.testing.assert_allclose(e["probs"], policy.probs, atol=1e-4)
        np.testing.assert_allclose(e["entropy"], policy.entropy(), atol=1e-3)
        np.testing.assert_allclose(e["values"], mine["values"], atol=1e-4)
    assert len(set(data["frames"])) == len(data["frames"])


def test_frames(shown):
    trace, folder = np.load(shown / "trace.npz"), shown / "frames" / "episode_1"
    states = trace["states"][trace["episode"] == 1]
    names = {f"{kind}_{t:04}.{end}" for t in range(len(states)) for kind, end in
             (("env", "png"), ("memory", "png"), ("memory", "json"))}  # fmt: skip
    assert {path.name for path in folder.iterdir()} == names
    content = json.loads((folder / "memory_0003.json").read_text())
    assert (content["step"], content["width"], content["height"]) == (3, 8, 4)
    np.testing.assert_allclose(content["values"], states[3, 0], atol=1e-5)
    picture = np.asarray(Image.open(folder / "memory_0003.png"))
    scale = np.abs(states[:, 0]).max()
    row, column = divmod(13, 8)
    expected = viewer.paint(states[3, 0, 13], scale)
    assert (picture[22 + 32 * row + 16, 32 * column + 16] == expected).all()


def test_colours_are_symmetric_and_shapes_roughly_square():
    below, zero, above = viewer.paint(np.array([-2.0, 0.0, 2.0]), 2.0)
    assert below[2] > below[0] and above[0] > above[2] and zero.min() > 230
    assert [viewer.heatmap_shape(n) for n in (1, 8, 9, 32, 37, 64, 128)] == [
        (1, 1), (2, 4), (3, 3), (4, 8), (6, 7), (8, 8), (8, 16)]  # fmt: skip
    assert np.isnan(viewer.on_grid(np.zeros(37))).sum() == 5


def test_another_env_and_sampled_actions(tmp_path):
    flags = ["--episodes", "2", "--npz", "--out", "out", "--env-id"]
    assert viewer.main([TRAINED, *flags, "MiniGrid-MemoryS17Random-v0"]) == 0
    assert data_of("out/memory.html")["trained_on"] == "MiniGrid-MemoryS13-v0"
    argmax = np.load("out/trace.npz")["actions"]
    assert viewer.main([TRAINED, *flags, "MiniGrid-MemoryS17Random-v0", "--seed", "2"]) == 0  # into the same folder
    other = np.load("out/trace.npz")["actions"]
    assert len(argmax) != len(other) or (argmax != other).any()
    make_checkpoint("new.pt", ppo_lstm_minigrid, env_id="MiniGrid-CustomMaze-S6-v0")
    assert viewer.main(["new.pt", "--episodes", "1", "--sampled", "--npz", "--out", "maze"]) == 0
    trace, data = np.load("maze/trace.npz"), data_of("maze/memory.html")
    assert (trace["actions"] != trace["logits"].argmax(-1)).any() and data["sampled"]
    goal = envs.GOAL in trace["observations"][0, :-1:3]
    assert data["episodes"][0]["seen"][0] == goal and data["what"] == "goal"


def test_memoryless_is_honoured(tmp_path):
    make_checkpoint("control.pt", memoryless=True)
    assert viewer.main(["control.pt", "--episodes", "1", "--npz", "--out", "out"]) == 0
    trace, subject = np.load("out/trace.npz"), subject_of("control.pt")
    assert data_of("out/memory.html")["memoryless"] and subject.agent.memoryless
    subject.agent.memoryless = False
    with torch.no_grad():
        obs = torch.from_numpy(trace["observations"])
        hidden, _ = subject.agent.get_states(obs, subject.agent.initial_state(1), torch.ones(len(obs)))
    np.testing.assert_allclose(hidden, trace["states"][:, 0], atol=1e-6)


def test_copy_of_a_script(tmp_path, monkeypatch, capsys):
    """Found beside the viewer or by --script, and its own Agent is used."""
    source = Path(ppo_lstm_cartpole_novel.__file__).read_text()
    Path("ppo_lstm_mine.py").write_text(source.replace("class Agent(nn.Module):", "class Agent(nn.Module):\n    mine = True\n"))
    make_checkpoint("mine.pt", change=lambda c: c.update(script="ppo_lstm_mine.py"))
    refused(["mine.pt"], "--script", capsys)
    assert subject_of("mine.pt", script="ppo_lstm_mine.py").agent.mine
    monkeypatch.setattr(viewer, "HERE", tmp_path)
    assert subject_of("mine.pt").agent.mine


# ---- when the cue is in view
def world_obs(env):
    return env.observation(env.unwrapped.gen_obs())


def test_cue_in_view_by_hand():
    """S7, 3x3 view: corridor row 3, cue at (1, 2), fork at (5, 3) with a key and a ball at (5, 1) and (5, 5)."""
    env = envs.make_single("MiniGrid-MemoryS7-v0", 3)
    world, size = env.unwrapped, 7
    env.reset(seed=0)
    world.agent_pos, world.agent_dir = (2, 3), 0
    LEFT, FORWARD = 0, 2
    moves = [(LEFT, True),  # (2, 3) up: the view is x 1 to 3, y 1 to 3
             (LEFT, True),  # left: x 0 to 2, y 2 to 4
             (FORWARD, True),  # (1, 3) left: x -1 to 1, y 2 to 4
             (LEFT, False),  # down: y 3 to 5
             (LEFT, True),  # right: x 1 to 3, y 2 to 4
             *[(FORWARD, False)] * 4]  # fmt: skip
    assert not analysis.cue_in_view(world_obs(env), 2, 3, 0, size)  # right: x 2 to 4
    for action, visible in moves:
        obs, *_ = env.step(action)
        assert analysis.cue_in_view(obs, *world.agent_pos, world.agent_dir, size) == visible, world.agent_pos
    assert tuple(world.agent_pos) == (5, 3)
    obs, *_ = env.step(LEFT)  # at the fork, facing up: one of the two objects is in view, and it is not the cue
    assert np.isin(obs[:-1:3], (5, 6)).any()
    assert not analysis.cue_in_view(obs, *world.agent_pos, world.agent_dir, size)
    variables = {"x": 5, "y": 3, "success_x": 5}
    assert analysis.at_fork("MiniGrid-MemoryS7-v0", variables)
    assert not analysis.at_fork("MiniGrid-MemoryS7-v0", {**variables, "x": 4})


@pytest.mark.parametrize("view", [3, 7])
def test_cue_in_view_against_minigrid(view):
    """Every state of S9: MiniGrid's own `agent_sees`, which asks the same of the real grid, agrees."""
    table = envs.memory_table(9, False, view)
    env = envs.make_single("MiniGrid-MemoryS9-v0", view)
    world = env.unwrapped
    env.reset(seed=0)
    v = {name: value.numpy() for name, value in table.variables.items()}
    mine = analysis.cue_in_view(table.obs.numpy(), v["x"], v["y"], v["direction"], 9)
    seen = {}
    for n in range(len(mine)):
        key = int(v["x"][n]), int(v["y"][n]), int(v["direction"][n])
        if key not in seen:
            world.agent_pos, world.agent_dir = key[:2], key[2]
            seen[key] = world.agent_sees(1, 3)
        assert mine[n] == seen[key], key
    assert 0 < mine.sum() < len(mine)
    whole = envs.memory_table(9, False, 0)
    v = whole.variables
    assert analysis.cue_in_view(whole.obs.numpy(), v["x"], v["y"], v["direction"], 9).all()


# ---- the analysis
@pytest.fixture(scope="module")
def rows():
    torch.set_num_threads(1)
    return analysis.collect(subject_of(TRAINED), 40, seed=3)


def test_rows_end_at_the_fork_and_count_the_lag(rows):
    rows, returns = rows
    assert returns.shape == (40,) and (returns > 0).mean() > 0.9
    for e in range(40):
        mine = rows["episode"] == e
        fork, lag, step = rows["fork"][mine], rows["lag"][mine], rows["step"][mine]
        assert fork.sum() == fork[-1] and (step == np.arange(len(step))).all()
        if fork[-1]:
            assert rows["x"][mine][-1] == rows["success_x"][mine][-1] and rows["y"][mine][-1] == 6
        for before, now in itertools.pairwise(lag):
            assert now == 0 or now == (before + 1 if before >= 0 else -1)


def test_folds_hold_out_whole_starts(rows):
    rows, _ = rows
    fold = analysis.make_folds(rows, 0)
    first = np.unique(rows["episode"], return_index=True)[1]
    start = rows["x"][first][rows["episode"]]
    for group in (rows["episode"], start):
        for value in np.unique(group):
            assert len(np.unique(fold[group == value])) == 1
    assert len(np.unique(fold)) == analysis.FOLDS


def test_probe_finds_what_is_there_and_nothing_else():
    rng, episode = np.random.default_rng(0), np.repeat(np.arange(100), 20)
    lag, fold = np.zeros(2000, int), analysis.make_folds({"episode": episode}, 0)
    planted = rng.normal(size=(2000, 3))
    X = planted @ rng.normal(size=(3, 30)) + 0.01 * rng.normal(size=(2000, 30))
    target = analysis.Target("planted", planted, lag, "")
    found = analysis.score(analysis.cross_validated(X, target, fold), target, episode, lag, 1, 0)[0]
    assert found["value"] > 0.99 and found["low"] <= found["value"] <= found["high"] and found["steps"] == 2000
    # a coin for each episode, and inputs that tell the episode: a split by step would find the coin
    coin = np.eye(2)[rng.integers(2, size=100)][episode]
    X = rng.normal(size=(100, 40))[episode] + 0.01 * rng.normal(size=(2000, 40))
    target = analysis.Target("coin", coin, lag, "", classes=True)
    found = analysis.score(analysis.cross_validated(X, target, fold), target, episode, lag, 1, 0)[0]
    assert found["low"] < 0.5 < found["high"] and found["high"] - found["low"] < 0.3
    leak = analysis.score(analysis.cross_validated(X, target, np.arange(2000) % 5), target, episode, lag, 1, 0)[0]
    assert leak["value"] > 0.8


def test_scores_by_hand():
    target = analysis.Target("number", np.array([[0.0], [1], [2], [3]] * 10), np.zeros(40, int), "")
    episode, bins = np.repeat(np.arange(20), 2), np.array([0, 0, 1, 1] * 10)
    prediction = target.values + np.array([[0.5], [0.5], [0], [0]] * 10)
    low, high = analysis.score(prediction, target, episode, bins, 2, 0)
    assert (low["value"], high["value"]) == pytest.approx((0.0, 1.0)) and low["episodes"] == 10
    assert analysis.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-3)  # Wilson's interval, worked by hand
    bins, stretches = analysis.lag_bins(np.array([-1, 0, 5, 16, 17, 40]))
    assert [stretches[b] for b in bins[:4]] == [(-1, -1), (0, 0), (5, 5), (16, 16)]
    assert all(low <= lag <= high for lag, (low, high) in ((17, stretches[bins[4]]), (40, stretches[bins[5]])))


def test_the_whole_analysis(shown):
    """The trained agent remembers: far above the observation once the cue is out of view; amnesia at the fork hurts."""
    result = json.loads((shown / "analysis.json").read_text())
    cue = result["targets"]["cue"]
    hidden, bare = ({s["from"]: s for s in cue["by_lag"][kind]} for kind in ("hidden", "observation"))
    assert hidden[8]["low"] > bare[8]["high"] and hidden[8]["episodes"] > 30
    assert hidden[-1]["low"] < 0.6 < 0.9 < hidden[8]["low"]  # before the cue was seen nobody knows it
    assert cue["at_fork"]["cell"]["value"] > 0.95 and cue["at_fork"]["observation"]["value"] < 0.7
    assert sorted(result["units"]["ranking"]) == list(range(32)) and len(result["units"]["R2"]["cue"]) == 32
    rates = {(v["units"], v["zeroed"]): v["success_rate"] for v in result["intervention"]["variants"]}
    assert rates["none", 0]["low"] > 0.8 > rates["best", 16]["high"]  # with all units zeroed this agent looks again
    assert rates["none", 0]["value"] > rates["all", 32]["value"]
    assert rates["best", 20]["high"] < rates["random", 20]["value"]
    picture = np.asarray(Image.open(shown / "analysis.png"))
    assert picture.shape[1] > 1000 and picture.std() > 10
    assert data_of(shown / "memory.html")["analysis"]["top"] == result["units"]["ranking"][:8]


def test_lesions_do_what_they_say():
    """On CartPole all units zeroed at every step is the memoryless control, episode by episode; none is no change."""
    subject = subject_of(make_checkpoint("new.pt"))
    subject.agent.actor.weight.data *= 300  # an opinion, so that the state matters
    N, H = 20, 9
    plain = analysis.roll_out(subject, N, 0)
    same = analysis.roll_out(subject, N, 0, lesion=lambda n, _: torch.ones(len(n), H))
    zeroed = analysis.roll_out(subject, N, 0, lesion=lambda n, _: torch.zeros(len(n), H))
    subject.agent.memoryless = True
    control = analysis.roll_out(subject, N, 0)
    assert (plain[1] == same[1]).all() and (zeroed[1] == control[1]).all() and (plain[1] != zeroed[1]).any()


def test_memory_lesion_strikes_once_at_the_fork(monkeypatch):
    subject, seen = subject_of(TRAINED), []

    def roll_out(_subject, episodes, seed, lesion):
        fork, off = np.full(episodes, 11), np.full(episodes, 5)
        n = np.arange(episodes)
        for x in (off, fork, fork, off, fork):
            seen.append(lesion(n, {"x": x, "y": np.full(episodes, 6), "success_x": fork}).numpy())
        return np.zeros(episodes), np.zeros(episodes)

    monkeypatch.setattr(analysis, "roll_out", roll_out)
    result = analysis.intervene(subject, 20, 0, list(range(32)))
    kept = seen[1].reshape(len(result["variants"]), 20, 32)
    assert all((other == 1).all() for n, other in enumerate(seen) if n != 1)
    for variant, mask in zip(result["variants"], kept, strict=True):
        assert (mask.sum(1) == 32 - variant["zeroed"]).all()
        if variant["units"] == "best":
            assert (mask[:, : variant["zeroed"]] == 0).all()
        if variant["units"] == "random":
            assert len(np.unique(mask, axis=0)) > 10  # other units in each episode


@pytest.mark.parametrize(("script", "env_id", "names"), [
    (ppo_lstm_cartpole_novel, "CartPoleNoVel-v0", {"cart velocity", "pole velocity"}),
    (ppo_lstm_minigrid, "MiniGrid-CustomMaze-S5-v0",
     {"position of the agent", "agent's way from its start", "position of the goal", "goal ahead and to the right"}),
])  # fmt: skip
def test_analysis_of_other_tasks(script, env_id, names, tmp_path):
    path = make_checkpoint("new.pt", script, env_id=env_id, hidden_size=4, encoder_size=4)
    assert viewer.main([path, "--episodes", "1", "--analysis", "--analysis-episodes", "20", "--out", "out"]) == 0
    result = json.loads(Path("out/analysis.json").read_text())
    assert result["targets"].keys() == names and "every step" in result["intervention"]["when"]


def test_goal_from_the_agent():
    rows = {"x": np.array([3, 3]), "y": np.array([3, 3]), "direction": np.array([0, 3]), "goal_x": np.array([5, 5]),
            "goal_y": np.array([4, 4]), "episode": np.arange(2), "lag": np.zeros(2, int), "step": np.zeros(2, int)}  # fmt: skip
    ahead_right = analysis.find_targets(rows)[-1].values
    assert ahead_right.tolist() == [[2, 1], [-1, 2]]  # facing right: 2 ahead, 1 to the right; facing up: 1 behind, 2 right


# ---- bad input
def refused(flags, says, capsys, script=viewer):
    capsys.readouterr()
    before = sorted(Path(".").rglob("*"))
    assert script.main(flags) == 2
    captured = capsys.readouterr()
    assert says in captured.err + captured.out and "Traceback" not in captured.err
    if captured.err.startswith("error:"):
        assert captured.err.count("\n") == 1
    assert sorted(Path(".").rglob("*")) == before, "something is left behind"


@pytest.mark.parametrize(("flags", "says"), [
    ("nowhere.pt", "nowhere.pt"),
    (".", "no file"),
    ("text.pt", "text.pt"),
    ("cut.pt", "cut.pt"),
    ("newer.pt", "newer"),
    ("shapes.pt", "shapes"),
    ("arguments.pt", "arguments"),
    ("no_weights.pt", "not a checkpoint"),
    ("nan.pt", "finite"),
    ("elsewhere.pt", "--script"),
    ("absolute.pt", "--script"),
    ("good.pt --script nowhere.py", "nowhere.py"),
    ("good.pt --script broken.py", "SyntaxError"),
    ("good.pt --script empty.py", "Agent"),
    ("good.pt --script leaves.py", "SystemExit"),
    ("good.pt --env-id NoSuchEnv-v0", "--env-id"),
    ("good.pt --env-id MiniGrid-MemoryS7-v0", "ppo_lstm_minigrid.py"),
    ("good.pt --env-id CartPole-v1", "observation"),
    ("good.pt --episodes 0", "--episodes"),
    ("good.pt --seed -1", "--seed"),
    ("good.pt --analysis --analysis-episodes 3", "--analysis-episodes"),
    ("good.pt --out text.pt", "--out"),
    ("good.pt --out text.pt/inside", "--out"),
    ("good.pt --out /proc/nowhere", "cannot write"),
    ("good.pt --no-such-flag", "--no-such-flag"),
    (f"{TRAINED} --env-id MiniGrid-ObstructedMaze-1Dl-v0", "observation or action"),
    ("obstructed.pt --analysis", "task_variables"),
], ids=lambda v: v.split("/")[-1])  # fmt: skip
def test_bad_input(flags, says, capsys, tmp_path):
    make_checkpoint("good.pt")
    if "obstructed" in flags:
        make_checkpoint("obstructed.pt", ppo_lstm_minigrid, env_id="MiniGrid-ObstructedMaze-1Dl-v0")
    Path("text.pt").write_text("hello, I am not a checkpoint\n")
    Path("cut.pt").write_bytes(Path("good.pt").read_bytes()[:1000])
    make_checkpoint("newer.pt", change=lambda c: c.update(format=99))
    make_checkpoint("shapes.pt", change=lambda c: c["args"].update(hidden_size=10))
    make_checkpoint("arguments.pt", change=lambda c: c["args"].update(no_such_argument=1))
    make_checkpoint("no_weights.pt", change=lambda c: c.update(agent=[1]))
    make_checkpoint("nan.pt", change=lambda c: c["agent"]["actor.bias"].fill_(float("nan")))
    Path("evil.py").write_text("open('evil', 'w')")
    make_checkpoint("elsewhere.pt", change=lambda c: c.update(script="../evil.py"))
    make_checkpoint("absolute.pt", change=lambda c: c.update(script=str(tmp_path / "evil.py")))
    Path("broken.py").write_text("def")
    Path("empty.py").write_text("")
    Path("leaves.py").write_text("raise SystemExit(0)")
    refused(flags.split(), says, capsys)


def test_failure_on_the_way_leaves_nothing(capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    make_checkpoint("good.pt")
    monkeypatch.setattr(viewer, "write_page", full)
    refused(["good.pt", "--episodes", "1", "--npz", "--out", "a/b/c"], "No space left", capsys)


def test_a_real_command(tmp_path):
    command = [sys.executable, ROOT / "visualize_memory.py", "nowhere.pt"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


# ---- in a real browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
def test_in_a_browser(shown, tmp_path):
    browser = Browser(tmp_path / "profile")
    try:
        look = "[frame, ...heats].map(c => c.toDataURL()).concat(document.body.dataset.step, document.body.dataset.episode)"
        browser.open(f"file://{shown}/memory.html")
        start = browser.js(f"{{const frame = $('frame'); {look}}}")
        assert start[3:] == ["0", "1"] and len(start[0]) > 2000

        def now():
            return browser.js(f"{{const frame = $('frame'); {look}}}")

        box = browser.js("(r => [r.left, r.top, r.width, r.height])($('slider').getBoundingClientRect())")
        y = box[1] + box[3] / 2
        browser.drag(box[0] + 8, y, box[0] + 0.6 * box[2], y)
        dragged = now()
        assert int(dragged[3]) > 3 and all(a != b for a, b in zip(start[:3], dragged[:3], strict=True))
        browser.key("ArrowRight", 39)
        assert int(now()[3]) == int(dragged[3]) + 1
        browser.key("ArrowDown", 40)
        assert now()[3:] == ["0", "2"] and now()[0] != start[0]
        browser.key("End", 35)
        assert browser.js("document.body.classList.contains('over')")
        browser.key("Home", 36)
        browser.key(" ", 32)
        time.sleep(0.7)
        browser.key(" ", 32)
        played = int(now()[3])
        assert 0 < played < 8
        browser.settle()
        assert int(now()[3]) == played, "paused"

        browser.open(f"file://{shown}/memory.html#episode=3&step=4")
        assert now()[3:] == ["4", "3"]
        for name, width, height, dark in (("laptop", 1280, 800, False), ("phone", 390, 844, False), ("dark", 1280, 800, True)):
            browser.open(f"file://{shown}/memory.html#episode=2&step=6", width, height, dark)
            assert browser.js("document.documentElement.scrollWidth") <= width, "nothing sticks out"
            assert browser.js("$('slider').getBoundingClientRect().bottom") <= height, "the slider is in view"
            browser.screenshot(tmp_path / f"{name}.png")
            assert np.asarray(Image.open(tmp_path / f"{name}.png")).std() > 20
        assert browser.errors == []
    finally:
        browser.close()


@pytest.mark.slow
def test_quick_enough(tmp_path):
    started = time.time()
    subprocess.run([sys.executable, ROOT / "visualize_memory.py", TRAINED, "--out", "out"], check=True)
    assert time.time() - started < 30
    assert Path("out/memory.html").stat().st_size < viewer.PAGE_LIMIT
    shutil.rmtree("out")
