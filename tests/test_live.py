"""The page in a real browser: its replay, and the agent that lives in it, which is the agent: its network, worlds,
gradients, and changes to its memory; what is undone is as if it had not been."""

import copy
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from minigrid.envs import MemoryEnv
from torch import nn

import envs
from visualize_memory import __main__ as viewer
from visualize_memory import episodes, page
from visualize_memory.live import live_data

MEMORY, MAZE, CARTPOLE = "MiniGrid-MemoryS13-v0", "MiniGrid-CustomMaze-S13-v0", "CartPoleNoVel-v0"
CHECKPOINTS, KINDS = episodes.ROOT / "benchmark/checkpoints", {5: "key", 6: "ball"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = """--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --hide-scrollbars
  --allow-file-access-from-files --window-size=1280,800 --virtual-time-budget=20000 --dump-dom""".split()
TRY = """<script>addEventListener("load", async () => {
  const wait = ms => new Promise(done => setTimeout(done, ms)), told = document.createElement("pre");
  const press = key => wait(99, document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true})));
  try { told.textContent = JSON.stringify(await (async () => { SCRIPT })()); } catch (error) { complain(error.stack); }
  told.id = "told";
  document.body.append(told);
})</script>"""
WATCH = """<script>
  const complain = text => { document.documentElement.dataset.complaint = text; };
  addEventListener("error", event => complain(event.message));
  console.error = console.warn = complain;</script>"""
LIVES = """<script>
  const lives = (plan, n) => life = new Life(session.agent, session.task, {edits: [], moves: {}, ...plan}).extend(n);
  const tell = life => ({over: life.end !== null, steps: life.steps.map(s => ({obs: s.obs, h: [...s.h], c: [...s.c],
    logits: [...s.logits], value: s.value, action: s.action, reward: s.reward}))});
  const session = new Session(DATA);
  let life;</script>"""
FUZZ = """(() => {  // 200 changes, moves and undos; after each, the address gives a fresh session the same lives
  const { session } = live, fresh = new session.constructor(JSON.parse($("live-data").textContent));
  const tell = of => JSON.stringify([of.life, of.twin].map(l => [l.end?.outcome, l.steps.map(s => [s.h, s.action])]));
  let seed = 1;
  const draw = n => (seed = seed * 48271 % 2147483647) % n;
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
    for (const each of [session, fresh]) each.go(each.cursor, 1e9);
    if (tell(session) !== tell(fresh)) return live.toAddress(session);
  }
  return "same";
})()"""


def in_browser(path, script, part=""):
    """What an async function of this body returns in the page `path`; waiting takes no time; nothing complains."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH")
    text = path.read_text(encoding="utf-8").replace("<title>", WATCH + "<title>", 1) + TRY.replace("SCRIPT", script)
    path.with_name("tried.html").write_text(text, encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={path.parent}/profile", f"file://{path.parent}/tried.html{part}"]
    dom = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=100).stdout
    assert " data-complaint=" not in dom, dom[:2000]
    return json.loads(html.unescape(re.search('<pre id="told">(.*?)</pre>', dom)[1]))


def subject_of(name):
    return episodes.load_subject(str(CHECKPOINTS / f"{name}.pt"), None, None, 1)


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
    cue, upper = KINDS[int(cells[1, size // 2 - 1])], KINDS[int(cells[end + 1, size // 2 - 2])]
    return obs, {"size": size, "end": end, "cue": cue, "upper": upper, "x": x}


@torch.no_grad()
def check(agent, steps, dtype=torch.uint8, edit=None, other=()):
    """The page's steps are the agent's, its memory changed at the same steps -> states (T, 2, H), logits (T, A)."""
    state, rows, held, H = agent.initial_state(1), [], None, agent.lstm.hidden_size
    keeping = copy.deepcopy(agent)  # its forget gate is always 1
    for name, value in (("weight_ih_l0", 0), ("weight_hh_l0", 0), ("bias_ih_l0", 50)):
        getattr(keeping.lstm, name)[H : 2 * H] = value
    for t, step in enumerate(steps):
        now = edit and (edit["from"] == t or (edit["on"] and edit["from"] < t))
        reader = keeping if now and edit["kind"] == "keep" else agent
        _, state = reader.get_states(torch.tensor([step["obs"]], dtype=dtype), state, torch.tensor([float(t == 0)]))
        state = torch.stack(state).clone()
        if now:
            units, row = edit["units"] or slice(None), state[:, 0, 0]
            held = row.clone() if held is None else held
            new = {"zero": 0 * row, "wipe": 0 * row, "flip": -row, "hold": held, "keep": row,
                   "set": torch.tensor([[edit["h"]], [edit["c"]]]).expand(2, H), "swap": [*other, *[row] * 40][t]}
            row[:, units] = new[edit["kind"]][:, units]
        rows.append((state[:, 0, 0], agent.actor(state[0, 0, 0]), agent.critic(state[0, 0, 0])[0]))
    states, logits, values = (torch.stack(column) for column in zip(*rows, strict=True))
    for name, real in {"h": states[:, 0], "c": states[:, 1], "logits": logits, "value": values}.items():
        np.testing.assert_allclose([s[name] for s in steps], real, atol=1e-4, rtol=5e-6, err_msg=name)
    return states, logits


@pytest.mark.parametrize("name,size,view,seeds", [
    (MEMORY, 0, 3, 30), (MEMORY, 257, 3, 4), (MEMORY, 17, 7, 3), (MAZE, 0, 0, 18), (CARTPOLE, 0, 0, 6)])  # fmt: skip
def test_same_world_same_agent(tmp_path, name, size, view, seeds):
    """Argmax, drawn and steered steps, at least 450 in all, beside the Python environment and torch."""
    subject, plans, first = subject_of(name), [], []
    if view == 7:  # a corridor and a view that have no table in the page; the agent is not trained
        subject.args = args = replace(subject.args, view_size=view)
        subject.agent = subject.untrained = subject.script.Agent(*episodes.spaces_of(subject.script, args), args)
    long = size and envs.FlatMiniGrid(MemoryEnv(size, agent_view_size=view))
    env = long or subject.script.make_env(subject.args, name)
    dtype = torch.uint8 if env.observation_space.dtype == np.uint8 else torch.float32
    for seed in range(seeds):
        obs, options = begin(env, seed)
        moves = np.random.default_rng(seed).integers(0, 2 if name == CARTPOLE else 3, 60 * (seed % 3 == 1)).tolist()
        plans.append({"options": options, "moves": dict(enumerate(moves)), "draw": seed if seed % 3 == 2 else None})
    told = in_browser(modules(tmp_path, subject), f"return {json.dumps(plans)}.map(plan => tell(lives(plan, 300)))")
    assert sum(len(life["steps"]) for life in told) >= 450
    for seed, life in enumerate(told):
        obs, over = begin(env, seed)[0], [False]
        for step in life["steps"]:
            np.testing.assert_allclose(step["obs"], obs, atol=0 if dtype == torch.uint8 else 1e-6)
            obs, reward, *over, _ = env.step(step["action"])
            assert step["reward"] == pytest.approx(reward, abs=1e-9)
        assert any(over) == life["over"], "it ends where the real one does"
        _, logits = check(subject.agent, life["steps"], dtype)
        assert seed % 3 or [s["action"] for s in life["steps"]] == logits.argmax(1).tolist()


def test_changes_and_gradients(tmp_path):
    agent, edits, plan = subject_of(MEMORY).agent, [], {"options": {"size": 13, "cue": "ball", "upper": "key", "x": 4}}
    for kind in ("zero", "flip", "set", "hold", "keep", "wipe", "swap"):
        units = None if kind in ("keep", "wipe", "swap") else [29, 4, 11]
        edits += [{"kind": kind, "units": units, "from": 8, "on": on, "h": 0.5, "c": -1.25}
                  for on in (False, True)[kind == "hold" :]]  # fmt: skip
    pairs, steps, gradient = in_browser(modules(tmp_path, subject_of(MEMORY)), f"""
        const plan = {json.dumps(plan)}, key = {{...plan.options, cue: "key"}};  // the other cue, the same moves
        const pairs = {json.dumps(edits)}.map(edit => [lives({{...plan, edits: [edit]}}, 40), life]).map(([life]) =>
          [tell(life), tell(lives({{options: key, moves: life.steps.map(s => s.action)}}, life.steps.length))]);
        const {{steps, agent}} = lives(plan, 16), last = steps[15];
        return [pairs, tell(life).steps, agent.backward(steps, last.h, last.action).map(d => [...d])];""")
    for edit, (changed, other) in zip(edits, pairs, strict=True):
        check(agent, changed["steps"], edit=edit, other=check(agent, other["steps"])[0])
    x = torch.zeros(16, len(agent.encoder.scale))
    x.scatter_(1, torch.tensor([s["obs"] for s in steps]) + agent.encoder.offsets, 1)
    x = (x * agent.encoder.scale).requires_grad_()
    logits = agent.actor(nn.LSTM.forward(agent.lstm, agent.encoder.linear(x).relu())[0][-1])
    (logits[steps[15]["action"]] - logits.mean()).backward()
    np.testing.assert_allclose(gradient, x.grad, atol=1e-5)


def test_what_cannot_live_says_why():
    assert "ObstructedMaze" in live_data(subject_of("MiniGrid-ObstructedMaze-1Dl-v0"), 1)["why"]
    subject = subject_of(MEMORY)
    real = type(subject.agent.encoder).forward
    subject.agent.encoder.forward = lambda x: real(subject.agent.encoder, x) * 1.01  # known modules, another function
    assert "network" in live_data(subject, 1)["why"]


def test_page(tmp_path):
    """Two episodes played back; the guide, keys and links of the living agent; on a phone nothing sticks out."""
    assert viewer.main([str(CHECKPOINTS / f"{MEMORY}.pt"), "--episodes", "2", "--out", str(tmp_path)]) == 0
    path, look = tmp_path / "memory.html", "return [location.hash, live.session.cursor, ...live.session.now().h]"
    start, moved, right, down, played, paused, later, phone = in_browser(path, """
        const all = [], phone = document.createElement("iframe");
        for (const key of ["", "slide", "ArrowRight", "ArrowDown", " ", " ", ""]) {
          $("slider").value = key === "slide" ? 6 : $("slider").value;
          $("slider").dispatchEvent(new Event("input"));
          await press(key);
          await wait(500);
          all.push([step, number + 1, ...[$("frame"), ...heats].map(c => c.toDataURL())]);
        }
        document.body.append(phone);
        Object.assign(phone, {width: 390, height: 844, src: "memory.html"});
        await new Promise(done => phone.onload = done);
        return [...all, phone.contentDocument.documentElement.scrollWidth];""", "#episode=1")
    assert (start[:2], moved[:2], right[:2], down[:2]) == ([0, 1], [6, 1], [7, 1], [0, 2])
    assert not {*start[2:]} & {*moved[2:]} and 0 < played[0] and paused == later and phone <= 390
    told = in_browser(path, """
        const ends = () => [live.session.life, live.session.twin].map(life => life.end.outcome), all = [ends()];
        $("l-try").click();
        all.push(ends());
        await wait(3000);
        all.push(live.session.cursor === live.session.last());
        $("l-undo").click();
        all.push(ends());
        await press("ArrowUp");
        await press("ArrowLeft");
        return [...all, Object.values(live.session.plan.moves), FUZZ];""".replace("FUZZ", FUZZ))
    assert told == [["success"] * 2, ["failure", "success"], True, ["success"] * 2, [2, 0], "same"]
    link = "#live&cue=ball&x=4&upper=key&zero=29,4@11&flip=3@12-&set=7@12:0.5:-1.25&moves=9l,10r&t=13"
    first = in_browser(path, f"await wait(400); {look}", link)
    assert first == in_browser(path, look, first[0]) and first[1] == 13
    options = in_browser(path, "return live.session.plan.options",
                         "#live&cue=dog&size=1e9&zero=999,x@3&x=200&t=-1&moves=2q&set=1@2:9:nan")  # fmt: skip
    assert options == {"size": 13, "cue": "ball", "upper": "ball", "x": 10, "end": 10}, "nonsense is left out"
