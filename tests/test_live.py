"""The page in a real browser: its replay, and the agent that lives in it, which is the agent: its network, worlds,
gradients, and changes to its memory; what is undone is as if it had not been."""

import copy
import json
import shutil
import subprocess
import time
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

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync "
         "--disable-component-update --hide-scrollbars --remote-debugging-pipe --user-data-dir=")  # fmt: skip
PIPES = 'exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1'  # Chromium reads from 3 and writes to 4
MEMORY, MAZE, CARTPOLE = "MiniGrid-MemoryS13-v0", "MiniGrid-CustomMaze-S13-v0", "CartPoleNoVel-v0"
CHECKPOINTS, KINDS = episodes.ROOT / "benchmark/checkpoints", {5: "key", 6: "ball"}
TELL = """life => ({over: life.end !== null, steps: life.steps.map(s => ({obs: s.obs, h: [...s.h], c: [...s.c],
  logits: [...s.logits], value: s.value, action: s.action, reward: s.reward}))})"""
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


class Browser:
    """One tab of headless Chromium. `errors` gathers exceptions, console errors and warnings, failed requests."""

    def __init__(self, profile):
        command = ["sh", "-c", PIPES, CHROMIUM, *f"{FLAGS}{profile} about:blank".split()]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.messages, self.sent, self.errors, self.session = self.receive(), 0, [], {}
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        self.send("Runtime.enable")
        self.send("Log.enable")

    def receive(self):
        """Each message is JSON that ends in a zero byte."""
        rest = b""
        while data := self.process.stdout.read1(1 << 20):
            *whole, rest = (rest + data).split(b"\0")
            yield from map(json.loads, whole)

    def send(self, method: str, **params) -> dict:
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": params, **self.session}
        self.process.stdin.write(json.dumps(message).encode() + b"\0")
        self.process.stdin.flush()
        while (message := next(self.messages)).get("id") != self.sent:
            if message["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                self.errors.append(message)
        assert "error" not in message, (method, message)
        return message["result"]

    def open(self, url: str, width: int = 1280, height: int = 800) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        url = url.replace(".html", f".html?{self.sent}")  # what differs after the # alone would not load again
        self.send("Page.navigate", url=url)
        while self.js("document.readyState + location.href") != f"complete{url}":
            time.sleep(0.02)
        self.wait()

    def wait(self, ms: int = 150) -> None:
        """Also until pictures are decoded and drawn."""
        self.js(f"new Promise(done => setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), {ms}))")

    def js(self, expression: str):
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def key(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)
        self.wait()


def subject_of(name):
    return episodes.load_subject(str(CHECKPOINTS / f"{name}.pt"), None, None, 1)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.process.kill()
    browser.process.communicate()
    assert browser.errors == []


def open_modules(browser, folder, subject):
    """A page of the modules that do not draw, and a session of the agent -> a function: what happens in the page."""
    scripts = "".join(f"<script>{page.read(f'live/{name}.js')}</script>" for name in ("agent", "worlds", "life"))
    (folder / "modules.html").write_text(f"<!doctype html><title>modules</title>{scripts}", encoding="utf-8")
    browser.open(f"file://{folder}/modules.html")
    browser.js(f"session = new Session({json.dumps(live_data(subject, 1))}); tell = {TELL}; null")

    def live_in(options, steps, edits=(), moves=None, draw=None):
        plan = json.dumps({"options": options, "draw": draw, "moves": moves or {}, "edits": list(edits)})
        return browser.js(f"tell(life = new Life(session.agent, session.task, {plan}).extend({steps}))")

    return live_in


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


@pytest.mark.parametrize("name,size,view", [(MEMORY, 0, 3), (MEMORY, 257, 3), (MEMORY, 17, 7), (MAZE, 0, 0),
                                            (CARTPOLE, 0, 0)])  # fmt: skip
def test_same_world_same_agent(browser, tmp_path, name, size, view):
    """Argmax, drawn and steered steps, at least 450 in all, beside the Python environment and torch."""
    subject, done, seed = subject_of(name), 0, 0
    if view == 7:  # a corridor and a view that have no table in the page; the agent is not trained
        subject.args = args = replace(subject.args, view_size=view)
        subject.agent = subject.untrained = subject.script.Agent(*episodes.spaces_of(subject.script, args), args)
    live_in = open_modules(browser, tmp_path, subject)
    long = size and envs.FlatMiniGrid(MemoryEnv(size, agent_view_size=view))
    env = long or subject.script.make_env(subject.args, name)
    dtype = torch.uint8 if env.observation_space.dtype == np.uint8 else torch.float32
    while done < 450:
        (obs, options), way, over = begin(env, seed), seed % 3, [False]
        moves = dict(enumerate(np.random.default_rng(seed).integers(0, 2 if name == CARTPOLE else 3, 60).tolist()))
        told = live_in(options, 300, moves=moves if way == 1 else {}, draw=seed if way == 2 else None)
        for step in told["steps"]:
            np.testing.assert_allclose(step["obs"], obs, atol=0 if dtype == torch.uint8 else 1e-6)
            obs, reward, *over, _ = env.step(step["action"])
            assert step["reward"] == pytest.approx(reward, abs=1e-9)
        assert any(over) == told["over"], "it ends where the real one does"
        _, logits = check(subject.agent, told["steps"], dtype)
        assert way or [s["action"] for s in told["steps"]] == logits.argmax(1).tolist()
        done, seed = done + len(told["steps"]), seed + 1


def test_changes_and_gradients(browser, tmp_path):
    agent, options = subject_of(MEMORY).agent, {"size": 13, "cue": "ball", "upper": "key", "x": 4}
    live_in = open_modules(browser, tmp_path, subject_of(MEMORY))
    for kind in ("zero", "flip", "set", "hold", "keep", "wipe", "swap"):
        for on in (False, True)[kind == "hold" :]:
            units = None if kind in ("keep", "wipe", "swap") else [29, 4, 11]
            edit = {"kind": kind, "units": units, "from": 8, "on": on, "h": 0.5, "c": -1.25}
            steps = live_in(options, 40, [edit])["steps"]
            same = {t: s["action"] for t, s in enumerate(steps)}  # the other cue, the same moves
            other, _ = check(agent, live_in(options | {"cue": "key"}, len(steps), moves=same)["steps"])
            check(agent, steps, edit=edit, other=other)
    steps, x = live_in(options, 16)["steps"], torch.zeros(16, len(agent.encoder.scale))
    x.scatter_(1, torch.tensor([s["obs"] for s in steps]) + agent.encoder.offsets, 1)
    x = (x * agent.encoder.scale).requires_grad_()
    logits = agent.actor(nn.LSTM.forward(agent.lstm, agent.encoder.linear(x).relu())[0][-1])
    (logits[steps[15]["action"]] - logits.mean()).backward()
    found = browser.js("life.agent.backward(life.steps, life.steps[15].h, life.steps[15].action).map(d => [...d])")
    np.testing.assert_allclose(found, x.grad, atol=1e-5)


def test_what_cannot_live_says_why():
    assert "ObstructedMaze" in live_data(subject_of("MiniGrid-ObstructedMaze-1Dl-v0"), 1)["why"]
    subject = subject_of(MEMORY)
    real = type(subject.agent.encoder).forward
    subject.agent.encoder.forward = lambda x: real(subject.agent.encoder, x) * 1.01  # known modules, another function
    assert "network" in live_data(subject, 1)["why"]


def test_page(browser, tmp_path):
    """Two episodes played back; the guide, keys and links of the living agent; on a phone nothing sticks out."""
    assert viewer.main([str(CHECKPOINTS / f"{MEMORY}.pt"), "--episodes", "2", "--out", str(tmp_path)]) == 0
    url = f"file://{tmp_path}/memory.html"
    for part, width, height in (("", 390, 844), ("#episode=1", 390, 844), ("#episode=1", 1280, 800)):
        browser.open(url + part, width, height)
        assert browser.js("document.documentElement.scrollWidth") <= width

    def now():
        return browser.js("[$('frame'), ...heats].map(c => c.toDataURL()).concat(step, number + 1)")

    start = now()
    browser.js("$('slider').value = 6; $('slider').dispatchEvent(new Event('input'))")
    moved = now()
    assert start[3:] == [0, 1] and moved[3:] == [6, 1] and not {*start[:3]} & {*moved[:3]}
    for key, code, place in (("ArrowRight", 39, [7, 1]), ("ArrowDown", 40, [0, 2])):
        browser.key(key, code)
        assert now()[3:] == place and now()[0] != moved[0]
    browser.key(" ", 32)
    browser.wait(700)
    browser.key(" ", 32)
    played = now()[3]
    browser.wait()
    assert 0 < played < 8 and now()[3] == played, "played, and paused"

    ends = "[live.session.life, live.session.twin].map(life => life.end.outcome)"
    browser.open(url)
    assert browser.js("$('l-guide').innerText").count("the 16 marked units") == 2
    assert browser.js(ends) == ["success", "success"] and browser.js("live.ui.took") < 500
    browser.js("$('l-try').click()")
    assert browser.js(ends) == ["failure", "success"]
    browser.wait(3000)
    assert browser.js("[live.session.cursor, live.session.last()]") == [17, 17], "it played to the end"
    browser.js("$('l-undo').click()")
    assert browser.js(ends)[0] == "success"
    browser.key("ArrowUp", 38)
    browser.key("ArrowLeft", 37)
    assert [*browser.js("live.session.plan.moves").values()] == [2, 0]
    assert browser.js(FUZZ) == "same"
    look = "[live.session.cursor, ...live.session.now().h]"
    browser.open(url + "#live&cue=ball&x=4&upper=key&zero=29,4@11&flip=3@12-&set=7@12:0.5:-1.25&moves=9l,10r&t=13")
    first = browser.js(look)
    browser.wait(400)
    browser.open(url + browser.js("location.hash"))
    assert browser.js(look) == first and first[0] == 13
    browser.open(url + "#live&cue=dog&size=1e9&zero=999,x@3&x=200&t=-1&moves=2q&set=1@2:9:nan")
    expected = {"size": 13, "cue": "ball", "upper": "ball", "x": 10, "end": 10}
    assert browser.js("live.session.plan.options") == expected, "what makes no sense is left out"
