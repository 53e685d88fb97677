"""The agent that lives in the page is the agent: its network, worlds, gradients, and changes to its memory."""

import copy
import json

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from minigrid.envs import MemoryEnv
from torch import nn

import envs
from visualize_memory import episodes, page
from visualize_memory.live import live_data

MEMORY, MAZE, CARTPOLE = "MiniGrid-MemoryS13-v0", "MiniGrid-CustomMaze-S13-v0", "CartPoleNoVel-v0"
CHECKPOINTS, KINDS = episodes.ROOT / "benchmark/checkpoints", {5: "key", 6: "ball"}
TELL = """life => ({over: life.end !== null, steps: life.steps.map(s => ({obs: s.obs, h: [...s.h], c: [...s.c],
  logits: [...s.logits], value: s.value, action: s.action, reward: s.reward}))})"""
RULE = """t => t.rows.filter(([cue, x, y, direction, fork, right], n) => [0, 1, 2].some(action => {  // rows that differ
  const kinds = ["key", "ball"], options = {size: t.size, end: fork - 1, cue: kinds[cue], x: 1};
  options.upper = kinds[right < t.size >> 1 ? cue : 1 - cue];
  const world = Object.assign(new MemoryWorld({view: t.view}, options), {x, y, direction}), to = t.next[n][action];
  if (t.over[n] || String(world.observe()) !== String(t.obs[n])) return !t.over[n];
  world.step(action);
  const reached = [cue, world.x, world.y, world.direction, fork, right].join();
  return reached !== t.rows[to].join() || world.over !== ["", "failure", "success"][t.over[to]]; })).length"""


def subject_of(name):
    return episodes.load_subject(str(CHECKPOINTS / f"{name}.pt"), None, None, 1)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


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


@pytest.mark.parametrize("name,long", [(MEMORY, 0), (MEMORY, 257), (MAZE, 0), (CARTPOLE, 0)])
def test_same_world_same_agent(browser, tmp_path, name, long):
    """Argmax, drawn and steered steps, at least 450 of each, beside the Python environment and torch."""
    subject, done, seed = subject_of(name), 0, 0
    live_in = open_modules(browser, tmp_path, subject)
    env = envs.FlatMiniGrid(MemoryEnv(long, agent_view_size=3)) if long else subject.script.make_env(subject.args, name)
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


def test_changes_gradients_and_corridors(browser, tmp_path):
    """Each change; the gradient is autograd's; the page's rule for corridors gives every row of MiniGrid's table."""
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
    steps, x = live_in(options, 16)["steps"], torch.zeros(16, len(agent.encoder.weights))
    x.scatter_(1, torch.tensor([s["obs"] for s in steps]) + agent.encoder.offsets, 1)
    x = (x * agent.encoder.weights).requires_grad_()
    logits = agent.actor(nn.LSTM.forward(agent.lstm, agent.encoder.linear(x).relu())[0][-1])
    (logits[steps[15]["action"]] - logits.mean()).backward()
    found = browser.js("life.agent.backward(life.steps, life.steps[15].h, life.steps[15].action).map(d => [...d])")
    np.testing.assert_allclose(found, x.grad, atol=1e-5)
    for size, random, view in ((7, False, 3), (13, False, 5), (13, False, 0), (17, True, 3), (9, False, 9)):
        table = envs.memory_table(size, random, view)
        assert [*table.variables] == ["cue", "x", "y", "direction", "success_x", "success_y"]
        given = {"obs": table.obs, "next": table.next_state, "rows": torch.stack([*table.variables.values()], 1),
                 "over": table.terminal.int() + table.success.int()}
        given = {name: value.tolist() for name, value in given.items()} | {"size": size, "view": view}
        assert browser.js(f"({RULE})({json.dumps(given)})") == 0


def test_what_cannot_live_says_why():
    assert "ObstructedMaze" in live_data(subject_of("MiniGrid-ObstructedMaze-1Dl-v0"), 1)["why"]
    subject, other = subject_of(MEMORY), subject_of(MEMORY)
    real = type(subject.agent.encoder).forward
    subject.agent.encoder.forward = lambda x: real(subject.agent.encoder, x) * 1.01  # known modules, another function
    other.agent.actor = nn.Sequential(other.agent.actor, nn.Tanh())
    assert "network" in live_data(subject, 1)["why"] and "network" in live_data(other, 1)["why"]
