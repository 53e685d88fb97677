"""What the viewer shows is what the agent computed, the analysis does not fool itself, bad input is one line; and in a
real browser: the agent that lives in the page is the agent, its network, worlds, gradients, changes to its memory."""

import base64
import copy
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import envs
import ppo_lstm_cartpole_novel
import ppo_lstm_minigrid
from visualize_memory import __main__ as viewer
from visualize_memory import analysis, episodes, page
from visualize_memory.live import live_data

MEMORY, MAZE, CARTPOLE = "MiniGrid-MemoryS13-v0", "MiniGrid-CustomMaze-S13-v0", "CartPoleNoVel-v0"
SHIPPED = str(Path(envs.__file__).parent / "benchmark/checkpoints/%s.pt")
TRAINED = SHIPPED % MEMORY
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
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --allow-file-access-from-files --virtual-time-budget=20000 --dump-dom"
TRY = """<script>addEventListener("load", async () => {
  const wait = ms => new Promise(done => setTimeout(done, ms)), told = document.createElement("pre");
  const press = key => wait(99, document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true})));
  try { told.textContent = JSON.stringify(await (async () => { SCRIPT })()); } catch (error) { complain(error.stack); }
  document.body.append(Object.assign(told, {id: "told"}));
})</script>"""
WATCH = """<script>
  const complain = text => { document.documentElement.dataset.complaint = text; };
  addEventListener("error", event => complain(event.message));
  console.error = console.warn = complain;
  requestAnimationFrame = draw => setTimeout(draw, 16);  // which does not always come where time is not real
  </script>"""
LIVES = """<script>
  const lives = (plan, n) => new Life(session.agent, session.task, {edits: [], moves: {}, ...plan}).extend(n);
  const tell = life => ({over: life.end !== null, steps: life.steps.map(s => ({obs: s.obs, h: [...s.h], c: [...s.c],
    logits: [...s.logits], value: s.value, action: s.action, reward: s.reward}))});
  const session = new Session(DATA);</script>"""


def checkpoint(path="new.pt", script=ppo_lstm_cartpole_novel, tail="", bias=0.0, **overrides):
    """A checkpoint of an agent that has not learned anything; of copy.py, which has `tail` at its end."""
    if tail:
        Path("copy.py").write_text(Path(script.__file__).read_text(encoding="utf-8") + tail, "utf-8")
        script = episodes.load_script("", "copy.py")
    args = script.Args(hidden_size=9, encoder_size=4, hidden_layer_size=0, **overrides)
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
    for a, b in zip(noted, (hidden, agent.actor(hidden), agent.value(hidden)), strict=True):
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
    a, b = ([e.actions.tolist() for e in episodes.play_episodes(subject, 2, seed, False)] for seed in (1, 2))
    assert a != b and subject.about["trained_on"] == "MiniGrid-MemoryS13-v0"
    checkpoint(script=ppo_lstm_minigrid, env_id="MiniGrid-CustomMaze-S6-v0", memoryless=True)
    result, trace, data, _ = run("new.pt --episodes 1 --sampled --analysis-episodes 20")
    assert {"agent's way from its start", "position of the goal", "goal ahead and to the right"} < {*result["targets"]}
    assert (trace["actions"] != trace["logits"].argmax(-1)).any() and data["sampled"] and data["memoryless"]
    assert data["what"] == "goal" and data["episodes"][0]["seen"][0] == (envs.GOAL in trace["observations"][0, :-1:3])


def test_environment_and_network_of_a_copy():
    """Nothing renders: the observation is drawn. Its `cue` is not Memory's; what the step decides is not to be told."""
    checkpoint(tail=COPY + NO_CELL, env_id="Corridor-v0")
    result, trace, *_ = run("new.pt --script copy.py --episodes 1 --frames --analysis-episodes 20")
    assert trace["states"][:, 0].any() and not trace["states"][:, 1].any()
    assert np.asarray(Image.open("out/frames/episode_0/env_0000.png")).std() > 10
    cue, step = result["targets"]["cue"], result["targets"]["step"]
    assert cue["metric"] == "accuracy" and cue["by_lag"]["observation"][0]["value"] == 1
    assert not any(step["by_lag"].values()) and "step: nothing to tell" in result["summary"][2]


def test_a_real_command_on_a_console_without_letters():
    locale = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, Path(viewer.__file__).parent, checkpoint(), "--analysis", "--analysis-episodes=20"]
    done = subprocess.run(command, capture_output=True, env=os.environ | locale)
    assert (done.returncode, done.stderr) == (0, b"") and b" R?: " in done.stdout
    assert Path("memory/CartPoleNoVel-v0/memory.html").exists()


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
    # by hand
    target = analysis.Target("number", np.array([[0.0], [1], [2], [3]] * 10), np.zeros(40, int), "")
    prediction = target.values + np.array([[0.5], [0.5], [0], [0]] * 10)
    (_, low), (_, high) = analysis.score(prediction, target, np.arange(40) // 2, np.arange(40) // 2 % 2, 0)
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
    assert hidden[-1]["low"] < 0.6 < 0.8 < hidden[8]["low"] > bare[8]["high"]
    assert cue["at_fork"]["cell"]["value"] > 0.95 and cue["at_fork"]["observation"]["value"] < 0.7
    assert rates["none", 0]["low"] > 0.8 > rates["best", 16]["high"]
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
    checkpoint("copied.pt", tail=COPY + ONE_TENSOR)
    Path("text.pt").write_text("open('evil', 'w')\n+")
    before = sorted(Path(".").rglob("*"))
    for flags, says in (("nowhere.pt", "nowhere.pt"), ("copied.pt", "--script"), ("new.pt --episodes 0", "--episodes"),
        ("new.pt --script text.pt", "cannot import"), ("copied.pt --script copy.py", "(h, c)"),
        ("new.pt --env-id NoSuchEnv-v0", "--env-id"), ("new.pt --env-id CartPole-v1", "observation"),
        ("nan.pt", "finite"), ("new.pt --seed 9999999999", "--seed"), ("new.pt --out text.pt/inside", "--out"),
        (SHIPPED % "MiniGrid-ObstructedMaze-1Dl-v0" + " --analysis", "task_variables")):  # fmt: skip
        assert viewer.main(flags.split()) == 2
        out, err = capsys.readouterr()
        assert says in err and err.startswith("error: ") and err.count("\n") == 1 and not out, flags
        assert sorted(Path(".").rglob("*")) == before, f"{flags} leaves something behind"


def in_browser(path, script, part=""):
    """What an async function of this body returns in the page `path`; waiting takes no time; nothing complains."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH")
    text = path.read_text(encoding="utf-8").replace("<title>", WATCH + "<title>", 1) + TRY.replace("SCRIPT", script)
    path.with_name("tried.html").write_text(text, encoding="utf-8")
    command = f"{CHROMIUM} {FLAGS} --user-data-dir={path.parent}/profile file://{path.parent}/tried.html{part}"
    dom = subprocess.run(command.split(), capture_output=True, text=True, encoding="utf-8", timeout=100).stdout
    assert " data-complaint=" not in dom, dom[:2000]
    return json.loads(re.search('<pre id="told">(.*?)</pre>', dom)[1].replace("&amp;", "&"))


def modules(folder, subject):
    """A page of the modules that do not draw, with a session of the agent."""
    scripts = "".join(f"<script>{page.read(f'live/{name}.js')}</script>" for name in ("agent", "worlds", "life"))
    text = f"<!doctype html><title>modules</title><body>{scripts}{LIVES}"
    (folder / "modules.html").write_text(text.replace("DATA", json.dumps(live_data(subject, 1))), encoding="utf-8")
    return folder / "modules.html"


def begin(env, seed):
    """Reset the real environment -> its first observation, and the page's options for the same start."""
    (obs, _), world = env.reset(seed=seed), env.unwrapped
    if not hasattr(world, "grid"):
        return obs, {"start": [float(v) for v in world.state]}
    cells, (x, y), size = world.grid.encode()[..., 0], map(int, world.agent_pos), world.width
    if not hasattr(world, "success_pos"):
        return obs, {"size": size, "cells": cells.ravel().tolist(), "x": x, "y": y}
    end = int(world.success_pos[0]) - 1
    cue, upper = ("key" if cells[at] == 5 else "ball" for at in ((1, size // 2 - 1), (end + 1, size // 2 - 2)))
    return obs, {"size": size, "end": end, "cue": cue, "upper": upper, "x": x}


@torch.no_grad()
def check(agent, steps, edit=None, other=()):
    """The page's steps are the agent's, its memory changed at the same steps -> states (T, 2, H), logits (T, A)."""
    state, rows, held, H = agent.initial_state(1), [], None, agent.lstm.hidden_size
    keeping = copy.deepcopy(agent)
    keeping.lstm.bias_ih_l0[H : 2 * H] = 1e6  # its forget gate is always 1
    for t, step in enumerate(steps):
        now = edit and (edit["from"] == t or (edit["on"] and edit["from"] < t))
        reader = keeping if now and edit["kind"] == "keep" else agent
        _, state = reader.get_states(torch.tensor([step["obs"]]), state, torch.tensor([float(t == 0)]))
        state = torch.stack(state).clone()
        if now:
            units, row = edit["units"] or slice(None), state[:, 0, 0]
            held = row.clone() if held is None else held
            new = {"zero": 0 * row, "wipe": 0 * row, "flip": -row, "hold": held, "keep": row,
                   "set": torch.tensor([[edit["h"]], [edit["c"]]]).expand(2, H), "swap": [*other, *[row] * 40][t]}
            row[:, units] = new[edit["kind"]][:, units]
        rows.append((state[:, 0, 0], agent.actor(state[0, 0, 0]), agent.value(state[0, 0, 0])))
    states, logits, values = (torch.stack(column) for column in zip(*rows, strict=True))
    for name, real in {"h": states[:, 0], "c": states[:, 1], "logits": logits, "value": values}.items():
        np.testing.assert_allclose([s[name] for s in steps], real, atol=1e-4, rtol=5e-6, err_msg=name)
    return states, logits


@pytest.mark.parametrize("name,env_id,view,seeds", [
    (MEMORY, MEMORY, 3, 30), (MEMORY, "MiniGrid-MemoryS17Random-v0", 7, 3), (MAZE, MAZE, 0, 18),
    (CARTPOLE, CARTPOLE, 0, 6), pytest.param(MEMORY, "MiniGrid-MemoryS257-v0", 3, 4, marks=pytest.mark.slow)])
def test_same_world_same_agent(tmp_path, name, env_id, view, seeds):
    """Argmax, drawn and steered steps, at least 450 in all, beside the Python environment and torch."""
    subject, plans = episodes.load_subject(SHIPPED % name, None, None, 1), []
    if view == 7:  # a corridor and a view that have no table in the page; the agent is not trained
        subject.args = args = replace(subject.args, view_size=view, hidden_layer_size=5)
        subject.agent = subject.untrained = subject.script.Agent(*episodes.spaces_of(subject.script, args), args)
    env = subject.script.make_env(subject.args, env_id)
    for seed in range(seeds):
        obs, options = begin(env, seed)
        moves = np.random.default_rng(seed).integers(0, min(3, env.action_space.n), 60 * (seed % 3 == 1)).tolist()
        plans.append({"options": options, "moves": dict(enumerate(moves)), "draw": seed if seed % 3 == 2 else None})
    told = in_browser(modules(tmp_path, subject), f"return {json.dumps(plans)}.map(plan => tell(lives(plan, 300)))")
    assert sum(len(life["steps"]) for life in told) >= 450
    for seed, life in enumerate(told):
        obs, over = begin(env, seed)[0], [False]
        for step in life["steps"]:
            np.testing.assert_allclose(step["obs"], obs, atol=1e-6)
            obs, reward, *over, _ = env.step(step["action"])
            assert step["reward"] == pytest.approx(reward, abs=1e-9)
        assert any(over) == life["over"], "it ends where the real one does"
        _, logits = check(subject.agent, life["steps"])
        assert seed % 3 or [s["action"] for s in life["steps"]] == logits.argmax(1).tolist()


def test_changes_and_gradients(tmp_path):
    subject, whole = episodes.load_subject(TRAINED, None, None, 1), ("keep", "wipe", "swap")
    agent, plan = subject.agent, {"options": {"size": 13, "cue": "ball", "upper": "key", "x": 4}}
    edits = [{"kind": kind, "units": None if kind in whole else [29, 4, 11], "from": 8, "on": on, "h": 0.5, "c": -1.25}
             for kind in ("zero", "flip", "set", "hold", *whole) for on in (False, True) if on or kind != "hold"]
    pairs, steps, gradient = in_browser(modules(tmp_path, subject), f"""
        const plan = {json.dumps(plan)}, key = {{...plan.options, cue: "key"}};  // the other cue, the same moves
        const pairs = {json.dumps(edits)}.map(edit => lives({{...plan, edits: [edit]}}, 40)).map(life =>
          [tell(life), tell(lives({{options: key, moves: life.steps.map(s => s.action)}}, life.steps.length))]);
        const life = lives(plan, 16), last = life.steps[15];
        return [pairs, tell(life).steps, life.agent.backward(life.steps, last.h, last.action).map(d => [...d])];""")
    for edit, (changed, other) in zip(edits, pairs, strict=True):
        check(agent, changed["steps"], edit=edit, other=check(agent, other["steps"])[0])
    x = torch.zeros(16, len(agent.encoder.scale))
    x.scatter_(1, torch.tensor([s["obs"] for s in steps]) + agent.encoder.offsets, 1)
    x = (x * agent.encoder.scale).requires_grad_()
    logits = agent.actor(torch.nn.LSTM.forward(agent.lstm, agent.encoder.linear(x).relu())[0][-1])
    (logits[steps[15]["action"]] - logits.mean()).backward()
    np.testing.assert_allclose(gradient, x.grad, atol=1e-5)
    real = agent.encoder.forward  # what cannot live says why: known modules of another function, another world
    agent.encoder.forward = lambda x: real(x) * 1.01
    other = episodes.load_subject(SHIPPED % "MiniGrid-ObstructedMaze-1Dl-v0", None, None, 1)
    assert "network" in live_data(subject, 1)["why"] and "ObstructedMaze" in live_data(other, 1)["why"]


def test_page(tmp_path):
    """Two episodes played back; the guide, keys and links of the living agent; on a phone nothing sticks out."""
    assert viewer.main([TRAINED, "--episodes", "2", "--out", str(tmp_path)]) == 0
    path, look = tmp_path / "memory.html", "return [location.hash, live.session.cursor, ...live.session.now().h]"
    start, moved, right, down, played, paused, later, phone = in_browser(path, """
        const all = [], phone = document.createElement("iframe");
        for (const key of ["", "slide", "ArrowRight", "ArrowDown", " ", " ", ""]) {
          $("slider").value = key === "slide" ? 6 : $("slider").value;
          await (key === "slide" ? $("slider").dispatchEvent(new Event("input")) : press(key));
          await wait(500);
          all.push([step, number + 1, ...[$("frame"), ...heats].map(c => c.toDataURL())]);
        }
        document.body.append(Object.assign(phone, {width: 390, height: 844, src: "memory.html"}));
        await new Promise(done => phone.onload = done);
        return [...all, phone.contentDocument.documentElement.scrollWidth];""", "#episode=1")
    assert (start[:2], moved[:2], right[:2], down[:2]) == ([0, 1], [6, 1], [7, 1], [0, 2])
    assert not {*start[2:]} & {*moved[2:]} and played[0] > 0 and paused == later and phone <= 390
    told = in_browser(path, """
        const { session } = live, reach = each => each.go(each.cursor, 1e9);
        const ends = () => (reach(session), [session.life, session.twin].map(l => l.end.outcome)), all = [ends()];
        for (const button of ["l-try", "l-undo"]) {
          $(button).click(), await wait(3000);
          all.push(ends(), session.cursor === session.last());
        }
        await press("ArrowUp");
        await press("ArrowLeft");
        all.push(Object.values(session.plan.moves));
        // 200 changes, moves and undos; after each, the address gives a fresh session the same lives
        const fresh = new session.constructor(JSON.parse($("live-data").textContent));
        const tell = x => JSON.stringify([x.life, x.twin].map(l => [l.end, l.steps.map(s => [s.h, s.action])]));
        const draw = below => (draw.seed = (draw.seed ?? 1) * 48271 % 2147483647) % below;
        for (let n = 0; n < 200; n++) {
          session.go(draw(20));
          const kind = ["zero", "flip", "hold", "set", "swap", "wipe", "keep"][draw(7)], what = draw(10);
          const units = ["swap", "wipe", "keep"].includes(kind) ? null : [draw(32), draw(32)];
          if (what < 6) session.edit(kind, units, what < 2, kind === "set" ? {h: 0.5} : {});
          else if (what < 8) session.steer(draw(3));
          else session.undo();
          if (session.plan.edits.length > 5) session.begin(session.defaults());
          const { plan, t } = live.fromAddress(live.toAddress(session), fresh);
          fresh.begin(plan, t);
          [session, fresh].forEach(reach);
          if (tell(session) !== tell(fresh)) all.push(live.toAddress(session));
        }
        return all;""")
    assert told == [["success"] * 2, ["failure", "success"], True, ["success"] * 2, told[4], [2, 0]]
    link = "#live&cue=ball&x=4&upper=key&zero=29,4@11&flip=3@12-&set=7@12:0.5:-1.25&moves=9l,10r&t=13"
    first = in_browser(path, f"await wait(400); {look}", link)
    assert first == in_browser(path, look, first[0]) and first[1] == 13
    options = in_browser(path, "return live.session.plan.options",
                         "#live&cue=dog&size=1e9&zero=999,x@3&x=200&t=-1&moves=2q&set=1@2:9:nan")  # fmt: skip
    assert options == {"size": 13, "cue": "ball", "upper": "ball", "x": 10, "end": 10}, "nonsense is left out"
