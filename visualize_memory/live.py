"""What the live page needs: the agent's weights, its world, which units tell most, and a map of its hidden states.

`live_data` gives it as one dict for JSON. Where the agent cannot live in the page (another world, a network of one's own)
the dict is {"why": one sentence}, and the page has its replay only. The page's modules are in the folder `live`.

Shapes: B steps of a check, D = observation size, F = inputs of the network, H = hidden_size, M rows of played steps.
"""

import base64
import re

import gymnasium as gym
import numpy as np
import torch

import envs
from visualize_memory.analysis import collect, find_targets
from visualize_memory.episodes import kind_of

LAYERS = r"encoder\.linear\.(weight|bias)|lstm\.(weight|bias)_[ih]h_l0|(actor|critic)(\.[02])?\.(weight|bias)"
TOLERANCE = 1e-4  # between the network that is written into the page and the agent
TABLE_LIMIT = 1e6  # bytes of observations; above it the page builds the corridors itself
EPISODES = 64  # played for the map, and for the units that tell most where there is no analysis


def coded(array) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def extract(agent) -> dict[str, np.ndarray] | None:
    """The network as arrays by name, `scale` (F,) of its inputs among them; None if there are parts that the page's has not."""
    state = {name: value.numpy() for name, value in agent.state_dict().items()}
    kinds = {type(module).__name__ for module in agent.modules()}
    encoder = getattr(agent, "encoder", None)
    scale = getattr(encoder, "weights", getattr(encoder, "scale", None))
    if scale is None or kinds - {"Agent", "Encoder", "LSTM", "Linear", "Sequential", "ReLU"}:
        return None
    if not all(re.fullmatch(LAYERS, name) for name in state) or "lstm.weight_ih_l0" not in state:
        return None
    state["lstm.bias"] = state.pop("lstm.bias_ih_l0") + state.pop("lstm.bias_hh_l0")
    return state | {"scale": scale.numpy()}


def replay(net: dict, cells: int, memoryless: bool, observations) -> tuple[np.ndarray, np.ndarray]:
    """The page's network in NumPy: observations (B, D) of one episode -> logits (B, A), values (B,)."""

    def head(name, x):
        for layer in (f"{name}.0.", f"{name}.2.", f"{name}."):
            if layer + "weight" in net:
                x = net[layer + "weight"] @ x + net[layer + "bias"]
                x = x.clip(0) if layer == f"{name}.0." else x
        return x

    kinds = np.array([11, 6, 4] * cells + [4])
    hidden = cell = np.zeros(net["lstm.weight_hh_l0"].shape[1], np.float32)
    results = []
    for obs in observations:
        x = obs
        if cells:
            x = np.zeros(len(net["scale"]), np.float32)
            x[kinds.cumsum() - kinds + obs] = 1
        x = x * net["scale"]
        if "encoder.linear.weight" in net:
            x = (net["encoder.linear.weight"] @ x + net["encoder.linear.bias"]).clip(0)
        if memoryless:
            hidden = cell = np.zeros_like(hidden)
        gates = net["lstm.weight_ih_l0"] @ x + net["lstm.weight_hh_l0"] @ hidden + net["lstm.bias"]
        i, f, g, o = np.split(gates, 4)
        i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
        cell = f * cell + i * np.tanh(g)
        hidden = o * np.tanh(cell)
        results.append((head("actor", hidden), head("critic", hidden)[0]))
    logits, values = zip(*results, strict=True)
    return np.array(logits), np.array(values)


@torch.no_grad()
def agrees(subject, net: dict, cells: int, memoryless: bool, steps: int = 24) -> bool:
    """Whether that network gives the agent's logits and values for random observations."""
    rng, agent = np.random.default_rng(0), subject.agent
    if cells:
        highest = np.array([11, 6, 4] * cells + [4])
        obs = rng.integers(0, highest, (steps, len(highest)), np.uint8)
    else:
        obs = rng.uniform(-1, 1, (steps, len(net["scale"]))).astype(np.float32)
    state, done, logits, values = agent.initial_state(1), torch.ones(1), [], []
    for x in torch.from_numpy(obs):
        values.append(agent.get_value(x[None], state, done).item())
        row, state = agent.get_logits(x[None], state, done)
        logits.append(row[0].numpy())
        done = torch.zeros(1)
    own = replay(net, cells, memoryless, obs)
    return np.abs(own[0] - logits).max() < TOLERANCE and np.abs(own[1] - values).max() < TOLERANCE


def world_of(env_id: str, view_size: int) -> dict | None:
    """The world's options, and for Memory MiniGrid's own states; None for a world that the page does not have."""
    spec = gym.registry[env_id]
    limit = {"max_steps": spec.kwargs.get("max_steps") or spec.max_episode_steps or 256, "view": view_size}
    if kind_of(env_id) == "Maze":
        return {"kind": "maze", "size": spec.kwargs["size"], "random": spec.kwargs["random_size"]} | limit
    if "CartPoleNoVelVectorEnv" in str(spec.vector_entry_point):
        return {"kind": "cartpole"} | limit
    if kind_of(env_id) != "Memory":
        return None
    size, random_length = spec.kwargs["size"], spec.kwargs.get("random_length", False)
    world = {"kind": "memory", "size": size, "random": random_length, "view": view_size}
    table = envs.memory_table(size, random_length, view_size)
    if table.obs.numel() > TABLE_LIMIT:
        return world
    over = table.terminal.int() + table.success.int()  # 0 runs, 1 failure, 2 success
    variables = np.stack([column.numpy() for column in table.variables.values()], 1)
    return world | {"table": {
        "obs": coded(table.obs.numpy()), "next": coded(table.next_state.numpy().astype(np.uint16)),
        "over": over.tolist(), "names": list(table.variables), "variables": coded(variables.astype(np.int16))}}  # fmt: skip


def ranking_of(targets: list, hidden: np.ndarray) -> list[int]:
    """Units (H) by how well each alone follows the targets once they are out of view: its mean squared correlation."""
    told = np.zeros(hidden.shape[1])
    for target in targets:
        x, y = (v[target.lag >= 1] - v[target.lag >= 1].mean(0) for v in (hidden, target.values))
        told += ((x.T @ y) ** 2 / (np.outer((x**2).sum(0), (y**2).sum(0)) + 1e-12)).mean(1)
    return np.argsort(-told, kind="stable").tolist()


def live_data(subject, seed: int, analysis: dict | None = None) -> dict:
    """subject: see `load_subject`. {"why": sentence} where the agent cannot live in the page."""
    env_id, agent = subject.args.env_id, subject.agent
    view_size, memoryless = getattr(subject.args, "view_size", 0), bool(getattr(subject.args, "memoryless", False))
    world = world_of(env_id, view_size)
    if world is None:
        return {"why": f"{env_id} is not among the worlds that this page can run: Memory, mazes, CartPole without velocities."}
    net, cells = extract(agent), 0
    if net and world["kind"] != "cartpole":
        cells = len(net["scale"]) // 21
    if net is None or not agrees(subject, net, cells, memoryless):
        return {"why": "This agent's network differs from the one that the page can run: encoder, one LSTM, two heads."}

    rows, _ = collect(subject, EPISODES, seed)
    hidden, targets = rows["states"][:, 0].astype(np.float64), find_targets(rows)
    mean = hidden.mean(0)
    axes = np.linalg.svd(hidden - mean, full_matrices=False)[2][:2]
    colour = {"memory": targets[0].values[:, -1], "maze": targets[-1].values[:, 0], "cartpole": targets[-1].values[:, 0]}
    names = {"memory": "cue: blue key, orange ball", "maze": "goal: orange ahead, blue behind",
             "cartpole": f"{targets[-1].name}, blue to orange"}
    thin = slice(None, None, max(1, len(hidden) // 2000))
    H = hidden.shape[1]
    ranking = analysis["units"]["ranking"] if analysis else ranking_of(targets, hidden)
    weights = {name: {"columns": value.shape[-1], "data": coded(value)} for name, value in net.items() if name != "scale"}
    return {
        "world": world, "ranking": ranking, "marked": max(1, H // 2),
        "net": {"H": H, "cells": cells, "memoryless": memoryless, "scale": coded(net["scale"]), "weights": weights},
        "map": {"mean": mean.round(5).tolist(), "axes": axes.round(5).tolist(), "name": names[world["kind"]],
                "points": ((hidden - mean) @ axes.T)[thin].round(3).tolist(),
                "colour": colour[world["kind"]][thin].round(3).tolist()}}  # fmt: skip
