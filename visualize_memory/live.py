"""What the live page needs: the agent's weights, its world, which units tell most, and a map of its hidden states.

`live_data` gives it as one dict for JSON. Where the agent cannot live in the page (another world, a network of one's
own) the dict is {"why": one sentence}, and the page has its replay only. The page's modules are in the folder `live`.

Shapes: B steps of a check, D = observation size, F inputs of the network, H = hidden_size, A = actions.
"""

import base64
import re

import gymnasium as gym
import numpy as np
import torch

import envs
from visualize_memory.analysis import collect, find_targets
from visualize_memory.episodes import kind_of

PARTS = {"Agent", "Encoder", "LSTM", "Linear", "Sequential", "ReLU"}
LAYERS = r"encoder\.linear\.(weight|bias)|lstm\.(weight|bias)_[ih]h_l0|(actor|critic)(\.[02])?\.(weight|bias)"
TOLERANCE = 1e-4  # between the network that is written into the page and the agent
TABLE_LIMIT = 1e6  # bytes of observations; above it the page builds the corridors itself
EPISODES = 64  # played for the map, and for the units that tell most where there is no analysis
OTHER_WORLD = "{} is not among the worlds that this page can run: Memory, mazes, CartPole without velocities."
OTHER_NETWORK = "This agent's network differs from the one that the page can run: encoder, one LSTM, two heads."


def coded(array) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def extract(agent) -> dict[str, np.ndarray] | None:
    """The network as arrays by name, among them `scale` (F,) of its inputs; None where it has parts of its own."""
    state = {name: value.numpy() for name, value in agent.state_dict().items()}
    encoder = getattr(agent, "encoder", None)
    scale = getattr(encoder, "scale", None)
    mean, var = state.pop("return_stats", (0, 1))
    if scale is None or "lstm.weight_ih_l0" not in state or not all(re.fullmatch(LAYERS, name) for name in state):
        return None
    if {type(module).__name__ for module in agent.modules()} - PARTS:
        return None
    state["lstm.bias"] = state.pop("lstm.bias_ih_l0") + state.pop("lstm.bias_hh_l0")
    last = "critic.2" if "critic.2.weight" in state else "critic"  # which predicts standardised returns
    state[f"{last}.weight"] = state[f"{last}.weight"] * var**0.5
    state[f"{last}.bias"] = state[f"{last}.bias"] * var**0.5 + mean
    return state | {"scale": scale.numpy()}


def forward(net: dict, cells: int, memoryless: bool, observations) -> tuple[np.ndarray, np.ndarray]:
    """The page's network in NumPy: observations (B, D) of one episode -> logits (B, A), values (B, 1)."""

    def head(name, x):
        if f"{name}.0.weight" in net:
            x, name = (net[f"{name}.0.weight"] @ x + net[f"{name}.0.bias"]).clip(0), f"{name}.2"
        return net[f"{name}.weight"] @ x + net[f"{name}.bias"]

    kinds = np.array([11, 6, 4] * cells + [4])
    hidden = cell = np.zeros(net["lstm.weight_hh_l0"].shape[1], np.float32)
    results = []
    for obs in observations:
        x = net["scale"] * (np.isin(np.arange(kinds.sum()), kinds.cumsum() - kinds + obs) if cells else obs)
        if "encoder.linear.weight" in net:
            x = (net["encoder.linear.weight"] @ x + net["encoder.linear.bias"]).clip(0)
        if memoryless:
            hidden = cell = np.zeros_like(hidden)
        gates = net["lstm.weight_ih_l0"] @ x + net["lstm.weight_hh_l0"] @ hidden + net["lstm.bias"]
        i, f, g, o = np.split(gates, 4)
        i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
        cell = f * cell + i * np.tanh(g)
        hidden = o * np.tanh(cell)
        results.append((head("actor", hidden), head("critic", hidden)))
    logits, values = zip(*results, strict=True)
    return np.array(logits), np.array(values)


@torch.no_grad()
def agrees(agent, net: dict, cells: int, memoryless: bool, steps: int = 24) -> bool:
    """Whether that network gives the agent's logits and values for random observations."""
    rng, highest = np.random.default_rng(0), np.array([11, 6, 4] * cells + [4])
    obs = rng.uniform(-1, 1, (steps, len(net["scale"]))).astype(np.float32)
    if cells:
        obs = rng.integers(0, highest, (steps, len(highest)), np.uint8)
    x, done = torch.from_numpy(obs), torch.eye(1, steps)[0]
    hidden, _ = agent.get_states(x, agent.initial_state(1), done)
    logits, values = forward(net, cells, memoryless, obs)
    return (np.allclose(logits, agent.actor(hidden), atol=TOLERANCE)
            and np.allclose(values[:, 0], agent.value(hidden), atol=TOLERANCE))  # fmt: skip


def world_of(env_id: str, view_size: int) -> dict | None:
    """The world's options, and for Memory MiniGrid's own states; None for a world that the page does not have."""
    spec, kind = gym.registry[env_id], kind_of(env_id)
    limit = spec.kwargs.get("max_steps") or spec.max_episode_steps or 256  # Memory's follows from its size
    if "CartPoleNoVelVectorEnv" in str(spec.vector_entry_point):
        return {"kind": "cartpole", "max_steps": limit}
    if kind is None:
        return None
    size, random = spec.kwargs["size"], spec.kwargs.get("random_length", spec.kwargs.get("random_size", False))
    world = {"kind": kind.lower(), "size": size, "random": random, "view": view_size, "max_steps": limit}
    table = envs.memory_table(size, random, view_size) if kind == "Memory" else None
    if table is None or table.obs.numel() > TABLE_LIMIT:
        return world
    over = table.terminal.int() + table.success.int()  # 0 runs, 1 failure, 2 success
    variables = np.stack([column.numpy() for column in table.variables.values()], 1)
    return world | {"table": {
        "obs": coded(table.obs.numpy()), "next": coded(table.next_state.numpy().astype(np.uint16)),
        "over": over.tolist(), "names": list(table.variables), "variables": coded(variables.astype(np.int16))}}


def ranking_of(targets: list, hidden: np.ndarray) -> list[int]:
    """Units (H) by how well each alone follows the targets once they are out of view: its mean squared correlation."""
    told = np.zeros(hidden.shape[1])
    for target in targets:
        later = target.lag >= 1
        if not later.any():
            continue
        x, y = (v[later] - v[later].mean(0) for v in (hidden, target.values))
        told += ((x.T @ y) ** 2 / (np.outer((x**2).sum(0), (y**2).sum(0)) + 1e-12)).mean(1)
    return np.argsort(-told, kind="stable").tolist()


def live_data(subject, seed: int, analysis: dict | None = None) -> dict:
    """subject: see `load_subject`. {"why": sentence} where the agent cannot live in the page."""
    env_id, agent, memoryless = subject.args.env_id, subject.agent, subject.about["memoryless"]
    world = world_of(env_id, getattr(subject.args, "view_size", 0))
    if world is None:
        return {"why": OTHER_WORLD.format(env_id)}
    try:  # a copy's network may differ in any way
        net = extract(agent)
        cells = len(net["scale"]) // 21 if world["kind"] != "cartpole" else 0
        same = agrees(agent, net, cells, memoryless)
    except Exception:
        same = False
    if not same:
        return {"why": OTHER_NETWORK}

    rows, _ = collect(subject, EPISODES, seed)
    hidden, targets = rows["states"][:, 0].astype(np.float64), find_targets(rows)
    colour, name = {"memory": (targets[0].values[:, -1], "cue: blue key, orange ball"),
                    "maze": (targets[-1].values[:, 0], "goal: orange ahead, blue behind"),
                    "cartpole": (targets[-1].values[:, 0], f"{targets[-1].name}, blue to orange")}[world["kind"]]
    mean, some = hidden.mean(0), slice(None, None, max(1, len(hidden) // 2000))
    axes = np.linalg.svd(hidden - mean, full_matrices=False)[2][:2]
    weights = {name: {"columns": w.shape[-1], "data": coded(w)} for name, w in net.items() if name != "scale"}
    return {
        "world": world, "marked": max(1, hidden.shape[1] // 2),
        "ranking": analysis["units"]["ranking"] if analysis else ranking_of(targets, hidden),
        "net": {"H": hidden.shape[1], "cells": cells, "memoryless": memoryless, "scale": coded(net["scale"]),
                "weights": weights},
        "map": {"mean": mean.round(5).tolist(), "axes": axes.round(5).tolist(), "name": name,
                "points": ((hidden - mean) @ axes.T)[some].round(3).tolist(), "colour": colour[some].round(3).tolist()}}
