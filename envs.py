"""Environments that need memory, single and batched, and the plumbing around them.

Importing this module registers, with gymnasium:

    CartPoleNoVel-v0 (alias -v1)                CartPole that shows position and angle, not the velocities
    MiniGrid-CustomMaze-S{5..24}-v0             a new Kruskal maze each episode
    MiniGrid-CustomMazeRandom-S{6..24}-v0       the same, and a new size (6 up to the number) each episode
    MiniGrid-Memory*-v0                         (MiniGrid's own ids) gain a batched form

`gym.make(id)` gives the ordinary single environment, `gym.make_vec(id, num_envs=512, agent_view_size=3)` the
batched one: a `gymnasium.vector.VectorEnv` whose N environments live in a few tensors on `device`. Batched
observations are flat uint8 vectors (the image, then the direction) and the actions are left, right, forward.

Every batched environment resets in the SAME step: the observation that follows a done is the new episode's first,
and `infos["final_obs"]` (N, D) holds the old episode's last wherever the mask `infos["_final_obs"]` (N,) is set.
"""

import datetime
import difflib
import functools
import glob
import io
import os
from typing import NamedTuple

import gymnasium as gym
import minigrid  # noqa: F401  (registers the MiniGrid ids)
import numpy as np
import torch
import torch.distributed as dist
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv, CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from minigrid.core.constants import COLOR_TO_IDX, DIR_TO_VEC, OBJECT_TO_IDX
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Goal, Wall
from minigrid.envs import MemoryEnv
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import FullyObsWrapper

EVAL_SEED = 2**40  # evaluation seeds start here; training environments are seeded with 32-bit numbers (train_seeds)
EMPTY, WALL, GOAL = OBJECT_TO_IDX["empty"], OBJECT_TO_IDX["wall"], OBJECT_TO_IDX["goal"]
WALL_CELL = (WALL, COLOR_TO_IDX["grey"], 0)


class UsageError(Exception):
    """A bad flag or file; its one line names it and the remedy. (No ValueError: tyro would draw a box around that.)"""


def train_seeds(seed: int | list[int], n: int) -> list[int]:
    """n environment seeds below 2**32 that differ from those of every other `seed` (and from torch's own stream)."""
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(n)]


# ----------------------------------------------------------------------------------------------------------------------
# CartPole without velocities
# ----------------------------------------------------------------------------------------------------------------------
class CartPoleNoVelEnv(CartPoleEnv):
    """CartPole whose observation is (cart position, pole angle), float32 (2,); a velocity needs two of them."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.observation_space = spaces.Box(self.observation_space.low[::2], self.observation_space.high[::2])

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed, options=options)
        return obs[::2], info

    def step(self, action):
        obs, *rest = super().step(action)
        return obs[::2], *rest


class CartPoleNoVelVectorEnv(CartPoleVectorEnv):
    """N CartPoles without velocities, in NumPy. gymnasium's parent resets one step late (NEXT_STEP, a row whose
    action is ignored); here a finished environment is reset within the step that finishes it."""

    metadata = {**CartPoleVectorEnv.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, num_envs: int = 1, **kwargs):
        super().__init__(num_envs, **kwargs)
        space = self.single_observation_space
        self.single_observation_space = spaces.Box(space.low[::2], space.high[::2])
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed, options=options)
        return obs[:, ::2], info

    def step(self, actions):
        obs, reward, terminated, truncated, _ = super().step(actions)
        done = terminated | truncated
        self.prev_done[:] = False  # the parent would reset these at the next step
        self.state[:, done] = self.np_random.uniform(self.low, self.high, size=(4, done.sum()))
        self.steps[done] = 0
        infos = {"final_obs": obs[:, ::2], "_final_obs": done}
        return self.state[::2].T.astype(np.float32), reward, terminated, truncated, infos

    def task_variables(self) -> dict[str, np.ndarray]:
        """What the observation hides: both velocities, (N,) each, in m/s and rad/s."""
        return {"cart_velocity": self.state[1].copy(), "pole_velocity": self.state[3].copy()}

    def state_dict(self) -> dict:
        return {
            "state": torch.from_numpy(self.state.copy()),
            "steps": torch.from_numpy(self.steps.copy()),
            "generator": self.np_random.bit_generator.state,
        }

    def load_state_dict(self, state: dict) -> None:
        self.reset()
        self.state[:], self.steps[:] = state["state"].numpy(), state["steps"].numpy()
        self.np_random.bit_generator.state = state["generator"]


# ----------------------------------------------------------------------------------------------------------------------
# MiniGrid Memory, tabulated from the real environment
# ----------------------------------------------------------------------------------------------------------------------
class Table(NamedTuple):
    """A static-grid MiniGrid task as a finite MDP of S states and K start states."""

    obs: torch.Tensor  # (S, D) uint8
    next_state: torch.Tensor  # (S, 3) int64; an ended state leads to itself
    terminal: torch.Tensor  # (S,) bool
    success: torch.Tensor  # (S,) float32, 1 where the task has just been solved
    starts: torch.Tensor  # (K,) int64
    start_probs: torch.Tensor  # (K,) float64, sums to 1
    variables: dict[str, torch.Tensor]  # (S,) int64 each


class _ScriptedDraws:
    """Stands in for `np_random`: replays the draws in `script`, then draws the lowest; notes every range asked for."""

    def __init__(self):
        self.script, self.ranges = (), []

    def integers(self, low, high):
        self.ranges.append((low, high))
        drawn = len(self.ranges) - 1
        return self.script[drawn] if drawn < len(self.script) else low


def _every_reset(env: MiniGridEnv):
    """Reset `env` once for each possible sequence of its random draws; yields that sequence's probability."""
    draws = env.unwrapped.np_random = _ScriptedDraws()
    pending = [()]
    while pending:
        draws.script, draws.ranges = pending.pop(), []
        env.reset()
        if len(draws.ranges) > len(draws.script):  # a draw that the script does not settle yet: settle it every way
            low, high = draws.ranges[len(draws.script)]
            pending += [(*draws.script, value) for value in range(low, high)]
        else:
            yield float(np.prod([1 / (high - low) for low, high in draws.ranges]))


@functools.lru_cache(maxsize=16)
def memory_table(size: int, random_length: bool, view_size: int) -> Table:
    """Enumerate MiniGrid's own `MemoryEnv` (minigrid/envs/memory.py): the grid never changes within an episode, so the
    states reachable from each start are asked for their observation and for the outcome of each action, once.

    `view_size` is odd and at least 3, or 0 for the whole grid.
    """
    env = MemoryEnv(size, random_length, agent_view_size=view_size or 3, max_steps=2)
    real_gen_obs, env.gen_obs = env.gen_obs, lambda: None  # outcomes do not need the (slow) observation
    index, obs, next_state, ended, variables = {}, [], [], [], []
    views = {}  # what is seen depends on the cells in front and the direction only: ask once for each
    start_probs = {}

    def observe(grid, padded):
        x, y = env.agent_pos
        if view_size == 0:
            image = grid.copy()
            image[x, y] = OBJECT_TO_IDX["agent"], COLOR_TO_IDX["red"], env.agent_dir
            return np.append(image, env.agent_dir)
        left, top, right, bottom = (v + view_size for v in env.get_view_exts())
        key = padded[left:right, top:bottom].tobytes(), env.agent_dir
        if key not in views:
            views[key] = np.append(real_gen_obs()["image"], env.agent_dir).astype(np.uint8)
        return views[key]

    for probability in _every_reset(env):
        grid = env.grid.encode()
        padded = np.full((size + 2 * view_size,) * 2 + (3,), WALL_CELL, np.uint8)
        padded[view_size : view_size + size, view_size : view_size + size] = grid
        layout = grid.tobytes()
        cue = int(grid[1, size // 2 - 1, 0] == OBJECT_TO_IDX["ball"])
        frontier = []

        def state_index(outcome, frontier=frontier, layout=layout, grid=grid, padded=padded, cue=cue):
            key = layout, *map(int, env.agent_pos), env.agent_dir, outcome
            if key not in index:
                index[key] = len(obs)
                obs.append(observe(grid, padded))
                next_state.append([len(obs) - 1] * 3)
                ended.append(outcome)
                variables.append((cue, *key[1:4], *env.success_pos))
                frontier.append(key)
            return index[key]

        start = state_index("running")
        start_probs[start] = start_probs.get(start, 0) + probability
        while frontier:
            _, x, y, direction, outcome = key = frontier.pop()
            for action in range(3) if outcome == "running" else ():
                env.agent_pos, env.agent_dir, env.step_count = (x, y), direction, 0
                _, reward, terminated, _, _ = env.step(action)
                outcome = "running" if not terminated else "success" if reward > 0 else "failure"
                next_state[index[key]][action] = state_index(outcome)

    names = ("cue", "x", "y", "direction", "success_x", "success_y")
    return Table(
        obs=torch.from_numpy(np.stack(obs)),
        next_state=torch.tensor(next_state),
        terminal=torch.tensor([outcome != "running" for outcome in ended]),
        success=torch.tensor([float(outcome == "success") for outcome in ended]),
        starts=torch.tensor(list(start_probs)),
        start_probs=torch.tensor(list(start_probs.values()), dtype=torch.float64),
        variables={name: torch.tensor(column) for name, column in zip(names, zip(*variables, strict=True), strict=True)},
    )


class GridVectorEnv(VectorEnv):
    """What the batched MiniGrid environments share: spaces, seeding, the reward, the autoreset and saved states.

    A subclass keeps its episodes in tensors named by `STATE`, each (N, ...), and says how to begin, move and look.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}
    STATE: tuple[str, ...] = ()

    def __init__(self, num_envs: int, cells: int, max_steps: int, device):
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.num_envs, self.max_steps, self.device = num_envs, max_steps, torch.device(device)
        self.single_observation_space = spaces.Box(0, 255, (3 * cells + 1,), np.uint8)
        self.single_action_space = spaces.Discrete(3)  # left, right, forward: MiniGrid's first three
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.generator = torch.Generator(self.device)
        self.generator.seed()
        self.step_count = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        # MiniGridEnv._reward, in float64 as there, for every step count at which success can come
        count = torch.arange(max_steps + 1, dtype=torch.float64)
        self.reward_at = (1 - 0.9 * (count / max_steps)).float().to(self.device)

    def step(self, actions):
        """actions (N,) -> obs (N, D) uint8, reward (N,) float32, terminated (N,), truncated (N,), infos."""
        actions = torch.as_tensor(actions, device=self.device)
        self.step_count += 1
        terminated, success = self._move(actions)
        reward = self.reward_at[self.step_count] * success
        truncated = self.step_count >= self.max_steps
        done = terminated | truncated
        infos = {"final_obs": self._observe(), "_final_obs": done}
        self._begin(done)
        self.step_count.masked_fill_(done, 0)
        return self._observe(), reward, terminated, truncated, infos

    def state_dict(self) -> dict:
        state = {name: getattr(self, name).clone() for name in (*self.STATE, "step_count")}
        return {**state, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        for name in (*self.STATE, "step_count"):
            getattr(self, name).copy_(state[name])
        self.generator.set_state(state["generator"].cpu())


class MemoryVectorEnv(GridVectorEnv):
    """N copies of MiniGrid's MemoryEnv as look-ups in `memory_table`; the same observations, rewards and ends.

    `reset(options={"start": index})` begins environment n at start `index[n]` of the table in place of a random one.
    """

    STATE = ("state",)

    def __init__(self, num_envs=1, size=8, random_length=False, max_steps=None, agent_view_size=7, device="cpu",
                 render_mode=None):  # fmt: skip
        check_view_size(agent_view_size)
        cells = agent_view_size**2 or size**2
        super().__init__(num_envs, cells, max_steps or 5 * size**2, device)
        self.render_mode = render_mode
        table = memory_table(size, random_length, agent_view_size)
        self.table = Table(*(f.to(self.device) for f in table[:-1]), {k: v.to(self.device) for k, v in table[-1].items()})
        self.cumulative = self.table.start_probs.cumsum(0)
        self.cumulative[-1] = 1.0
        self.state = torch.zeros(num_envs, dtype=torch.int64, device=self.device)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.generator.manual_seed(seed)
        self.step_count.zero_()
        if options and "start" in options:
            self.state = self.table.starts[torch.as_tensor(options["start"], device=self.device)]
        else:
            self._begin(torch.ones(self.num_envs, dtype=torch.bool, device=self.device))
        return self._observe(), {}

    def _begin(self, mask):
        # one draw for every environment, used or not: no transfer to ask how many are needed
        draw = torch.rand(self.num_envs, generator=self.generator, device=self.device, dtype=torch.float64)
        start = self.table.starts[torch.searchsorted(self.cumulative, draw, right=True)]
        self.state = torch.where(mask, start, self.state)

    def _move(self, actions):
        self.state = self.table.next_state[self.state, actions]
        return self.table.terminal[self.state], self.table.success[self.state]

    def _observe(self):
        return self.table.obs.index_select(0, self.state)

    def task_variables(self) -> dict[str, torch.Tensor]:
        """(N,) int64 each: cue (0 key, 1 ball), x, y, direction of the agent, success_x, success_y (the right end)."""
        return {name: values[self.state] for name, values in self.table.variables.items()}


def success_return(env_id: str) -> float:
    """The return from which an episode is a success: the id's `reward_threshold`, or any positive one without it."""
    return gym.registry[env_id].reward_threshold or 1e-9


def start_weights(env_id: str) -> torch.Tensor | None:
    """The probability (K,) of each start of a Memory id, in the order of `options={"start": ...}`; None elsewhere.

    One episode from each start, weighted so, gives a deterministic policy's exact success rate.
    """
    spec = gym.registry[env_id]
    if spec.vector_entry_point != "envs:MemoryVectorEnv":
        return None
    return memory_table(spec.kwargs["size"], spec.kwargs.get("random_length", False), 3).start_probs


# ----------------------------------------------------------------------------------------------------------------------
# Kruskal mazes
# ----------------------------------------------------------------------------------------------------------------------
def kruskal_mazes(sizes: torch.Tensor, width: int, generator: torch.Generator):
    """A random maze for each entry of `sizes` (K,), 5 <= size <= width, all K at once.

    Rooms are the inner cells with even (x, y); randomised Kruskal (Kruskal 1956, with shuffled edges in place of
    sorted ones) opens the wall between two neighbouring rooms wherever that joins two components.
    Returns cells (K, width, width) uint8 of MiniGrid object types indexed [k, x, y], with the goal in them, and
    the agent's x and y, (K,) each; agent and goal stand on distinct uniformly drawn free cells.
    """
    device, K = sizes.device, len(sizes)
    rooms = (width - 1) // 2  # a side, of the largest maze
    room = torch.arange(rooms * rooms, device=device).view(rooms, rooms)
    ends = torch.cat((torch.stack((room[:-1], room[1:]), -1).flatten(0, 1),
                      torch.stack((room[:, :-1], room[:, 1:]), -1).flatten(0, 1)))  # (E, 2)  # fmt: skip
    # a smaller maze uses the edges among its own rooms, and finds them in the same shuffled order
    own = torch.maximum(ends // rooms, ends % rooms).amax(1) < ((sizes - 1) // 2)[:, None]  # (K, E)
    order = torch.rand(own.shape, generator=generator, device=device).argsort(1)

    label = room.flatten().expand(K, -1).clone()  # (K, R) component of each room
    opened = torch.zeros_like(own)
    rows = torch.arange(K, device=device)
    for edge in order.T:  # (K,), the next edge of each maze
        a, b = label[rows, ends[edge, 0]], label[rows, ends[edge, 1]]
        joins = (a != b) & own[rows, edge]
        opened[rows, edge] = joins
        label = torch.where((label == b[:, None]) & joins[:, None], a[:, None], label)

    x, y = 1 + 2 * (ends // rooms), 1 + 2 * (ends % rooms)  # (E, 2) grid cells of an edge's two rooms
    free = torch.zeros(K, width, width, dtype=torch.bool, device=device)
    for end in (0, 1):
        free[:, x[:, end], y[:, end]] |= own
    free[:, x.sum(1) // 2, y.sum(1) // 2] |= opened
    # two distinct free cells, uniformly: the two largest of independent draws
    draw = torch.rand(K, width * width, generator=generator, device=device).masked_fill(~free.flatten(1), -1)
    agent, goal = draw.topk(2, 1).indices.T
    cells = torch.where(free, EMPTY, WALL).to(torch.uint8).flatten(1)
    cells[rows, goal] = GOAL
    return cells.view(K, width, width), agent // width, agent % width


class MazeEnv(MiniGridEnv):
    """A new Kruskal maze each episode (see `kruskal_mazes`); one sees through its walls, the goal ends the episode.

    `random_size`: each episode draws a size from 6 to `size`; the grid is always the largest, padded with wall.
    The reward at the goal is MiniGrid's 1 - 0.9 * step_count / max_steps.
    """

    def __init__(self, size: int = 13, random_size: bool = False, max_steps: int = 256, **kwargs):
        check_maze_size(size, random_size)
        self.size, self.random_size = size, random_size
        super().__init__(MissionSpace(self._gen_mission), grid_size=size, max_steps=max_steps, see_through_walls=True,
                         **kwargs)  # fmt: skip

    @staticmethod
    def _gen_mission():
        return "get to the green goal square"

    def _gen_grid(self, width, height):
        size = self._rand_int(6, self.size + 1) if self.random_size else self.size
        generator = torch.Generator().manual_seed(int(self.np_random.integers(2**63)))
        cells, x, y = kruskal_mazes(torch.tensor([size]), width, generator)
        self.grid = Grid(width, height)
        for i, j in np.ndindex(width, height):
            self.grid.set(i, j, {EMPTY: None, WALL: Wall(), GOAL: Goal()}[int(cells[0, i, j])])
        self.agent_pos, self.agent_dir = (int(x[0]), int(y[0])), 0


class MazeVectorEnv(GridVectorEnv):
    """N mazes at once: the same task as `MazeEnv`, the mazes drawn `BLOCK` at a time."""

    STATE = ("cells", "x", "y", "direction")
    BLOCK = 256

    def __init__(self, num_envs=1, size=13, random_size=False, max_steps=256, agent_view_size=7, device="cpu",
                 render_mode=None):  # fmt: skip
        check_view_size(agent_view_size)
        check_maze_size(size, random_size)
        view = agent_view_size
        super().__init__(num_envs, view**2 or size**2, max_steps, device)
        self.render_mode, self.size, self.random_size, self.view = render_mode, size, random_size, view
        N, device = num_envs, self.device
        self.cells = torch.full((N, size, size), WALL, dtype=torch.uint8, device=device)
        self.x, self.y, self.direction = torch.ones(3, N, dtype=torch.int64, device=device)
        self.rows = torch.arange(N, device=device)
        self.step_x, self.step_y = torch.tensor(np.array(DIR_TO_VEC).T, device=device)  # (4,) each
        encode = {EMPTY: (EMPTY, 0, 0), WALL: WALL_CELL, GOAL: (GOAL, COLOR_TO_IDX["green"], 0)}
        self.encode = torch.zeros(GOAL + 1, 3, dtype=torch.uint8, device=device)
        for kind, cell in encode.items():
            self.encode[kind] = torch.tensor(cell, dtype=torch.uint8)
        # MiniGridEnv.get_view_coords inverted: view cell (i, j) lies i - view // 2 to the right, view - 1 - j ahead
        ahead = (view - 1 - torch.arange(view, device=device)).expand(view, view)
        right = (torch.arange(view, device=device) - view // 2)[:, None].expand(view, view)
        dx, dy = self.step_x[:, None, None], self.step_y[:, None, None]
        self.view_x, self.view_y = dx * ahead - dy * right, dy * ahead + dx * right  # (4, view, view)
        self._draw_block()

    def _draw_block(self):
        self.block_start = self.generator.get_state()  # a saved state redraws its block from here
        sizes = torch.full((self.BLOCK,), self.size, device=self.device)
        if self.random_size:
            sizes = torch.randint(6, self.size + 1, sizes.shape, generator=self.generator, device=self.device)
        self.block, self.used = kruskal_mazes(sizes, self.size, self.generator), 0

    def _fresh(self, n):
        """The next n mazes: cells (n, S, S), x (n,), y (n,)."""
        parts = []
        while n > 0:
            if self.used == self.BLOCK:
                self._draw_block()
            take = slice(self.used, min(self.used + n, self.BLOCK))
            parts.append([part[take] for part in self.block])
            n -= take.stop - take.start
            self.used = take.stop
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.generator.manual_seed(seed)
            self._draw_block()
        self.step_count.zero_()
        self._begin(torch.ones(self.num_envs, dtype=torch.bool, device=self.device))
        return self._observe(), {}

    def _begin(self, mask):
        which = mask.nonzero().squeeze(1)
        if len(which):
            self.cells[which], self.x[which], self.y[which] = self._fresh(len(which))
            self.direction[which] = 0

    def _move(self, actions):
        if ((actions < 0) | (actions > 2)).any():
            raise IndexError("actions are 0 (left), 1 (right) and 2 (forward)")
        forward = actions == 2
        self.direction = (self.direction - (actions == 0).long() + (actions == 1).long()) % 4
        x = self.x + self.step_x[self.direction] * forward
        y = self.y + self.step_y[self.direction] * forward
        ahead = self.cells[self.rows, x, y]
        walks = forward & (ahead != WALL)
        self.x, self.y = torch.where(walks, x, self.x), torch.where(walks, y, self.y)
        terminated = walks & (ahead == GOAL)
        return terminated, terminated.float()

    def _observe(self):
        if self.view == 0:
            image = self.encode[self.cells.int()]
            agent = torch.tensor((OBJECT_TO_IDX["agent"], COLOR_TO_IDX["red"], 0), dtype=torch.uint8)
            image[self.rows, self.x, self.y] = agent.to(self.device)
            image[self.rows, self.x, self.y, 2] = self.direction.to(torch.uint8)
        else:
            x = self.x[:, None, None] + self.view_x[self.direction]  # (N, view, view)
            y = self.y[:, None, None] + self.view_y[self.direction]
            last = self.size - 1
            # beyond the grid MiniGrid sees wall, and so is the grid's own border
            seen = self.cells[self.rows[:, None, None], x.clamp(0, last), y.clamp(0, last)]
            seen[:, self.view // 2, -1] = EMPTY  # the agent's own cell shows what it carries: nothing
            image = self.encode[seen.int()]
        return torch.cat((image.flatten(1), self.direction[:, None].to(torch.uint8)), 1)

    def task_variables(self) -> dict[str, torch.Tensor]:
        """(N,) int64 each: x, y, direction of the agent, goal_x, goal_y."""
        goal = (self.cells.flatten(1) == GOAL).int().argmax(1)
        return {"x": self.x.clone(), "y": self.y.clone(), "direction": self.direction.clone(),
                "goal_x": goal // self.size, "goal_y": goal % self.size}  # fmt: skip

    def state_dict(self) -> dict:
        return {**super().state_dict(), "generator": self.block_start.clone(), "used": self.used}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._draw_block()
        self.used = state["used"]


# ----------------------------------------------------------------------------------------------------------------------
# Any other environment: single ones, gymnasium's vector environment over them, and tensors on top
# ----------------------------------------------------------------------------------------------------------------------
class FlatMiniGrid(gym.ObservationWrapper):
    """MiniGrid's dict -> one uint8 vector: the image flattened, then the direction. The mission is dropped."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        size = int(np.prod(env.observation_space["image"].shape)) + 1
        self.observation_space = spaces.Box(0, 255, (size,), np.uint8)

    def observation(self, obs):
        return np.append(obs["image"], np.uint8(obs["direction"]))


def make_single(env_id: str, view_size: int | None = None, render_mode: str | None = None) -> gym.Env:
    """One environment with the flat observation that the batched one gives; for MiniGrid ids name the `view_size`."""
    render = {"render_mode": render_mode} if render_mode else {}
    if view_size is None:
        return gym.make(gym.registry[env_id], **render)
    env = gym.make(gym.registry[env_id], agent_view_size=view_size or 3, **render)
    return FlatMiniGrid(env if view_size else FullyObsWrapper(env))


class TensorVectorEnv(gym.vector.VectorWrapper):
    """A NumPy vector environment (SAME_STEP) with tensors on `device` outside, and `final_obs` made dense (N, D)."""

    def __init__(self, env: VectorEnv, device):
        super().__init__(env)
        if env.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP:
            raise ValueError(f"{env} must reset in the same step (AutoresetMode.SAME_STEP)")
        self.device = torch.device(device)

    def _tensor(self, array, dtype=None):
        return torch.as_tensor(array, dtype=dtype, device=self.device)

    def reset(self, *, seed=None, options=None):
        if seed is not None and hasattr(self.env, "envs"):  # seed + i, gymnasium's way, would share streams among seeds
            seed = train_seeds(seed, self.num_envs) if seed < EVAL_SEED else seed
        obs, _ = self.env.reset(seed=seed, options=options)
        return self._tensor(obs), {}

    def step(self, actions):
        obs, reward, terminated, truncated, infos = self.env.step(actions.cpu().numpy())
        final_obs, done = obs, terminated | truncated
        if done.any():
            final_obs = infos["final_obs"]
            if final_obs.dtype == object:  # gymnasium's: an observation where the mask is set, None elsewhere
                final_obs = np.stack([obs[n] if final is None else final for n, final in enumerate(final_obs)])
        infos = {"final_obs": self._tensor(final_obs), "_final_obs": self._tensor(done)}
        reward = self._tensor(reward, torch.float32)
        return self._tensor(obs), reward, self._tensor(terminated), self._tensor(truncated), infos

    def task_variables(self) -> dict[str, torch.Tensor]:
        return {name: self._tensor(value) for name, value in self.env.task_variables().items()}

    def state_dict(self) -> dict:
        if hasattr(self.env, "state_dict"):
            return self.env.state_dict()
        return {"generators": [env.unwrapped.np_random.bit_generator.state for env in self.env.envs]}

    def load_state_dict(self, state: dict) -> None:
        """Restores what `state_dict` kept; `resumes_exactly` says whether that is all."""
        if hasattr(self.env, "load_state_dict"):
            return self.env.load_state_dict(state)
        for env, generator in zip(self.env.envs, state["generators"], strict=True):
            env.unwrapped.np_random.bit_generator.state = generator


def resumes_exactly(vec_env) -> bool:
    """Whether a saved state holds the episodes in progress; gymnasium's vector environments keep generators only."""
    return not hasattr(getattr(vec_env, "env", vec_env), "envs")


def make_batched(env_id: str, num_envs: int, device, view_size: int | None = None):
    """N environments behind tensors on `device`: the batched form where one is registered here, otherwise
    gymnasium's vector environment over single ones. Both give the same observation."""
    view = {} if view_size is None else {"agent_view_size": view_size}
    entry_point = gym.registry[env_id].vector_entry_point
    if entry_point in ("envs:MemoryVectorEnv", "envs:MazeVectorEnv"):
        return gym.make_vec(gym.registry[env_id], num_envs, device=device, **view)
    if entry_point == "envs:CartPoleNoVelVectorEnv":
        return TensorVectorEnv(gym.make_vec(gym.registry[env_id], num_envs), device)
    make_one = functools.partial(make_single, env_id, view_size)
    return TensorVectorEnv(gym.vector.SyncVectorEnv([make_one] * num_envs, autoreset_mode="SameStep"), device)


def record_videos(env: gym.Env, policy, folder: str, prefix: str, episodes: int) -> list[str]:
    """Play `episodes` episodes of a rendering `env` and write one mp4 each, `folder/prefix-episode-0.mp4` and on.

    `policy(obs, state, done)` takes tensors (1, D), the recurrent state or None at the start, (1,) float32, and
    returns an action tensor (1,) and the next state. Returns the paths.
    """
    from gymnasium.wrappers import RecordVideo  # needs moviepy, so only those who record do

    env = RecordVideo(env, folder, episode_trigger=lambda _: True, name_prefix=prefix, gc_trigger=None)
    for episode in range(episodes):
        obs, _ = env.reset(seed=EVAL_SEED + episode)
        state, done = None, True
        while not done or state is None:
            action, state = policy(torch.as_tensor(obs)[None], state, torch.tensor([float(done)]))
            obs, _, terminated, truncated, _ = env.step(int(action))
            done = terminated or truncated
    env.close()
    return sorted(glob.glob(os.path.join(glob.escape(folder), f"{glob.escape(prefix)}-episode-*.mp4")))


# ----------------------------------------------------------------------------------------------------------------------
# One policy, its environments divided over processes
# ----------------------------------------------------------------------------------------------------------------------
def rank_and_number() -> tuple[int, int]:
    """Which process this is, of how many that torchrun started; 0 of 1 without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def take_gpu(cuda: bool) -> None:
    """With --cuda and a GPU, each process that torchrun started here takes its own. Raises UsageError if there are too few."""
    if not (cuda and torch.cuda.is_available()):
        return
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if local_rank >= torch.cuda.device_count():
        raise UsageError(f"torchrun: process {local_rank} of this machine finds {torch.cuda.device_count()} GPUs; "
                         "take a smaller --nproc-per-node, or --no-cuda")  # fmt: skip
    torch.cuda.set_device(local_rank)


class Ranks:
    """The processes that torchrun started to train one policy: they meet here and nowhere else (NCCL on GPUs, Gloo on CPUs).

    Alone, every method gives back what it is given and nothing is communicated. All processes call the same methods in the
    same order. If one dies the others' calls raise, or torchrun ends them; one that is frozen is waited for for two hours.
    """

    def __init__(self, device: torch.device):
        self.rank, self.number = rank_and_number()
        if self.number > 1:
            take_gpu(device.type == "cuda")
            # the others wait while one evaluates, so the limit is long
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=datetime.timedelta(hours=2))
        self.device = device

    def broadcast(self, parameters) -> None:
        """Rank 0's parameters in every process."""
        for parameter in parameters if self.number > 1 else ():
            dist.broadcast(parameter.data, 0)

    def std_mean(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Standard deviation (unbiased) and mean over all processes' x, which has the same size in each."""
        if self.number == 1:
            return x.std(), x.mean()
        sums = torch.stack((x.double().sum(), x.double().square().sum()))
        dist.all_reduce(sums)
        total = x.numel() * self.number
        mean = sums[0] / total
        return ((sums[1] - total * mean**2).clamp(0) / (total - 1)).sqrt().to(x.dtype), mean.to(x.dtype)

    def average(self, parameters, stats: dict) -> dict:
        """Average the gradients, in place, and `stats` (tensors of one number), which are returned; one reduction for all."""
        if self.number == 1:
            return stats
        gradients = [parameter.grad for parameter in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients] + [torch.stack(list(stats.values()))])
        dist.all_reduce(flat)
        *parts, averages = (flat / self.number).split([gradient.numel() for gradient in gradients] + [len(stats)])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return dict(zip(stats, averages.unbind(), strict=True))

    def largest(self, *numbers: int) -> list[int]:
        """Of each number the largest that a process gave: a decision that all take together."""
        if self.number == 1:
            return list(numbers)
        flags = torch.tensor(numbers, device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return flags.tolist()

    def collect(self, state: dict) -> list[dict]:
        """Each process's state, in order: on rank 0 only, an empty list elsewhere."""
        if self.number == 1:
            return [state]
        buffer, parts = io.BytesIO(), [b""] * self.number
        torch.save(state, buffer)  # as bytes: a tensor would take its own GPU with it
        dist.all_gather_object(parts, buffer.getvalue())
        return [torch.load(io.BytesIO(part), map_location="cpu") for part in parts] if self.rank == 0 else []

    def close(self) -> None:
        if self.number > 1:
            dist.destroy_process_group()


# ----------------------------------------------------------------------------------------------------------------------
# Checks: each raises UsageError with one line that names the flag and the remedy
# ----------------------------------------------------------------------------------------------------------------------
def check_view_size(view_size: int) -> None:
    if view_size != 0 and (view_size < 3 or view_size % 2 == 0):
        raise UsageError(f"--view-size must be 0 (the whole grid) or an odd number from 3, got {view_size}")


def check_maze_size(size: int, random_size: bool) -> None:
    if size < (6 if random_size else 5):
        raise UsageError(f"--env-id: a maze needs a size of at least {6 if random_size else 5}, got {size}")


def check_env_id(env_id: str, flag: str = "--env-id") -> None:
    if env_id not in gym.registry:
        near = difflib.get_close_matches(env_id, gym.registry, 1)
        raise UsageError(f"{flag}: no environment {env_id!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def check_minigrid(env_id: str, view_size: int, flag: str = "--env-id") -> None:
    """Refuses what the MiniGrid script cannot train on."""
    check_view_size(view_size)
    check_env_id(env_id, flag)
    if not env_id.startswith(("MiniGrid-", "BabyAI-")):
        raise UsageError(f"{flag}: {env_id!r} is not a MiniGrid id; take one that starts with 'MiniGrid-'")
    if gym.registry[env_id].vector_entry_point:
        return  # one of ours
    env = _make_or_refuse(env_id, flag, agent_view_size=view_size or 3)
    space = env.observation_space
    mission = space["mission"] if isinstance(space, spaces.Dict) and "mission" in space.spaces else None
    options = getattr(mission, "ordered_placeholders", None) or []
    if type(mission) is not MissionSpace or any(len(option) > 1 for option in options):
        raise UsageError(f"{flag}: the mission of {env_id!r} varies and this agent does not read text; "
                         "take an id with a fixed mission, as MiniGrid-Memory* or MiniGrid-ObstructedMaze*")  # fmt: skip
    if not isinstance(env.action_space, spaces.Discrete):
        raise UsageError(f"{flag}: {env_id!r} has actions {env.action_space}; take one with discrete actions")


def check_flat_box(env_id: str, flag: str = "--env-id") -> None:
    """Refuses what the CartPole script cannot train on."""
    check_env_id(env_id, flag)
    env = _make_or_refuse(env_id, flag)
    if not isinstance(env.action_space, spaces.Discrete):
        raise UsageError(f"{flag}: {env_id!r} has actions {env.action_space}; take one with discrete actions")
    if not isinstance(env.observation_space, spaces.Box) or len(env.observation_space.shape) != 1:
        raise UsageError(f"{flag}: the observation of {env_id!r} is not a flat Box; MiniGrid ids run with "
                         "ppo_lstm_minigrid.py")  # fmt: skip


def _make_or_refuse(env_id: str, flag: str, **kwargs) -> gym.Env:
    try:
        env = gym.make(gym.registry[env_id], **kwargs)
        env.close()
        return env
    except Exception as error:  # whatever a foreign environment raises, the user gets one line
        raise UsageError(f"{flag}: {env_id!r} cannot be made here: {str(error).splitlines()[0]}") from error


def _register() -> None:
    for version in (0, 1):
        gym.register(
            f"CartPoleNoVel-v{version}",
            entry_point="envs:CartPoleNoVelEnv",
            vector_entry_point="envs:CartPoleNoVelVectorEnv",
            max_episode_steps=500,
            reward_threshold=475.0,
        )
    for name, smallest in (("CustomMaze", 5), ("CustomMazeRandom", 6)):
        for size in range(smallest, 25):
            gym.register(
                f"MiniGrid-{name}-S{size}-v0",
                entry_point="envs:MazeEnv",
                vector_entry_point="envs:MazeVectorEnv",
                kwargs={"size": size, "random_size": name == "CustomMazeRandom"},
            )
    for env_id, spec in gym.registry.items():
        if env_id.startswith("MiniGrid-Memory"):
            spec.vector_entry_point = "envs:MemoryVectorEnv"


_register()
