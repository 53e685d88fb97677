"""The batched environments are the real ones."""

import random

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from minigrid.core.world_object import Goal, Wall

import envs

MEMORY = [f"MiniGrid-Memory{size}-v0" for size in ("S7", "S9", "S11", "S13", "S13Random", "S17Random")]
LONG = [f"MiniGrid-MemoryS{size}-v0" for size in (33, 65, 129, 257)]
MAZES = [f"MiniGrid-CustomMaze-S{size}-v0" for size in range(5, 25)]
MAZES += [f"MiniGrid-CustomMazeRandom-S{size}-v0" for size in range(6, 25)]
SINGLE = ["CartPoleNoVel-v0", *(MAZES[n] for n in (0, 19, 20, -1)), LONG[0]]
BATCHED = [("MiniGrid-MemoryS7-v0", {"agent_view_size": 3}), ("MiniGrid-MemoryS13-v0", {"agent_view_size": 0}),
           ("MiniGrid-CustomMaze-S7-v0", {"agent_view_size": 3}), ("MiniGrid-CustomMazeRandom-S9-v0", {}),
           ("CartPoleNoVel-v0", {})]  # fmt: skip


def test_ids():
    assert {*MEMORY, *LONG, *MAZES, "CartPoleNoVel-v0"} <= gym.registry.keys()
    assert all(gym.registry[env_id].vector_entry_point is envs.MemoryVectorEnv for env_id in MEMORY + LONG)
    assert all(gym.registry[env_id].vector_entry_point is envs.MazeVectorEnv for env_id in MAZES)
    assert "CartPoleNoVel-v1" not in gym.registry  # gymnasium would call v0 out of date


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("env_id", SINGLE)
def test_gymnasiums_checker(env_id):
    check_env(gym.make(gym.registry[env_id], render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("env_id", ["MiniGrid-MemoryS7-v0", "MiniGrid-ObstructedMaze-1Dlh-v0"])
@pytest.mark.parametrize("view", [0, 3, 7])
def test_flat_observation_is_the_image_then_the_direction(env_id, view):
    env = envs.make_single(env_id, view)
    obs, _ = env.reset(seed=0)
    for _ in range(30):
        assert obs in env.observation_space
        inner = env.env.unwrapped
        if view:
            np.testing.assert_array_equal(obs[:-1], inner.gen_obs()["image"].ravel())
        else:
            grid = obs[:-1].reshape(inner.width, inner.height, 3)
            assert tuple(grid[tuple(inner.agent_pos)]) == (10, 0, inner.agent_dir)
        assert obs[-1] == inner.agent_dir
        obs, *_ = env.step(env.action_space.sample())


# ---------------------------------------------------------------------------------------------------------------------
# MiniGrid Memory
# ---------------------------------------------------------------------------------------------------------------------
def real_layouts(env_id, view):
    """Real environments, one for every layout that resets with ordinary seeds show, by what tells layouts apart."""
    spec = gym.registry[env_id]
    size = spec.kwargs["size"]
    layouts, wanted = {}, 4 * ((size - 6) if spec.kwargs.get("random_length") else 1)
    for seed in range(5000):
        env = envs.make_single(env_id, view)
        env.reset(seed=seed)
        inner = env.unwrapped
        cue = int(inner.grid.get(1, size // 2 - 1).type == "ball")
        layouts.setdefault((cue, *map(int, inner.success_pos)), env)
        if len(layouts) == wanted:
            return layouts
    raise AssertionError(f"only {len(layouts)} of {wanted} layouts")


@pytest.mark.parametrize("view", [3, 7])
@pytest.mark.parametrize("env_id", [pytest.param(i, marks=pytest.mark.slow) if "S17" in i else i for i in MEMORY])
def test_every_state_and_action_of_memory_is_as_in_minigrid(env_id, view):
    layouts = real_layouts(env_id, view)
    spec = gym.registry[env_id]
    table = envs.memory_table(spec.kwargs["size"], spec.kwargs.get("random_length", False), view)
    state, action = torch.meshgrid((~table.terminal).nonzero().flatten(), torch.arange(3), indexing="ij")
    state, action = state.flatten(), action.flatten()
    vec = gym.make_vec(env_id, len(state), agent_view_size=view)
    vec.reset(seed=0)
    columns = {name: values[state].tolist() for name, values in table.variables.items()}
    key = list(zip(columns["cue"], columns["success_x"], columns["success_y"], strict=True))
    assert set(key) == set(layouts)
    max_steps = vec.max_steps
    assert max_steps == next(iter(layouts.values())).unwrapped.max_steps == 5 * spec.kwargs["size"] ** 2
    for count in (1, max_steps - 1, max_steps):
        vec.state, vec.step_count = state.clone(), torch.full_like(state, count - 1)
        _, reward, terminated, truncated, infos = vec.step(action)
        after = vec.table.next_state[state, action]
        moved = torch.stack([table.variables[name][after] for name in ("x", "y", "direction")], 1).tolist()
        final_obs = infos["final_obs"].numpy()
        assert torch.equal(infos["_final_obs"], terminated | truncated)
        for i in range(len(state)):
            env = layouts[key[i]]
            real = env.unwrapped
            real.agent_pos = (columns["x"][i], columns["y"][i])
            real.agent_dir, real.step_count = columns["direction"][i], count - 1
            expected = env.step(int(action[i]))
            np.testing.assert_array_equal(final_obs[i], expected[0])
            assert reward[i] == np.float32(expected[1])
            assert bool(terminated[i]) == expected[2] and bool(truncated[i]) == expected[3]
            assert moved[i] == [*map(int, real.agent_pos), real.agent_dir]


def chi_square(counts, expected):
    """How many standard deviations Pearson's statistic lies above its mean."""
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = len(counts) - 1
    return (statistic - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("env_id", ["MiniGrid-MemoryS7-v0", "MiniGrid-MemoryS13Random-v0"])
def test_memory_starts_as_often_as_in_minigrid(env_id):
    n = 20_000
    vec = gym.make_vec(env_id, n, agent_view_size=3)
    vec.reset(seed=1)
    names = ("cue", "x", "y", "direction", "success_x", "success_y")
    starts = list(zip(*(vec.table.variables[name][vec.table.starts].tolist() for name in names), strict=True))
    probs = vec.table.start_probs.numpy()
    assert len(set(starts)) == len(starts) and probs.sum() == pytest.approx(1)
    index = {int(s): i for i, s in enumerate(vec.table.starts)}
    batched = np.bincount([index[int(s)] for s in vec.state], minlength=len(starts))
    assert chi_square(batched, n * probs) < 5

    env, real = gym.make(env_id).unwrapped, np.zeros(len(starts))
    env.gen_obs = lambda: None
    env.reset(seed=0)
    for _ in range(5000):
        env.reset()
        cue = int(env.grid.get(1, env.size // 2 - 1).type == "ball")
        real[starts.index((cue, *map(int, env.agent_pos), env.agent_dir, *map(int, env.success_pos)))] += 1
    assert chi_square(real, real.sum() * probs) < 5


def test_evaluation_starts_are_all_starts_of_memory_and_anything_elsewhere():
    weights, options, exact = envs.evaluation_starts("MiniGrid-MemoryS13-v0", 100, once=True)
    vec = gym.make_vec("MiniGrid-MemoryS13-v0", len(weights), agent_view_size=3)
    vec.reset(options=options)
    assert exact and len(weights) == 40 == len(vec.state.unique()) and weights.sum().item() == pytest.approx(1)
    repeated, options, _ = envs.evaluation_starts("MiniGrid-MemoryS13-v0", 100, once=False)
    assert len(repeated) == 120 == len(options["start"]) and repeated.sum().item() == pytest.approx(1)
    weights, options, exact = envs.evaluation_starts("MiniGrid-CustomMaze-S13-v0", 100, once=True)
    assert torch.equal(weights, torch.full((100,), 0.01, dtype=torch.float64)) and options is None and not exact


def test_long_corridors_are_minigrids_too():
    """The table of S33 against the real environment, along random walks."""
    env, table = envs.make_single(LONG[0], 3), envs.memory_table(33, False, 3)
    names, draw = ("cue", "x", "y", "direction", "success_x", "success_y"), np.random.default_rng(0)
    columns = zip(*(table.variables[name].tolist() for name in names), table.terminal.tolist(), strict=True)
    where = {column: n for n, column in enumerate(columns)}
    for seed in range(5):
        obs, _ = env.reset(seed=seed)
        for _ in range(200):
            real = env.unwrapped
            cue = int(real.grid.get(1, 15).type == "ball")
            state = where[(cue, *map(int, real.agent_pos), real.agent_dir, *map(int, real.success_pos), False)]
            np.testing.assert_array_equal(table.obs[state], obs)
            action = draw.choice(3, p=(0.1, 0.1, 0.8))
            obs, reward, terminated, *_ = env.step(action)
            after = table.next_state[state, action]
            np.testing.assert_array_equal(table.obs[after], obs)
            assert bool(table.terminal[after]) == terminated and bool(table.success[after]) == (reward > 0)
            if terminated:
                break


# ---------------------------------------------------------------------------------------------------------------------
# Mazes
# ---------------------------------------------------------------------------------------------------------------------
def slow_kruskal(rooms, rng):
    """Randomised Kruskal with sets; returns the opened edges."""
    edges = [((x, y), (x + 1, y)) for x in range(rooms - 1) for y in range(rooms)]
    edges += [((x, y), (x, y + 1)) for x in range(rooms) for y in range(rooms - 1)]
    component = {(x, y): {(x, y)} for x in range(rooms) for y in range(rooms)}
    rng.shuffle(edges)
    opened = []
    for a, b in edges:
        if component[a] is not component[b]:
            opened.append((a, b))
            joined = component[a] | component[b]
            for room in joined:
                component[room] = joined
    return opened


def is_spanning_tree(free):
    """Free cells (S, S) bool: connected, and with one passage fewer than cells."""
    cells = set(map(tuple, np.argwhere(free)))
    passages = sum((x + dx, y + dy) in cells for x, y in cells for dx, dy in ((1, 0), (0, 1)))
    seen, frontier = set(), [next(iter(cells))]
    while frontier:
        x, y = frontier.pop()
        if (x, y) in cells and (x, y) not in seen:
            seen.add((x, y))
            frontier += [(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)]
    return seen == cells and passages == len(cells) - 1


@pytest.mark.parametrize(("size", "width"), [(5, 5), (6, 6), (7, 7), (13, 13), (14, 14), (10, 15), (24, 24)])
def test_each_maze_is_a_spanning_tree(size, width):
    count = 1000 if size < 20 else 200
    cells, x, y = envs.kruskal_mazes(torch.full((count,), size), width, torch.Generator().manual_seed(1))
    rooms = (size - 1) // 2
    free = (cells != envs.WALL).numpy()
    assert (free.sum((1, 2)) == 2 * rooms**2 - 1).all()
    inside = np.zeros((width, width), bool)
    inside[1 : 2 * rooms, 1 : 2 * rooms] = True
    assert not free[:, ~inside].any()
    assert all(is_spanning_tree(one) for one in free)
    at_agent = cells[torch.arange(count), x, y]
    assert (at_agent == envs.EMPTY).all()  # free, and not the goal
    assert ((cells == envs.GOAL).sum((1, 2)) == 1).all()
    assert len({one.tobytes() for one in free}) > (3 if rooms == 2 else count // 10)


def test_edges_open_as_often_as_in_a_slow_kruskal():
    size, rooms, count = 9, 4, 4000
    cells, x, y = envs.kruskal_mazes(torch.full((count,), size), size, torch.Generator().manual_seed(2))
    free = (cells != envs.WALL).numpy()
    rng, expected = random.Random(3), np.zeros((size, size))
    for _ in range(count):
        for (ax, ay), (bx, by) in slow_kruskal(rooms, rng):
            expected[1 + ax + bx, 1 + ay + by] += 1
    walls = expected > 0
    assert walls.sum() == 2 * rooms * (rooms - 1)
    difference = free.sum(0)[walls] - expected[walls]
    p = expected[walls] / count
    assert (np.abs(difference) < 5 * np.sqrt(2 * count * p * (1 - p))).all()
    # four rooms have four spanning trees, equally likely
    small, _, _ = envs.kruskal_mazes(torch.full((count,), 5), 5, torch.Generator().manual_seed(4))
    _, counts = np.unique((small != envs.WALL).flatten(1).numpy(), axis=0, return_counts=True)
    assert len(counts) == 4 and chi_square(counts, np.full(4, count / 4)) < 5
    # agent and goal are uniform over the free cells
    agent = free[np.arange(count), x, y] / free.sum((1, 2))
    assert agent.mean() == pytest.approx(1 / (2 * rooms**2 - 1))
    corner = ((x == 1) & (y == 1)).float().mean().item()
    assert corner == pytest.approx(1 / 31, abs=0.015)


def test_random_sizes_are_uniform_and_drawn_after_seeding():
    env = gym.make("MiniGrid-CustomMazeRandom-S9-v0")
    vec = gym.make_vec("MiniGrid-CustomMazeRandom-S9-v0", 2000)
    vec.reset(seed=5)
    rooms = np.sqrt(((vec.cells != envs.WALL).sum((1, 2)).numpy() + 1) / 2)
    sizes = [6, 7, 8, 9]
    share = {r: sum((s - 1) // 2 == r for s in sizes) / 4 for r in (2, 3, 4)}
    assert all((rooms == r).mean() == pytest.approx(p, abs=0.05) for r, p in share.items())
    seen = set()
    for seed in range(40):
        first = env.reset(seed=seed)[0]["image"].tobytes(), env.unwrapped.grid.encode().tobytes()
        again = env.reset(seed=seed)[0]["image"].tobytes(), env.unwrapped.grid.encode().tobytes()
        assert first == again
        seen.add((env.unwrapped.grid.encode()[..., 0] != envs.WALL).sum())
    assert len(seen) == 3


@pytest.mark.parametrize("view", [3, 5, 7, 0])
@pytest.mark.parametrize("env_id", ["MiniGrid-CustomMaze-S7-v0", "MiniGrid-CustomMazeRandom-S8-v0"])
def test_batched_and_single_maze_agree(env_id, view):
    n = 6
    vec = gym.make_vec(env_id, n, agent_view_size=view, max_steps=60)
    vec.reset(seed=3)
    singles = [envs.make_single(env_id, view) for _ in range(n)]

    def copy_layout(i):
        singles[i].reset(seed=0)
        real = singles[i].unwrapped
        real.max_steps = 60
        for x, y in np.ndindex(real.width, real.height):
            kind = int(vec.cells[i, x, y])
            real.grid.set(x, y, {envs.EMPTY: None, envs.WALL: Wall(), envs.GOAL: Goal()}[kind])
        real.agent_pos, real.agent_dir, real.step_count = (int(vec.x[i]), int(vec.y[i])), int(vec.direction[i]), 0

    for i in range(n):
        copy_layout(i)
    rng, ended = np.random.default_rng(0), 0
    for _ in range(250):
        actions = rng.choice(3, n, p=(0.2, 0.2, 0.6))
        obs, reward, terminated, truncated, infos = vec.step(actions)
        for i in range(n):
            expected = singles[i].step(int(actions[i]))
            np.testing.assert_array_equal(infos["final_obs"][i], expected[0])
            assert reward[i] == np.float32(expected[1])
            assert (bool(terminated[i]), bool(truncated[i])) == expected[2:4]
            if terminated[i] or truncated[i]:
                ended += 1
                copy_layout(i)
            goal = vec.task_variables()
            assert vec.cells[i, goal["goal_x"][i], goal["goal_y"][i]] == envs.GOAL
            np.testing.assert_array_equal(obs[i][:-1] if view else obs[i], (
                singles[i].unwrapped.gen_obs()["image"].ravel() if view else singles[i].observation(
                    singles[i].env.observation(singles[i].unwrapped.gen_obs()))))  # fmt: skip
    assert ended > 10


def test_maze_max_steps():
    assert gym.make("MiniGrid-CustomMaze-S13-v0").unwrapped.max_steps == 256
    assert gym.make("MiniGrid-CustomMaze-S13-v0", max_steps=99).unwrapped.max_steps == 99
    assert gym.make_vec("MiniGrid-CustomMaze-S13-v0", 2).max_steps == 256
    assert gym.make_vec("MiniGrid-CustomMaze-S13-v0", 2, max_steps=99).max_steps == 99


# ---------------------------------------------------------------------------------------------------------------------
# CartPole, and what all batched environments promise
# ---------------------------------------------------------------------------------------------------------------------
def test_batched_and_single_cartpole_agree():
    n = 5
    vec = gym.make_vec(gym.registry["CartPoleNoVel-v0"], n)
    vec.reset(seed=1)
    singles = [gym.make(gym.registry["CartPoleNoVel-v0"]) for _ in range(n)]
    for single in singles:
        single.reset(seed=0)
    rng, ended = np.random.default_rng(0), 0
    for _ in range(200):
        before = vec.state.copy()
        actions = rng.integers(0, 2, n)
        obs, reward, terminated, truncated, infos = vec.step(actions)
        for i in range(n):
            singles[i].unwrapped.state = before[:, i].copy()
            singles[i].unwrapped.steps_beyond_terminated = None
            expected = singles[i].unwrapped.step(actions[i])
            np.testing.assert_allclose(infos["final_obs"][i], expected[0], rtol=1e-5, atol=1e-7)
            assert (reward[i], terminated[i], truncated[i]) == (expected[1], expected[2], False)
            if terminated[i]:
                ended += 1
                assert np.abs(vec.state[:, i]).max() <= 0.05 and vec.steps[i] == 0
                np.testing.assert_allclose(obs[i], vec.state[::2, i], rtol=1e-6)
            else:
                np.testing.assert_array_equal(obs[i], infos["final_obs"][i])
    assert ended > 20


def test_cartpole_is_cut_at_500_steps():
    vec = gym.make_vec("CartPoleNoVel-v0", 2)
    vec.reset(seed=1)
    vec.steps[:] = 499
    _, _, terminated, truncated, infos = vec.step(np.array([0, 1]))
    assert truncated.all() and not terminated.any() and infos["_final_obs"].all() and not vec.steps.any()
    assert vec.task_variables().keys() == {"cart_velocity", "pole_velocity"}


@pytest.mark.parametrize(("env_id", "kwargs"), BATCHED)
def test_batched_contract(env_id, kwargs):
    """SAME_STEP, seeded, saves and loads its state, distinct environments, shapes as declared."""
    vec = gym.make_vec(gym.registry[env_id], 16, **kwargs)
    assert isinstance(vec, gym.vector.VectorEnv)
    assert vec.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP

    def play(steps, env=vec):
        actions = np.random.default_rng(0).integers(0, int(env.single_action_space.n), (steps, 16))
        return [np.concatenate([np.asarray(x, np.float64).reshape(16, -1) for x in env.step(a)[:4]], 1) for a in actions]

    first, _ = vec.reset(seed=7)
    assert tuple(first.shape) == vec.observation_space.shape
    one = play(40)
    again, _ = vec.reset(seed=7)
    assert np.array_equal(first, again) and np.array_equal(one, play(40))
    vec.reset(seed=8)
    assert not np.array_equal(one, play(40))
    state = vec.state_dict()
    later = play(60)
    play(13)
    other = gym.make_vec(gym.registry[env_id], 16, **kwargs)
    other.reset(seed=99)
    other.load_state_dict(state)
    assert np.array_equal(later, play(60, other))
    torch.save(state, "state.pt")
    vec.load_state_dict(torch.load("state.pt", weights_only=True))
    assert np.array_equal(later, play(60))


@pytest.mark.parametrize(("env_id", "kwargs"), BATCHED)
def test_batched_environments_refuse_what_gymnasium_does_not_allow(env_id, kwargs):
    def refused(*inputs, of=None, **named):
        with pytest.raises(ValueError, match=r"\w+ \w+"):
            (of or vec.step)(*inputs, **named)

    def make(**more):
        return gym.make_vec(gym.registry[env_id], 3, **(kwargs | more))

    vec = make()
    refused(np.zeros(3, np.int64))  # before reset
    vec.reset(seed=1)
    for dtype in (np.int64, np.uint8, np.int32):
        vec.reset(seed=1)
        outcome = [np.asarray(part).tolist() for part in vec.step(np.array([1, 0, 1], dtype))[:4]]
        assert dtype is np.int64 or outcome == expected  # uint8 is no mask
        expected = outcome
    for actions in (0, [0], [0, 0], [[0, 0, 0]], [0.0, 1.0, 0.0], [True, False, True], [0, -1, 0], [0, 3, 0]):
        refused(np.array(actions))
    for seed in (-1, 2**32, 2**40, 1.5, "one"):
        refused(of=vec.reset, seed=seed)
    if "Memory" in env_id:
        for start in ([0], 0, [0, 1, 10_000], [0, -1, 0]):
            refused(of=vec.reset, options={"start": start})
    if "MiniGrid" in env_id:
        vec.reset(seed=2**32 - 1)
        assert vec.np_random_seed == 2**32 - 1
        for bad in ({"max_steps": 0}, {"max_steps": 2.5}, {"render_mode": "rgb_array"}, {"agent_view_size": 4}):
            refused(of=make, **bad)


def test_seeds_share_no_stream():
    """Distinct in a run, training and evaluation apart, and all within the 32 bits that generators read."""
    for key in ((), (3,)):
        seeds = [envs.spawn_seeds(seed, 64, *key) for seed in range(50)]
        flat = [seed for row in seeds for seed in row]
        assert len(set(flat)) == len(flat) and min(flat) >= 0 and max(flat) < 2**31 == envs.EVAL_SEED
    assert all(len(set(envs.spawn_seeds(seed, 512))) == 512 for seed in (36, 14375, 53572))
    assert envs.spawn_seeds(5, 4) != envs.spawn_seeds(5, 4, 0) and envs.spawn_seeds(5, 4) == envs.spawn_seeds(5, 4)
    evaluation = envs.spawn_seeds(5, 1000, evaluation=True)
    assert min(evaluation) >= 2**31 and max(evaluation) < 2**32 and len(set(evaluation)) == 1000
    first = [gym.make_vec("MiniGrid-CustomMaze-S13-v0", 8).reset(seed=seed)[0] for seed in (0, 2**31, 2**32 - 1)]
    assert not any(map(torch.equal, first, first[1:]))


def test_single_environments_behind_the_adapter_differ_and_are_seeded():
    vec = envs.make_batched("MiniGrid-ObstructedMaze-1Dlh-v0", 8, "cpu", 3)
    grids = []
    for _ in range(2):
        vec.reset(seed=1)
        grids.append([env.unwrapped.grid.encode().tobytes() for env in vec.env.envs])
    assert grids[0] == grids[1] and len(set(grids[0])) == 8


def test_gymnasiums_vector_wrappers_work_behind_array_conversion():
    pytest.importorskip("array_api_compat")
    from gymnasium.wrappers.vector import ArrayConversion, NormalizeReward, RecordEpisodeStatistics

    vec = gym.make_vec("MiniGrid-MemoryS7-v0", 16, agent_view_size=3)
    vec = NormalizeReward(RecordEpisodeStatistics(ArrayConversion(vec, env_xp=torch, target_xp=np)))
    vec.reset(seed=1)
    episodes = []
    for _ in range(300):
        obs, reward, *_, infos = vec.step(vec.action_space.sample())
        episodes += infos["episode"]["r"][infos["_episode"]].tolist() if "episode" in infos else []
    assert isinstance(obs, np.ndarray) and isinstance(reward, np.ndarray)
    assert len(episodes) > 16 and 0 in episodes and 0.1 < max(episodes) <= 1


def test_adapter_gives_dense_final_observations():
    vec = envs.make_batched("MiniGrid-ObstructedMaze-1Dl-v0", 3, "cpu", 3)
    obs, _ = vec.reset(seed=1)
    assert obs.dtype == torch.uint8 and obs.shape == (3, 28) and int(vec.single_action_space.n) == 7
    for env in vec.env.envs:
        env.unwrapped.step_count = env.unwrapped.max_steps - 1
    vec.env.envs[1].unwrapped.step_count = 0
    before = obs
    obs, reward, terminated, truncated, infos = vec.step(torch.tensor([0, 0, 0]))
    assert truncated.tolist() == [True, False, True] == infos["_final_obs"].tolist()
    assert infos["final_obs"].shape == (3, 28) and infos["final_obs"][1].equal(obs[1])
    assert not infos["final_obs"][0].equal(before[0])
    assert reward.dtype == torch.float32 and not terminated.any()


def test_next_step_autoreset_is_refused():
    with pytest.raises(ValueError, match="SAME_STEP"):
        envs.TensorVectorEnv(gym.make_vec("CartPole-v1", 2), "cpu")


@pytest.mark.parametrize("env_id", [i for i in gym.registry if i.startswith("MiniGrid-ObstructedMaze")])
def test_obstructed_mazes_run(env_id):
    vec = envs.make_batched(env_id, 2, "cpu", 3)
    vec.reset(seed=0)
    for action in range(7):
        vec.step(torch.tensor([action, action]))
