"""Environments that need memory, single and batched.

Importing this module registers, with gymnasium:

    CartPoleNoVel-v0                            CartPole that shows position and angle, not the velocities
    MiniGrid-CustomMaze-S{5..24}-v0             a new Kruskal maze each episode
    MiniGrid-CustomMazeRandom-S{6..24}-v0       the same, and a new size (6 up to the number) each episode
    MiniGrid-MemoryS{33,65,129,257}-v0          MiniGrid's Memory with long corridors, to evaluate on
    MiniGrid-Memory*-v0                         (MiniGrid's own ids) gain a batched form

`gym.make(id)` gives the ordinary single environment, `gym.make_vec(id, num_envs=512, agent_view_size=3)` the
batched one: a `gymnasium.vector.VectorEnv` whose N environments live in a few tensors on `device`. Batched
observations are flat uint8 vectors (the image, then the direction) and the actions are left, right, forward.

Every batched environment resets in the SAME step: the observation that follows a done is the new episode's first,
and `infos["final_obs"]` (N, D) holds the old episode's last wherever the mask `infos["_final_obs"]` (N,) is set.
"""

import functools
import os
import tempfile
from typing import NamedTuple

import gymnasium as gym
import minigrid  # noqa: F401  (registers the MiniGrid ids)
import numpy as np
import torch
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

EVAL_SEED = 2**31  # seeds of evaluation start here, those of training are below; generators read 32 bits
EMPTY, WALL, GOAL = OBJECT_TO_IDX["empty"], OBJECT_TO_IDX["wall"], OBJECT_TO_IDX["goal"]
WALL_CELL = (WALL, COLOR_TO_IDX["grey"], 0)


def spawn_seeds(seed: int, n: int, *key: int, evaluation: bool = False) -> list[int]:
    """n seeds, all different, that depend on `seed` and `key`: below 2**31, or from 2**31 to 2**32 for evaluation."""
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
    return [int(s) + EVAL_SEED * evaluation for s in generator.choice(2**31, n, replace=False)]


def one_seed(seed) -> int:
    """The seed of a generator that serves all environments: `seed`, or the first of a list. Raises ValueError."""
    first = seed[0] if isinstance(seed, list) and seed else seed
    if not isinstance(first, (int, np.integer)) or not 0 <= first < 2**32:
        raise ValueError(f"a seed must be an integer from 0 to 2**32 - 1, got {first!r}")
    return int(first)


def check_actions(actions, num_envs: int) -> None:
    """Raises ValueError where actions are not `num_envs` integers."""
    if tuple(actions.shape) != (num_envs,) or "int" not in str(actions.dtype):
        raise ValueError(f"actions must be {num_envs} integers, got {actions.dtype} of shape {tuple(actions.shape)}")


# ---- CartPole without velocities
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
        obs, info = super().reset(seed=None if seed is None else one_seed(seed), options=options)
        return obs[:, ::2], info

    def step(self, actions):
        actions = np.asarray(actions)
        check_actions(actions, self.num_envs)
        if self.state is None or actions.min() < 0 or actions.max() > 1:
            raise ValueError("call reset() first; actions are 0 (left) and 1 (right)")
        obs, reward, terminated, truncated, _ = super().step(actions.astype(np.int64))
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


# ---- MiniGrid Memory, tabulated from the real environment
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
    look, env.gen_obs = env.gen_obs, lambda: None  # outcomes do not need the (slow) observation
    views = [FlatMiniGrid(env)] if view_size else [FullyObsWrapper(env), FlatMiniGrid(FullyObsWrapper(env))]
    index, layouts, obs, next_state, ended, variables, start_probs = {}, {}, [], [], [], [], {}
    for probability in _every_reset(env):
        types = bytes(EMPTY if cell is None else OBJECT_TO_IDX[cell.type] for cell in env.grid.grid)
        layout = layouts.setdefault(types, len(layouts))
        cue = int(env.grid.get(1, size // 2 - 1).type == "ball")
        frontier = []

        def state_index(outcome, frontier=frontier, layout=layout, cue=cue):
            key = layout, *map(int, env.agent_pos), env.agent_dir, outcome
            if key not in index:
                index[key] = len(obs)
                obs.append(functools.reduce(lambda seen, view: view.observation(seen), views, look()))
                next_state.append([index[key]] * 3)
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
        variables=dict(zip(names, torch.tensor(variables).T.contiguous(), strict=True)),
    )


class GridVectorEnv(VectorEnv):
    """What the batched MiniGrid environments share: spaces, seeding, the reward, the autoreset and saved states.

    A subclass keeps its episodes in tensors named by `STATE`, each (N, ...), and says how to begin, move and look.
    Bad arguments, actions, options and seeds raise ValueError.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}
    STATE: tuple[str, ...] = ()

    def __init__(self, num_envs: int, size: int, view_size: int, max_steps: int, device, render_mode):
        for name, value in (("num_envs", num_envs), ("max_steps", max_steps)):
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name} must be an integer from 1, got {value!r}")
        if render_mode is not None:
            raise ValueError(f"a batched environment does not render (render_mode={render_mode!r}); gym.make(id) does")
        check_view_size(view_size)
        self.num_envs, self.max_steps, self.device = num_envs, max_steps, torch.device(device)
        self.single_observation_space = spaces.Box(0, 255, (3 * (view_size or size) ** 2 + 1,), np.uint8)
        self.single_action_space = spaces.Discrete(3)  # left, right, forward: MiniGrid's first three
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.generator, self.started = torch.Generator(self.device), False
        self._seed(int(np.random.SeedSequence().generate_state(1)[0]))
        self.step_count = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        # MiniGridEnv._reward, in float64 as there, for every step count at which success can come
        count = torch.arange(max_steps + 1, dtype=torch.float64)
        self.reward_at = (1 - 0.9 * (count / max_steps)).float().to(self.device)

    def _seed(self, seed):
        self._np_random_seed = one_seed(seed)  # what gymnasium's `np_random_seed` shows
        self.generator.manual_seed(self._np_random_seed)

    def reset(self, *, seed=None, options=None):
        """-> obs (N, D) uint8, {}. The generator that draws all episodes is seeded with `seed`, if given."""
        if seed is not None:
            self._seed(seed)
        self.started = True
        self.step_count.zero_()
        self._begin(torch.ones(self.num_envs, dtype=torch.bool, device=self.device))
        return self._observe(), {}

    def step(self, actions):
        """actions (N,) -> obs (N, D) uint8, reward (N,) float32, terminated (N,), truncated (N,), infos."""
        actions = torch.as_tensor(actions, device=self.device)
        check_actions(actions, self.num_envs)
        if not self.started:
            raise ValueError("call reset() before step()")
        try:
            terminated, success = self._move(actions.long())
        except RuntimeError as error:  # on a GPU the look-up itself fails
            raise ValueError("actions are 0 (left), 1 (right) and 2 (forward)") from error
        self.step_count += 1
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
        self.started = True
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
        max_steps = 5 * size**2 if max_steps is None else max_steps
        super().__init__(num_envs, size, agent_view_size, max_steps, device, render_mode)
        *tensors, variables = memory_table(size, random_length, agent_view_size)
        self.table = Table(*(t.to(self.device) for t in tensors), {k: v.to(self.device) for k, v in variables.items()})
        self.cumulative = self.table.start_probs.cumsum(0)
        self.cumulative[-1] = 1.0
        self.state = torch.zeros(num_envs, dtype=torch.int64, device=self.device)

    def reset(self, *, seed=None, options=None):
        obs, infos = super().reset(seed=seed)
        if not options or "start" not in options:
            return obs, infos
        start, K = torch.as_tensor(options["start"], device=self.device), len(self.table.starts)
        if tuple(start.shape) != (self.num_envs,) or not ((start >= 0) & (start < K)).all():
            raise ValueError(f"options['start'] must be {self.num_envs} numbers from 0 to {K - 1}")
        self.state = self.table.starts[start.long()]
        return self._observe(), infos

    def _begin(self, mask):
        # one draw for every environment, used or not: no transfer to ask how many are needed
        draw = torch.rand(self.num_envs, generator=self.generator, device=self.device, dtype=torch.float64)
        start = self.table.starts[torch.searchsorted(self.cumulative, draw, right=True)]
        self.state = torch.where(mask, start, self.state)

    def _move(self, actions):
        self.state = self.table.next_state.index_select(0, self.state).gather(1, actions[:, None]).squeeze(1)
        return self.table.terminal[self.state], self.table.success[self.state]

    def _observe(self):
        return self.table.obs.index_select(0, self.state)

    def task_variables(self) -> dict[str, torch.Tensor]:
        """(N,) int64 each: cue (0 key, 1 ball), x, y, direction of the agent, success_x, success_y (the right end)."""
        return {name: values[self.state] for name, values in self.table.variables.items()}


def success_return(env_id: str) -> float:
    """The return from which an episode is a success: the id's `reward_threshold` (less what rounding of float32 rewards
    takes from a sum), or any positive return where it has none."""
    threshold = gym.spec(env_id).reward_threshold
    return 1e-9 if threshold is None else threshold - 1e-5 * max(1.0, abs(threshold))


def evaluation_starts(env_id: str, episodes: int, once: bool):
    """-> weights (K,) float64 of K evaluation episodes, `reset` options that give them, whether these are all there are.

    A Memory id has few starts. One episode from each, weighted by its probability, gives a deterministic policy's exact
    success rate; without `once` the starts are repeated until there are at least `episodes`.
    """
    spec = gym.spec(env_id)
    if spec.vector_entry_point is not MemoryVectorEnv:
        return torch.full((episodes,), 1 / episodes, dtype=torch.float64), None, False
    starts = memory_table(spec.kwargs["size"], spec.kwargs.get("random_length", False), 3).start_probs
    repeats = 1 if once else -(-episodes // len(starts))
    return starts.repeat(repeats) / repeats, {"start": torch.arange(len(starts)).repeat(repeats)}, True


# ---- Kruskal mazes
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
        generator = torch.Generator().manual_seed(int(self.np_random.integers(2**32)))
        cells, x, y = kruskal_mazes(torch.tensor([size]), width, generator)
        self.grid = Grid(width, height)
        for i, j in np.ndindex(width, height):
            self.grid.set(i, j, {EMPTY: None, WALL: Wall(), GOAL: Goal()}[int(cells[0, i, j])])
        self.agent_pos, self.agent_dir = (int(x[0]), int(y[0])), 0


class MazeVectorEnv(GridVectorEnv):
    """N mazes at once: the same task as `MazeEnv`, the mazes drawn hundreds at a time."""

    STATE = ("cells", "x", "y", "direction")

    def __init__(self, num_envs=1, size=13, random_size=False, max_steps=256, agent_view_size=7, device="cpu",
                 render_mode=None):  # fmt: skip
        check_maze_size(size, random_size)
        super().__init__(num_envs, size, agent_view_size, max_steps, device, render_mode)
        self.size, self.random_size, self.view = size, random_size, agent_view_size
        N, view, device = num_envs, agent_view_size, self.device
        self.cells = torch.full((N, size, size), WALL, dtype=torch.uint8, device=device)
        self.x, self.y, self.direction = torch.ones(3, N, dtype=torch.int64, device=device)
        self.rows = torch.arange(N, device=device)
        self.turn = torch.tensor([3, 1, 0], device=device)  # of each action, in quarter turns to the right
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

    def _seed(self, seed):
        super()._seed(seed)
        self.block_start = None  # mazes of the old seed are not used

    def _draw_block(self):
        self.block_start = self.generator.get_state()  # a saved state redraws its block from here
        sizes = torch.full((max(256, self.num_envs),), self.size, device=self.device)
        if self.random_size:
            sizes = torch.randint(6, self.size + 1, sizes.shape, generator=self.generator, device=self.device)
        self.block, self.used = kruskal_mazes(sizes, self.size, self.generator), 0

    def _begin(self, mask):
        which = mask.nonzero().squeeze(1)
        if self.block_start is None or self.used + len(which) > len(self.block[0]):
            self._draw_block()
        mazes = slice(self.used, self.used + len(which))
        self.cells[which], self.x[which], self.y[which] = (part[mazes] for part in self.block)
        self.direction[which] = 0
        self.used = mazes.stop

    def _move(self, actions):
        self.direction = (self.direction + self.turn.gather(0, actions)) % 4
        forward = actions == 2
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


# ---- Any other environment: single ones, gymnasium's vector environment over them, and tensors on top
class FlatMiniGrid(gym.ObservationWrapper):
    """MiniGrid's dict -> one uint8 vector: the image flattened, then the direction. The mission is dropped."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        size = int(np.prod(env.observation_space["image"].shape)) + 1
        self.observation_space = spaces.Box(0, 255, (size,), np.uint8)

    def observation(self, obs):
        return np.append(obs["image"], np.uint8(obs["direction"]))


def make_single(env_id: str, view_size: int | None = None, render_mode: str | None = None,
                ignore_mission: bool = False) -> gym.Env:  # fmt: skip
    """One environment with the flat observation that the batched one gives; for MiniGrid ids name the `view_size`.

    Raises ValueError where the id is not MiniGrid's, or has a mission that varies and is not to be ignored.
    """
    render = {"render_mode": render_mode} if render_mode else {}
    if view_size is None:
        return gym.make(gym.spec(env_id), **render)
    check_view_size(view_size)
    gym.spec(env_id)  # an unknown id is told its nearest neighbours
    if not env_id.startswith(("MiniGrid-", "BabyAI-")):
        raise ValueError("it is not a MiniGrid id; take one that starts with 'MiniGrid-'")
    env = gym.make(gym.spec(env_id), agent_view_size=view_size or 3, **render)
    mission = env.observation_space["mission"]
    varies = type(mission) is not MissionSpace or any(len(words) > 1 for words in mission.ordered_placeholders or ())
    if varies and not ignore_mission:
        raise ValueError("its mission varies and this agent does not read text; take an id with a fixed mission, or add "
                         "--ignore-mission where one can do without")  # fmt: skip
    return FlatMiniGrid(env if view_size else FullyObsWrapper(env))


def as_tensor(obs, space: spaces.Box, device) -> torch.Tensor:
    """An observation as a network reads it: uint8 stays, any other type becomes float32."""
    return torch.as_tensor(np.asarray(obs), dtype=torch.uint8 if space.dtype == np.uint8 else torch.float32, device=device)


class TensorVectorEnv(gym.vector.VectorWrapper):
    """A NumPy vector environment (SAME_STEP) with tensors on `device` outside: observations float32 or uint8, `final_obs`
    dense (N, D), actions 0 to A - 1 whatever number the environment's own begin with."""

    def __init__(self, env: VectorEnv, device):
        super().__init__(env)
        self.device, space, actions = torch.device(device), env.single_observation_space, env.single_action_space
        if env.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP:
            raise ValueError(f"{env} must reset in the same step (AutoresetMode.SAME_STEP)")
        if not isinstance(actions, spaces.Discrete):
            raise ValueError(f"its actions are {actions}; take an environment with discrete actions")
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"its observations are {space}; gymnasium.wrappers.FlattenObservation makes a flat Box of them")

    def reset(self, *, seed=None, options=None):
        if seed is not None and hasattr(self.env, "envs"):  # each its own: seed + i would share streams among seeds
            if not isinstance(seed, list):
                seed = spawn_seeds(one_seed(seed), self.num_envs, evaluation=seed >= EVAL_SEED)
        obs, _ = self.env.reset(seed=seed, options=options)
        return as_tensor(obs, self.single_observation_space, self.device), {}

    def step(self, actions):
        actions = actions.cpu().numpy() + self.single_action_space.start
        obs, reward, terminated, truncated, infos = self.env.step(actions)
        final_obs, done = obs, terminated | truncated
        if done.any():
            final_obs = infos["final_obs"]
            if final_obs.dtype == object:  # gymnasium's: an observation where the mask is set, None elsewhere
                final_obs = np.stack([obs[n] if final is None else final for n, final in enumerate(final_obs)])
        space, device = self.single_observation_space, self.device
        reward = torch.as_tensor(reward, dtype=torch.float32, device=device)
        terminated, truncated, done = (torch.as_tensor(x, device=device) for x in (terminated, truncated, done))
        infos = {"final_obs": as_tensor(final_obs, space, device), "_final_obs": done}
        return as_tensor(obs, space, device), reward, terminated, truncated, infos

    def task_variables(self) -> dict[str, torch.Tensor]:
        """(N,) each: the `task_variables()` of the environment, or of the single ones in it. Raises AttributeError."""
        if not hasattr(self.env, "envs"):
            return {name: torch.as_tensor(value) for name, value in self.env.task_variables().items()}
        each = [env.unwrapped.task_variables() for env in self.env.envs]
        return {name: torch.as_tensor(np.array([values[name] for values in each])) for name in each[0]}

    def state_dict(self) -> dict | None:
        """None where episodes in progress cannot be saved: gymnasium's vector environments."""
        return self.env.state_dict() if hasattr(self.env, "state_dict") else None

    def load_state_dict(self, state: dict) -> None:
        self.env.load_state_dict(state)


def make_batched(env_id: str, num_envs: int, device, view_size: int | None = None, ignore_mission: bool = False):
    """N environments behind tensors on `device`: the batched form where one is registered here, otherwise gymnasium's
    vector environment over single ones. Both give the same observation. Raises ValueError or gym.error.Error."""
    entry_point = gym.spec(env_id).vector_entry_point
    if entry_point in (MemoryVectorEnv, MazeVectorEnv) and view_size is not None:
        return gym.make_vec(gym.spec(env_id), num_envs, device=device, agent_view_size=view_size)
    if entry_point is CartPoleNoVelVectorEnv and view_size is None:
        return TensorVectorEnv(gym.make_vec(gym.spec(env_id), num_envs), device)
    make_one = functools.partial(make_single, env_id, view_size, ignore_mission=ignore_mission)
    return TensorVectorEnv(gym.vector.SyncVectorEnv([make_one] * num_envs, autoreset_mode="SameStep"), device)


def try_out(envs, film: gym.Env | None = None) -> None:
    """Reset and step `envs`, and film `film`, a little, so that what does not work raises before a run begins."""
    envs.reset(seed=0)
    for _ in range(3):
        envs.step(torch.zeros(envs.num_envs, dtype=torch.int64, device=envs.device))
    envs.close()
    if film is not None:
        state = (torch.zeros(1),)
        with tempfile.TemporaryDirectory() as folder:
            record_videos(film, lambda *_: (torch.zeros(1, dtype=torch.int64), state), state, folder, "try", 1, limit=2)


@torch.no_grad()
def record_videos(env: gym.Env, act, state, folder: str, prefix: str, episodes: int, limit: int = 10_000):
    """Play `episodes` episodes of a rendering `env`, `limit` steps at most, and write each to an mp4 frame by frame.

    `act(obs (1, D), state, done (1,))` returns an action (1,) and the next state; `state` is the first, its tensors' device
    the network's. Returns the paths, `folder/prefix-episode-0.mp4` and on.
    """
    from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter  # slow to import, and only videos need it

    os.makedirs(folder, exist_ok=True)
    space, device, first_state, paths = env.observation_space, state[0].device, state, []
    for n, seed in enumerate(spawn_seeds(0, episodes, evaluation=True)):
        path = os.path.join(folder, f"{prefix.replace('/', '_')}-episode-{n}.mp4")
        (obs, _), state, frame = env.reset(seed=seed), first_state, np.asarray(env.render())
        if frame.ndim != 3 or frame.dtype != np.uint8:
            raise ValueError("it does not render: render() must give frames (height, width, 3) of uint8")
        height, width = (side // 2 * 2 for side in frame.shape[:2])  # H.264 takes even sides only
        with FFMPEG_VideoWriter(path, (width, height), env.metadata.get("render_fps", 30)) as video:
            video.write_frame(frame[:height, :width, :3])
            for step in range(limit):
                done = torch.full((1,), float(step == 0), device=device)
                action, state = act(as_tensor(obs, space, device)[None], state, done)
                obs, _, terminated, truncated, _ = env.step(int(action) + int(env.action_space.start))
                video.write_frame(np.asarray(env.render())[:height, :width, :3])
                if terminated or truncated:
                    break
        paths.append(path)
    env.close()
    return paths


# ---- Checks and registration
def check_view_size(view_size: int) -> None:
    if view_size != 0 and (view_size < 3 or view_size % 2 == 0):
        raise ValueError(f"--view-size must be 0 (the whole grid) or an odd number from 3, got {view_size}")


def check_maze_size(size: int, random_size: bool) -> None:
    if size < (6 if random_size else 5):
        raise ValueError(f"a maze needs a size of at least {6 if random_size else 5}, got {size}")


def _register() -> None:
    gym.register("CartPoleNoVel-v0", CartPoleNoVelEnv, vector_entry_point=CartPoleNoVelVectorEnv, max_episode_steps=500,
                 reward_threshold=475.0)  # fmt: skip
    for name, smallest in (("CustomMaze", 5), ("CustomMazeRandom", 6)):
        for size in range(smallest, 25):
            kwargs = {"size": size, "random_size": name == "CustomMazeRandom"}
            gym.register(f"MiniGrid-{name}-S{size}-v0", MazeEnv, vector_entry_point=MazeVectorEnv, kwargs=kwargs)
    for size in (33, 65, 129, 257):
        gym.register(f"MiniGrid-MemoryS{size}-v0", MemoryEnv, kwargs={"size": size})
    for env_id, spec in gym.registry.items():
        if env_id.startswith("MiniGrid-Memory"):
            spec.vector_entry_point = MemoryVectorEnv


_register()
