"""Environments that need memory, single and batched. Importing this module registers, with gymnasium:

    CartPoleNoVel-v0                            CartPole that shows position and angle, not the velocities
    MiniGrid-CustomMaze-S{5..24}-v0             a new Kruskal maze each episode
    MiniGrid-CustomMazeRandom-S{6..24}-v0       the same, and a new size (6 up to the number) each episode
    MiniGrid-MemoryS{33,65,129,257}-v0          Memory with long corridors; MiniGrid's own Memory ids become batched

`gym.make(id)` gives the ordinary single environment, `gym.make_vec(id, num_envs=512, agent_view_size=3)` the
batched one: a `gymnasium.vector.VectorEnv` whose N environments live in a few tensors on `device`. For MiniGrid the
observations are flat uint8 vectors (the image, then the direction) and the actions are left, right, forward.
All batched environments reset in the SAME step: the observation that follows a done is the new episode's first,
and `infos["final_obs"]` (N, D) holds the old episode's last wherever the mask `infos["_final_obs"]` (N,) is set."""

import functools
import os
import tempfile
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv, CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, VectorEnv
from minigrid.core.constants import COLOR_TO_IDX, DIR_TO_VEC, OBJECT_TO_IDX
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Goal, Wall
from minigrid.envs import EmptyEnv, MemoryEnv
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import FullyObsWrapper

EVAL_SEED = 2**31  # seeds of evaluation start here, those of training are below; generators read 32 bits
EMPTY, WALL, GOAL, AGENT = (OBJECT_TO_IDX[name] for name in ("empty", "wall", "goal", "agent"))


def spawn_seeds(seed: int, n: int, *key: int, evaluation: bool = False) -> list[int]:
    """n seeds, all different, that depend on `seed` and `key`: below 2**31, or from 2**31 to 2**32 for evaluation."""
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
    return [int(s) + EVAL_SEED * evaluation for s in generator.choice(2**31, n, replace=False)]


def one_seed(seed) -> int:
    """The seed of a generator that serves all environments: `seed`, or the first of a list. Raises ValueError."""
    seeds = seed if isinstance(seed, list) and seed else [seed]
    if not all(isinstance(s, (int, np.integer)) and 0 <= s < 2**32 for s in seeds):
        raise ValueError(f"a seed must be an integer from 0 to 2**32 - 1, got {seed!r}")
    return int(seeds[0])


def check_number(name: str, value, lowest: int, odd: bool = False) -> None:
    """Raises ValueError where `value` is not an integer of at least `lowest`, or not odd where it must be."""
    if not isinstance(value, (int, np.integer)) or value < lowest or (odd and value % 2 == 0):
        raise ValueError(f"{name} must be an {'odd ' * odd}integer of at least {lowest}, got {value!r}")


def integers(name: str, values, count: int, device, below: int | None = None) -> torch.Tensor:
    """`values` as an int64 tensor on `device`. Raises ValueError unless they are `count` integers (from 0, `below`)."""
    values = torch.as_tensor(values, device=device)
    if values.shape != (count,) or "int" not in str(values.dtype):
        raise ValueError(f"{name} must be {count} integers, got {values.dtype} of shape {tuple(values.shape)}")
    if below is not None and not all(0 <= int(value) < below for value in values.long().aminmax()):
        raise ValueError(f"{name} must be from 0 to {below - 1}, got {values.tolist()}")
    return values.long()


def load_tensors(env: VectorEnv, state: dict) -> None:
    """Give `env` the tensors (or arrays) that its `STATE` names. Raises ValueError where a shape is another."""
    for name in env.STATE:
        own = torch.as_tensor(getattr(env, name))
        if state[name].shape != own.shape:
            raise ValueError(f"the saved {name} has shape {tuple(state[name].shape)}, not {tuple(own.shape)}")
        own.copy_(state[name])


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
    STATE = ("state", "steps")

    def __init__(self, num_envs: int = 1, max_episode_steps: int = 500, render_mode: str | None = None, **kwargs):
        check_number("num_envs", num_envs, 1)
        check_number("max_episode_steps", max_episode_steps, 1)
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        super().__init__(num_envs, max_episode_steps, render_mode, **kwargs)
        self.single_observation_space = CartPoleNoVelEnv().observation_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=None if seed is None else one_seed(seed), options=options)
        return obs[:, ::2], info

    def step(self, actions):
        actions = integers("actions", actions, self.num_envs, "cpu", below=2).numpy()
        if self.state is None:
            raise ValueError("call reset() before step()")
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
        arrays = {name: torch.tensor(getattr(self, name)) for name in self.STATE}
        return {**arrays, "generator": self.np_random.bit_generator.state}

    def load_state_dict(self, state: dict) -> None:
        self.reset()
        load_tensors(self, state)
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


def _every_reset(env: MiniGridEnv):
    """Reset `env` once for each possible sequence of its random draws; yields that sequence's probability."""
    def draw(low, high):  # replays the script, then draws the lowest; notes every range that is asked for
        ranges.append((low, high))
        return next(replay, low)

    env._rand_int, pending = draw, [()]
    while pending:
        script, ranges = pending.pop(), []
        replay = iter(script)
        env.reset()
        if len(ranges) > len(script):  # a draw that the script does not settle yet: settle it every way
            pending += [(*script, value) for value in range(*ranges[len(script)])]
        else:
            yield float(np.prod([1 / (high - low) for low, high in ranges]))


@functools.lru_cache(maxsize=16)
def memory_table(size: int, random_length: bool, view_size: int) -> Table:
    """Enumerate MiniGrid's own `MemoryEnv`: its grid never changes within an episode, so each state reachable from a
    start is asked once what it shows and where each action leads. `view_size` is odd, from 3, or 0: the whole grid."""
    env = MemoryEnv(size, random_length, agent_view_size=view_size or 3, max_steps=2)
    look, env.gen_obs = env.gen_obs, lambda: None  # outcomes do not need the (slow) observation
    views = [FlatMiniGrid(env)] if view_size else [FullyObsWrapper(env), FlatMiniGrid(FullyObsWrapper(env))]
    index, obs, next_state, start_probs, frontier = {}, [], [], {}, []

    def state_index(outcome):  # 0: the episode goes on, 1: failure, 2: success
        cue = int(env.grid.get(1, size // 2 - 1).type == "ball")
        key = cue, *map(int, (*env.agent_pos, env.agent_dir, *env.success_pos, outcome))  # cue and right end: the grid
        if key not in index:
            index[key] = len(obs)
            obs.append(functools.reduce(lambda seen, view: view.observation(seen), views, look()))
            next_state.append([index[key]] * 3)
            frontier.append(key)
        return index[key]

    for probability in _every_reset(env):
        start = state_index(0)
        start_probs[start] = start_probs.get(start, 0) + probability
        while frontier:
            _, x, y, direction, _, _, outcome = key = frontier.pop()
            for action in range(3) if outcome == 0 else ():
                env.agent_pos, env.agent_dir, env.step_count = (x, y), direction, 0
                _, reward, terminated, _, _ = env.step(action)
                next_state[index[key]][action] = state_index(terminated + (reward > 0))
    *variables, outcomes = torch.tensor(list(index)).T.contiguous()
    names = ("cue", "x", "y", "direction", "success_x", "success_y")
    starts, probs = torch.tensor(list(start_probs)), torch.tensor(list(start_probs.values()), dtype=torch.float64)
    return Table(torch.from_numpy(np.stack(obs)), torch.tensor(next_state), outcomes > 0, (outcomes == 2).float(),
                 starts, probs, dict(zip(names, variables, strict=True)))  # fmt: skip


class GridVectorEnv(VectorEnv):
    """What the batched MiniGrid environments share. A subclass keeps its episodes in the tensors that `STATE` names and
    says how to begin, move and look. Bad arguments, actions, options, seeds and saved states raise ValueError."""
    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}
    OPTIONS = ()  # of reset

    def __init__(self, num_envs: int, size: int, max_steps: int, agent_view_size=7, device="cpu", render_mode=None):
        check_number("num_envs", num_envs, 1)
        check_number("max_steps", max_steps, 1)
        if render_mode is not None:
            raise ValueError(f"a batched environment does not render (render_mode={render_mode!r}); gym.make(id) does")
        check_number("--view-size, where not 0 (the whole grid),", agent_view_size or 3, 3, odd=True)
        self.num_envs, self.size, self.view_size, self.max_steps = num_envs, size, agent_view_size, max_steps
        self.device = torch.device(device)
        self.single_observation_space = spaces.Box(0, 255, (3 * (self.view_size or size) ** 2 + 1,), np.uint8)
        self.single_action_space = spaces.Discrete(3)  # left, right, forward: MiniGrid's first three
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        self.generator, self.step_count = torch.Generator(self.device), None  # until the first reset
        self._seed(int(np.random.SeedSequence().generate_state(1)[0]))
        # MiniGridEnv._reward, in float64 as there, for every step count at which success can come
        self.reward_at = (1 - 0.9 * (torch.arange(max_steps + 1).double() / max_steps)).float().to(self.device)

    def _seed(self, seed):
        self._np_random_seed = one_seed(seed)  # what gymnasium's `np_random_seed` shows
        self.generator.manual_seed(self._np_random_seed)

    def reset(self, *, seed=None, options=None):
        """-> obs (N, D) uint8, {}. The generator that draws all episodes is seeded with `seed`, if given."""
        if set(options or ()) - set(self.OPTIONS):
            raise ValueError(f"reset takes the options {self.OPTIONS}, got {tuple(options)}")
        if seed is not None:
            self._seed(seed)
        self.step_count = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self._begin(torch.ones(self.num_envs, dtype=torch.bool, device=self.device))
        return self._observe(), {}

    def step(self, actions):
        """actions (N,) -> obs (N, D) uint8, reward (N,) float32, terminated (N,), truncated (N,), infos."""
        actions = integers("actions", actions, self.num_envs, self.device)
        if self.step_count is None:
            raise ValueError("call reset() before step()")
        try:
            terminated, success = self._move(actions)
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
        return {name: getattr(self, name).clone() for name in self.STATE} | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        self.reset()
        load_tensors(self, state)
        self.generator.set_state(state["generator"].cpu())


class MemoryVectorEnv(GridVectorEnv):
    """N copies of MiniGrid's MemoryEnv as look-ups in `memory_table`; the same observations, rewards and ends.
    `reset(options={"start": index})` begins environment n at start `index[n]` of the table in place of a random one."""
    STATE, OPTIONS = ("state", "step_count"), ("start",)

    def __init__(self, num_envs=1, size=13, random_length=False, max_steps=None, **kwargs):
        check_number("the size of Memory", size, 7 if random_length else 5, odd=True)
        super().__init__(num_envs, size, 5 * size**2 if max_steps is None else max_steps, **kwargs)
        *tensors, variables = memory_table(size, random_length, self.view_size)
        self.table = Table(*(t.to(self.device) for t in tensors), {k: v.to(self.device) for k, v in variables.items()})
        self.cumulative = self.table.start_probs.cumsum(0)[:-1]
        self.state = torch.zeros(num_envs, dtype=torch.int64, device=self.device)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        if options and "start" in options:
            start = integers("options['start']", options["start"], self.num_envs, self.device, len(self.table.starts))
            self.state = self.table.starts[start]
        return self._observe(), {}

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
    """The return from which an episode is a success: its id's `reward_threshold`, less rounding, or any positive."""
    threshold = gym.spec(env_id).reward_threshold
    return 1e-9 if threshold is None else threshold - 1e-5 * max(1.0, abs(threshold))


def evaluation_starts(env_id: str, episodes: int, once: bool):
    """-> weights (K,) float64 of K evaluation episodes, `reset` options that give them, whether they are all there are.
    A Memory id has few starts. One episode from each, weighted by its probability, gives a deterministic policy's exact
    success rate; without `once` the starts are repeated until there are at least `episodes`."""
    spec = gym.spec(env_id)
    if spec.vector_entry_point is not MemoryVectorEnv:
        return torch.full((episodes,), 1 / episodes, dtype=torch.float64), None, False
    starts = memory_table(spec.kwargs["size"], spec.kwargs.get("random_length", False), 3).start_probs
    repeats = 1 if once else -(-episodes // len(starts))
    return starts.repeat(repeats) / repeats, {"start": torch.arange(len(starts)).repeat(repeats)}, True


# ---- Kruskal mazes
def kruskal_mazes(sizes: torch.Tensor, width: int, generator: torch.Generator):
    """A random maze for each entry of `sizes` (K,), 5 <= size <= width, all K at once. Rooms are the inner cells with
    even (x, y); randomised Kruskal (Kruskal 1956, with shuffled edges in place of sorted ones) opens the wall between
    two neighbouring rooms wherever that joins two components. Returns cells (K, width, width) uint8 of MiniGrid object
    types [k, x, y] and the agent's x and y, (K,) each; agent and goal stand on distinct uniformly drawn free cells."""
    device, K, rooms = sizes.device, len(sizes), (width - 1) // 2  # rooms a side, of the largest maze
    room = torch.arange(rooms * rooms, device=device).view(rooms, rooms)
    ends = torch.cat((torch.stack((room[:-1], room[1:]), -1).flatten(0, 1),
                      torch.stack((room[:, :-1], room[:, 1:]), -1).flatten(0, 1)))  # (E, 2)  # fmt: skip
    # a smaller maze uses the edges among its own rooms, and finds them in the same shuffled order
    own = torch.maximum(ends // rooms, ends % rooms).amax(1) < ((sizes - 1) // 2)[:, None]  # (K, E)
    order = torch.rand(own.shape, generator=generator, device=device).argsort(1)

    label = room.flatten().expand(K, -1).clone()  # (K, R) component of each room
    opened, rows = torch.zeros_like(own), torch.arange(K, device=device)
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
    The reward at the goal is MiniGrid's 1 - 0.9 * step_count / max_steps."""
    def __init__(self, size: int = 13, random_size: bool = False, max_steps: int = 256, **kwargs):
        check_number("the size of a maze", size, 6 if random_size else 5)
        self.size, self.random_size, mission = size, random_size, MissionSpace(EmptyEnv._gen_mission)
        super().__init__(mission, grid_size=size, max_steps=max_steps, see_through_walls=True, **kwargs)

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
    STATE = ("cells", "x", "y", "direction", "step_count", "drawn_cells", "drawn_x", "drawn_y", "used")

    def __init__(self, num_envs=1, size=13, random_size=False, max_steps=256, **kwargs):
        check_number("the size of a maze", size, 6 if random_size else 5)
        super().__init__(num_envs, size, max_steps, **kwargs)
        view, device, self.random_size = self.view_size, self.device, random_size
        self.rows = torch.arange(num_envs, device=device)
        self.x, self.y, self.direction = torch.ones(3, num_envs, dtype=torch.int64, device=device)
        self.cells = torch.full((num_envs, size, size), WALL, dtype=torch.uint8, device=device)
        self.drawn_x, self.drawn_y = torch.ones(2, max(256, num_envs), dtype=torch.int64, device=device)
        self.drawn_cells = self.cells.new_full((len(self.drawn_x), size, size), WALL)
        self.turn = torch.tensor([3, 1, 0], device=device)  # of each action, in quarter turns to the right
        self.step_x, self.step_y = torch.tensor(np.array(DIR_TO_VEC).T, device=device)  # (4,) each
        encode = {EMPTY: (EMPTY, 0, 0), WALL: Wall().encode(), GOAL: Goal().encode()}
        encode |= {AGENT + direction: (AGENT, COLOR_TO_IDX["red"], direction) for direction in range(4)}
        encode = [encode.get(kind, (0, 0, 0)) for kind in range(AGENT + 4)]
        self.encode = torch.tensor(encode, dtype=torch.uint8, device=device)  # (14, 3) of each kind in `cells`
        # MiniGridEnv.get_view_coords inverted: view cell (i, j) lies i - view // 2 to the right, view - 1 - j ahead
        cell = torch.arange(view, device=device)
        right, ahead = cell[:, None] - view // 2, view - 1 - cell
        dx, dy = self.step_x[:, None, None], self.step_y[:, None, None]
        self.view_x, self.view_y = dx * ahead - dy * right, dy * ahead + dx * right  # (4, view, view)

    def _seed(self, seed):
        super()._seed(seed)
        self.used = torch.tensor(2**31)  # of the drawn mazes: more than there are, so that new ones are drawn

    def _begin(self, mask):
        if len(which := mask.nonzero().squeeze(1)) == 0:
            return
        if self.used + len(which) > len(self.drawn_x):
            sizes = torch.full_like(self.drawn_x, self.size)
            if self.random_size:
                sizes = torch.randint(6, self.size + 1, sizes.shape, generator=self.generator, device=self.device)
            self.drawn_cells, self.drawn_x, self.drawn_y = kruskal_mazes(sizes, self.size, self.generator)
            self.used.zero_()
        mazes = slice(int(self.used), int(self.used) + len(which))
        self.cells[which], self.x[which] = self.drawn_cells[mazes], self.drawn_x[mazes]
        self.y[which], self.direction[which] = self.drawn_y[mazes], 0
        self.used += len(which)

    def _move(self, actions):
        self.direction = (self.direction + self.turn.gather(0, actions)) % 4
        forward = actions == 2
        x = self.x + self.step_x[self.direction] * forward
        y = self.y + self.step_y[self.direction] * forward
        ahead = self.cells[self.rows, x, y]  # the agent's own cell, which is empty, where it only turns
        self.x, self.y = torch.where(ahead == WALL, self.x, x), torch.where(ahead == WALL, self.y, y)
        solved = ahead == GOAL
        return solved, solved

    def _observe(self):
        if self.view_size == 0:
            seen = self.cells.clone()
            seen[self.rows, self.x, self.y] = (AGENT + self.direction).to(torch.uint8)
        else:
            x = (self.x[:, None, None] + self.view_x[self.direction]).clamp(0, self.size - 1)  # (N, view, view)
            y = (self.y[:, None, None] + self.view_y[self.direction]).clamp(0, self.size - 1)
            seen = self.cells[self.rows[:, None, None], x, y]  # beyond the grid lies wall, and so it does at its edge
            seen[:, self.view_size // 2, -1] = EMPTY  # the agent's own cell shows what it carries: nothing
        return torch.cat((self.encode[seen.int()].flatten(1), self.direction[:, None].to(torch.uint8)), 1)

    def task_variables(self) -> dict[str, torch.Tensor]:
        """(N,) int64 each: x, y, direction of the agent, goal_x, goal_y."""
        goal = (self.cells.flatten(1) == GOAL).int().argmax(1)
        return {"x": self.x.clone(), "y": self.y.clone(), "direction": self.direction.clone(),
                "goal_x": goal // self.size, "goal_y": goal % self.size}  # fmt: skip


# ---- Any other environment: single ones, gymnasium's vector environment over them, and tensors on top
class FlatMiniGrid(gym.ObservationWrapper):
    """MiniGrid's dict -> one uint8 vector: the image flattened, then the direction. The mission is dropped."""
    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.observation_space = spaces.Box(0, 255, (1 + env.observation_space["image"].low.size,), np.uint8)

    def observation(self, obs):
        return np.append(obs["image"], np.uint8(obs["direction"]))


def make_single(env_id: str, view_size: int | None = None, render_mode: str | None = None, ignore_mission=False):
    """One environment with the flat observation that the batched one gives; for MiniGrid ids name the `view_size`. It
    has the `render_mode` if it can. Raises ValueError for ids that are not MiniGrid's, and for missions that vary."""
    spec, kwargs = gym.spec(env_id), {}
    if render_mode and render_mode in make_single(env_id, view_size, None, True).metadata.get("render_modes", ()):
        kwargs["render_mode"] = render_mode
    if view_size is None:
        return gym.make(spec, **kwargs)
    check_number("--view-size, where not 0 (the whole grid),", view_size or 3, 3, odd=True)
    if not env_id.startswith(("MiniGrid-", "BabyAI-")):
        raise ValueError("it is not a MiniGrid id; take one that starts with 'MiniGrid-'")
    env = gym.make(spec, agent_view_size=view_size or 3, **kwargs)
    mission = env.observation_space["mission"]
    varies = type(mission) is not MissionSpace or any(len(words) > 1 for words in mission.ordered_placeholders or ())
    if varies and not ignore_mission:
        raise ValueError("its mission varies and this agent does not read text; --ignore-mission, or take another id")
    return FlatMiniGrid(env if view_size else FullyObsWrapper(env))


def as_tensor(obs, space: spaces.Box, device) -> torch.Tensor:
    """An observation as a network reads it: uint8 stays, any other type becomes float32."""
    dtype = torch.uint8 if space.dtype == np.uint8 else torch.float32
    return torch.as_tensor(np.asarray(obs), dtype=dtype, device=device)


class OneByOne(gym.vector.SyncVectorEnv):
    """gymnasium's, less infos, whose shapes may vary from one to the other. Final observations are copied: some
    environments refill one array."""
    def _add_info(self, infos, info, n):
        return super()._add_info(infos, {k: np.array(v) for k, v in info.items() if k == "final_obs"}, n)


class TensorVectorEnv(gym.vector.VectorWrapper):
    """A NumPy vector environment (SAME_STEP) with tensors on `device` outside: observations float32 or uint8,
    `final_obs` dense (N, D), actions 0 to A - 1 whatever number the environment's own begin with."""
    def __init__(self, env: VectorEnv, device):
        super().__init__(env)
        self.device, space, actions = torch.device(device), env.single_observation_space, env.single_action_space
        self.state_dict = getattr(env, "state_dict", lambda: None)  # None: episodes in progress cannot be saved
        self.load_state_dict = getattr(env, "load_state_dict", None)
        if env.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP:
            raise ValueError(f"{env} must reset in the same step (AutoresetMode.SAME_STEP)")
        if not isinstance(actions, spaces.Discrete):
            raise ValueError(f"its actions are {actions}; take an environment with discrete actions")
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"its observations are {space}; gymnasium.wrappers.FlattenObservation makes them flat")

    def reset(self, *, seed=None, options=None):
        if seed is not None and hasattr(self.env, "envs"):  # each its own: seed + i would share streams among seeds
            first = one_seed(seed)
            seed = seed if isinstance(seed, list) else spawn_seeds(first, self.num_envs, evaluation=first >= EVAL_SEED)
        if "start" in (options or {}):
            raise ValueError("only batched Memory begins at given starts; register a variant under an id of its own")
        obs, _ = self.env.reset(seed=seed, options=options)
        return as_tensor(obs, self.single_observation_space, self.device), {}

    def step(self, actions):
        if not isinstance(self.env, CartPoleNoVelVectorEnv):  # it checks them itself
            space = self.single_action_space
            actions = integers("actions", actions, self.num_envs, "cpu", int(space.n)).numpy() + int(space.start)
        obs, reward, terminated, truncated, infos = self.env.step(actions)
        done = terminated | truncated
        final_obs = infos["final_obs"] if done.any() else obs
        if final_obs.dtype == object:  # gymnasium's: an observation where the mask is set, None elsewhere
            final_obs = np.stack([obs[n] if final is None else final for n, final in enumerate(final_obs)])
        obs, final_obs = (as_tensor(x, self.single_observation_space, self.device) for x in (obs, final_obs))
        terminated, truncated, done = (torch.as_tensor(x, device=self.device) for x in (terminated, truncated, done))
        reward = torch.as_tensor(reward, dtype=torch.float32, device=self.device)
        return obs, reward, terminated, truncated, {"final_obs": final_obs, "_final_obs": done}

    def task_variables(self) -> dict[str, torch.Tensor]:
        """(N,) each: the `task_variables()` of the environment, or of the single ones in it. Raises AttributeError."""
        if not hasattr(self.env, "envs"):
            return {name: torch.as_tensor(value) for name, value in self.env.task_variables().items()}
        each = [env.unwrapped.task_variables() for env in self.env.envs]
        return {name: torch.as_tensor(np.array([values[name] for values in each])) for name in each[0]}


def make_batched(env_id: str, num_envs: int, device, view_size: int | None = None, ignore_mission: bool = False):
    """N environments behind tensors on `device`: the batched form where one is registered here, otherwise gymnasium's
    vector environment over single ones. Both give the same observation. Raises ValueError or gym.error.Error."""
    spec = gym.spec(env_id)
    if spec.vector_entry_point in (MemoryVectorEnv, MazeVectorEnv) and view_size is not None:
        return gym.make_vec(spec, num_envs, device=device, agent_view_size=view_size)
    if spec.vector_entry_point is CartPoleNoVelVectorEnv and view_size is None:
        return TensorVectorEnv(gym.make_vec(spec, num_envs), device)
    make_one = functools.partial(make_single, env_id, view_size, ignore_mission=ignore_mission)
    return TensorVectorEnv(OneByOne([make_one] * num_envs, autoreset_mode="SameStep"), device)


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
def record_videos(env: gym.Env, act, state, folder: str, prefix: str, episodes: int, limit: int = 10_000) -> list[str]:
    """Play `episodes` episodes of a rendering `env`, `limit` steps at most, and write each to an mp4 frame by frame.
    `act(obs (1, D), state, done (1,))` returns an action (1,) and the next state; `state` is the first, its tensors'
    device the network's. Returns the paths, `folder/prefix-episode-0.mp4` and on. Raises ValueError without frames."""
    from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter  # slow to import, and only videos need it
    os.makedirs(folder, exist_ok=True)
    space, device, first_state = env.observation_space, state[0].device, state
    paths = [os.path.join(folder, f"{prefix.replace('/', '_')}-episode-{n}.mp4") for n in range(episodes)]
    for path, seed in zip(paths, spawn_seeds(0, episodes, evaluation=True), strict=True):
        (obs, _), state = env.reset(seed=seed), first_state
        frame = np.asarray(env.render() if env.render_mode == "rgb_array" else None)
        if frame.shape[2:] not in ((3,), (4,)) or frame.dtype != np.uint8:
            raise ValueError("it cannot be filmed: with 'rgb_array' render() must give (height, width, 3) of uint8")
        height, width = (side // 2 * 2 for side in frame.shape[:2])  # H.264 takes even sides only
        with FFMPEG_VideoWriter(path, (width, height), env.metadata.get("render_fps", 30)) as video:
            video.write_frame(frame[:height, :width, :3])
            for step in range(limit):
                begins = torch.full((1,), float(step == 0), device=device)
                action, state = act(as_tensor(obs, space, device)[None], state, begins)
                obs, _, terminated, truncated, _ = env.step(int(action) + int(env.action_space.start))
                video.write_frame(np.asarray(env.render())[:height, :width, :3])
                if terminated or truncated:
                    break
    env.close()
    return paths


# ---- Registration
gym.register("CartPoleNoVel-v0", CartPoleNoVelEnv, vector_entry_point=CartPoleNoVelVectorEnv, max_episode_steps=500,
             reward_threshold=475.0)  # fmt: skip
register_maze = functools.partial(gym.register, entry_point=MazeEnv, vector_entry_point=MazeVectorEnv)
for size in range(5, 25):
    register_maze(f"MiniGrid-CustomMaze-S{size}-v0", kwargs={"size": size})
for size in range(6, 25):
    register_maze(f"MiniGrid-CustomMazeRandom-S{size}-v0", kwargs={"size": size, "random_size": True})
for size in (33, 65, 129, 257):
    gym.register(f"MiniGrid-MemoryS{size}-v0", MemoryEnv, kwargs={"size": size})
for spec in gym.registry.values():  # variants of one's own stay as they are
    plain = {"size"} <= {*spec.kwargs} <= {"size", "random_length"} and spec.max_episode_steps is None
    if plain and spec.entry_point in (MemoryEnv, "minigrid.envs:MemoryEnv"):
        spec.vector_entry_point = MemoryVectorEnv
