"""The agent of a checkpoint and the episodes that it plays: what it saw and did, and its memory at each step.

Shapes: T steps of an episode, D = observation size, H = hidden_size, A = actions. A step's state is the one that has
read its observation and gives its action.
"""

import functools
import importlib.util
import itertools
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from minigrid.core.constants import OBJECT_TO_IDX
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import FullyObsWrapper
from tqdm import tqdm

from envs import as_tensor, memory_table, spawn_seeds, success_return
from visualize_memory.page import observation_picture, webp

ROOT = Path(__file__).resolve().parent.parent  # of the project
LONGEST = 10_000  # steps, after which an episode is cut: some environments never end one


# ---- Loading
@dataclass
class Subject:
    """The agent under study and where it plays."""

    script: object  # module
    args: object  # the script's Args, with env_id set to the environment to show
    agent: torch.nn.Module
    untrained: torch.nn.Module  # a network of the same shape, not trained
    about: dict  # for the page and analysis.json


def one_line(error) -> str:
    return (str(error).splitlines() or [""])[0]


def load_script(name: str, path: str | None):
    """The module of the file `path`, or of the script `name` in the project's folder. Raises ValueError.

    A checkpoint may name any file; only one that lies there, or that the user names, is run.
    """
    if path is None and (Path(name).name != name or not (ROOT / name).is_file()):
        raise ValueError(f"the checkpoint was written by {name!r}, which is not in {ROOT}; name it with --script")
    path = Path(path or ROOT / name).resolve()
    sys.path.append(str(path.parent))  # what it imports may lie beside it
    try:
        spec = importlib.util.spec_from_file_location(f"visualized_{path.stem}", path)
        script = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
    except (Exception, SystemExit) as error:  # whatever a foreign file raises, the user gets one line
        raise ValueError(f"--script: cannot import {str(path)!r}: {type(error).__name__}: {one_line(error)}") from error
    return script


def spaces_of(script, args) -> tuple[gym.spaces.Box, int]:
    """The observation space of the environment that `args` name, and how many actions it has."""
    envs = script.make_envs(args, args.env_id, 1, "cpu")
    envs.close()
    return envs.single_observation_space, int(envs.single_action_space.n)


def load_subject(path: str, env_id: str | None, script: str | None, seed: int) -> Subject:
    """Raises ValueError with one line where checkpoint, script and environment do not fit together."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        name, global_step = str(checkpoint["script"]), checkpoint.get("global_step")
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise ValueError(f"{path!r} is not a readable checkpoint: {one_line(error)}") from error
    script = load_script(name, script)
    try:
        agent, trained = script.load_agent(path)
    except Exception as error:  # a foreign script's, too
        raise ValueError(f"{path!r} does not load: {one_line(error).removeprefix('--resume: ')}") from error
    if not all(weight.isfinite().all() for weight in agent.parameters()):
        raise ValueError(f"{path!r} holds weights that are not finite; take an older file")
    state = agent.initial_state(1)
    pair = isinstance(state, tuple | list) and len(state) == 2 and state[0].shape == state[1].shape
    if not pair or state[0].ndim != 3 or len(state[0]) != 1:
        raise ValueError(f"{path!r}: the agent's state must be a pair (h, c) of (1, N, H) tensors; a network that has "
                         "no c may return zeros in its place")
    env_id = env_id or trained.env_id
    try:
        args = replace(trained, env_id=env_id)
        space, actions = spaces_of(script, args)
    except Exception as error:  # the environment's own, too
        raise ValueError(f"--env-id: cannot make {env_id!r}: {one_line(error)}") from error
    if (space, actions) != spaces_of(script, trained):
        raise ValueError(f"--env-id: {env_id} has another observation or action space than {trained.env_id}")
    torch.manual_seed(seed)
    about = {"env_id": env_id, "trained_on": trained.env_id, "checkpoint": Path(path).name, "seed": seed,
             "global_step": global_step, "memoryless": bool(getattr(args, "memoryless", False)),
             "hidden_size": state[0].shape[-1]}
    return Subject(script, args, agent.eval(), script.Agent(space, actions, args).eval(), about)


def require_variables(subject: Subject) -> None:
    """Raises ValueError where the environment does not say what there is to remember."""
    envs = subject.script.make_envs(subject.args, subject.args.env_id, 1, "cpu")
    envs.reset(seed=0)
    try:
        envs.task_variables()
    except Exception as error:  # the environment's own, too
        raise ValueError(f"--analysis needs task_variables() of {subject.args.env_id}: {one_line(error)}") from error


# ---- What has to be remembered, and when it is in view
def kind_of(env_id: str) -> str | None:
    """The tasks of `envs` that have a thing to remember: a cue in "Memory", a goal in "Maze"."""
    entry_point = gym.registry[env_id].vector_entry_point
    name = getattr(entry_point, "__name__", str(entry_point).split(":")[-1])
    return {"MemoryVectorEnv": "Memory", "MazeVectorEnv": "Maze"}.get(name)


def memory_table_of(env_id: str, view_size: int):
    """The table of states of a Memory id."""
    kwargs = gym.registry[env_id].kwargs
    return memory_table(kwargs["size"], kwargs.get("random_length", False), view_size)


@functools.cache
def cue_in_view(env_id: str, view_size: int) -> dict[tuple, bool]:
    """For each state of a Memory id, named by the values of its task variables: whether the cue is in view, that is,
    whether the agent would see something else if the cue were the other one and the two ends as they are."""
    table = memory_table_of(env_id, view_size)
    index = {state: n for n, state in enumerate(zip(*(v.tolist() for v in table.variables.values()), strict=True))}
    ends = sum({state[-1] for state in index})  # y of the upper and of the lower end; one of them is right
    other = {state: index[(1 - state[0], *state[1:-1], ends - state[-1])] for state in index}
    return {state: not torch.equal(table.obs[n], table.obs[other[state]]) for state, n in index.items()}


def in_view(args, obs, variables: dict):
    """Whether the cue or the goal is in view: obs (N, D), variables (N,) each -> (N,); None where there is neither."""
    if kind_of(args.env_id) == "Memory":
        seen = cue_in_view(args.env_id, args.view_size)
        return np.array([seen[state] for state in zip(*(v.tolist() for v in variables.values()), strict=True)])
    return (obs[:, :-1:3] == OBJECT_TO_IDX["goal"]).any(1) if kind_of(args.env_id) == "Maze" else None


def at_fork(env_id: str, variables: dict, N: int):
    """(N,) whether Memory's agent stands between the two ends of the fork; elsewhere there is no fork."""
    if kind_of(env_id) != "Memory":
        return np.zeros(N, bool)
    return (variables["x"] == variables["success_x"]) & (variables["y"] == gym.registry[env_id].kwargs["size"] // 2)


def memory_reader(env: gym.Env, env_id: str):
    """A function that tells the task variables, (1,) each, of a single Memory environment as it stands now: those of
    the state in the table that shows the same whole grid. None for other environments."""
    if kind_of(env_id) != "Memory":
        return None
    table, whole = memory_table_of(env_id, 0), FullyObsWrapper(env.unwrapped)
    index = {obs.tobytes(): n for n, obs in enumerate(table.obs.numpy())}

    def read() -> dict[str, np.ndarray]:
        seen = whole.observation(env.unwrapped.gen_obs())
        n = index[np.append(seen["image"], np.uint8(seen["direction"])).tobytes()]
        return {name: values[n : n + 1].numpy() for name, values in table.variables.items()}

    return read


# ---- Playing
@dataclass
class Episode:
    """One episode of T steps."""

    seed: int
    observations: np.ndarray = None  # (T, D)
    states: np.ndarray = None  # (T, 2, H) float32, hidden and cell, after reading observations[t]
    logits: np.ndarray = None  # (T, A), without random moves
    values: np.ndarray = None  # (T,)
    actions: np.ndarray = None  # (T,)
    rewards: np.ndarray = None  # (T,)
    dones: np.ndarray = None  # (T,) 1 where observations[t] is an episode's first and the state was zeroed before it
    ends: np.ndarray = None  # (T, 2) bool, terminated and truncated, with step t
    frames: list[bytes] = field(default_factory=list)  # T + 1 WebP images; the last shows how it ended
    seen: list[bool] | None = None  # T, whether what has to be remembered is in view
    fork: int | None = None  # the first step at Memory's fork
    cue: str | None = None
    outcome: str = ""


def choose_seeds(args, env: gym.Env, read, episodes: int, seed: int) -> list[int]:
    """Seeds for `env.reset`. On Memory: each cue and each side in turn, from starts that have the cue behind."""
    if read is None:
        return spawn_seeds(seed, episodes, evaluation=True)
    seeds, candidates = [], iter(spawn_seeds(seed, 100 * episodes, evaluation=True))
    for n in range(episodes):
        for candidate in itertools.islice(candidates, 100):
            env.reset(seed=candidate)
            now = read()
            behind = args.view_size == 0 or not in_view(args, None, now)[0]
            if behind and (now["cue"].item(), (now["success_y"] > now["y"]).item()) == (n % 2, n // 2 % 2 == 1):
                break
        seeds.append(candidate)
    return seeds


@torch.no_grad()
def play(subject: Subject, env: gym.Env, read, seed: int, generator=None) -> Episode:
    """Play one episode and note everything: the most probable actions, or ones drawn with a `generator`. `read` tells
    Memory's task variables."""
    episode, env_id, agent = Episode(seed), subject.args.env_id, subject.agent
    state, done, ends, steps, seen = agent.initial_state(1), torch.ones(1), [], [], []
    obs, _ = env.reset(seed=seed)

    def picture():
        renders = env.render_mode == "rgb_array" and "rgb_array" in env.metadata.get("render_modes", ())
        frame = env.render() if renders else None
        return webp(observation_picture(obs, env.observation_space) if frame is None else frame)

    while not any(ends) and len(steps) < LONGEST:
        episode.frames.append(picture())
        x, variables = as_tensor(obs, env.observation_space, "cpu")[None], read() if read else {}
        if kind_of(env_id):
            seen.append(bool(in_view(subject.args, x.numpy(), variables)[0]))
        if read:
            episode.cue = ("key", "ball")[variables["cue"].item()]
        if episode.fork is None and at_fork(env_id, variables, 1)[0]:
            episode.fork = len(steps)
        hidden, state = agent.get_states(x, state, done)
        logits, value = agent.actor(hidden), agent.value(hidden)
        probs = logits.softmax(-1)
        action = int(probs.argmax() if generator is None else torch.multinomial(probs, 1, generator=generator))
        obs, reward, *ends, _ = env.step(action + int(env.action_space.start))
        steps.append((x[0].numpy(), torch.cat(state)[:, 0].numpy(), logits[0].numpy(), value.item(), action,
                      float(reward), done.item(), ends))
        done = torch.zeros(1)
    episode.frames.append(picture())
    (episode.observations, episode.states, episode.logits, episode.values, episode.actions, episode.rewards,
     episode.dones, episode.ends) = (np.array(column) for column in zip(*steps, strict=True))
    episode.seen = seen or None
    solved = episode.rewards.sum() >= success_return(env_id)
    episode.outcome = "success" if solved else "failure" if ends[0] else "time limit"
    return episode


def play_episodes(subject: Subject, episodes: int, seed: int, sampled: bool) -> list[Episode]:
    """Plays, and adds to `subject.about` what the page has to know of the environment."""
    args, script = subject.args, subject.script
    try:
        env = script.make_env(args, args.env_id)
    except TypeError:  # it takes no render_mode
        env = script.make_envs(args, args.env_id, 1, "cpu").env.envs[0]
    generator = torch.Generator().manual_seed(spawn_seeds(seed, 1, 1, evaluation=True)[0]) if sampled else None
    read = memory_reader(env, args.env_id)
    seeds = tqdm(choose_seeds(args, env, read, episodes, seed), "playing", leave=False, disable=None)
    played = [play(subject, env, read, each, generator) for each in seeds]
    world, names = env.unwrapped, [str(action) for action in range(played[0].logits.shape[-1])]
    if isinstance(world, MiniGridEnv):
        names = [action.name for action in world.actions][: len(names)]
    elif isinstance(world, CartPoleEnv):
        names = ["left", "right"]
    fps = 5 if isinstance(world, MiniGridEnv) else env.metadata.get("render_fps") or 10
    what = "cue" if kind_of(args.env_id) == "Memory" else "goal"
    subject.about |= {"actions": names, "fps": fps, "sampled": sampled, "what": what}
    env.close()
    return played
