"""The batched environments are the real ones."""

import gymnasium as gym
import gymnasium.wrappers.vector as wrappers
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from minigrid.core.world_object import Goal, Wall

import envs

MEMORY = [f"MiniGrid-Memory{size}-v0" for size in ("S7", "S9", "S11", "S13", "S13Random", "S17Random", "S33")]
LONG = [f"MiniGrid-MemoryS{size}-v0" for size in (33, 65, 129, 257)]
MAZES = [f"MiniGrid-CustomMaze-S{size}-v0" for size in range(5, 25)]
MAZES += [f"MiniGrid-CustomMazeRandom-S{size}-v0" for size in range(6, 25)]
BATCHED = [("MiniGrid-MemoryS7-v0", {"agent_view_size": 3}), ("MiniGrid-MemoryS13-v0", {"agent_view_size": 0}),
           ("MiniGrid-CustomMaze-S7-v0", {"agent_view_size": 3}), ("MiniGrid-CustomMazeRandom-S9-v0", {}),
           ("CartPoleNoVel-v0", {})]  # fmt: skip
every_batched = pytest.mark.parametrize(("env_id", "kwargs"), BATCHED)


def test_all_ids_are_batched():
    assert all(gym.registry[env_id].vector_entry_point is envs.MemoryVectorEnv for env_id in MEMORY + LONG)
    assert all(gym.registry[env_id].vector_entry_point is envs.MazeVectorEnv for env_id in MAZES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("env_id", ["CartPoleNoVel-v0", MAZES[0], MAZES[-1], LONG[0]])
def test_gymnasiums_checker(env_id):
    check_env(gym.make(env_id, render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("view", [0, 3, 7])
def test_flat_observation_is_the_image_then_the_direction(view):
    env = envs.make_single("MiniGrid-ObstructedMaze-1Dlh-v0", view)
    obs, real = env.reset(seed=0)[0], env.unwrapped
    for action in (0, 2, 2, 1, 2, 0, 0, 2):
        image = real.gen_obs()["image"] if view else real.grid.encode()
        if not view:
            image[tuple(real.agent_pos)] = (10, 0, real.agent_dir)
        assert obs in env.observation_space and np.array_equal(obs, [*image.ravel(), real.agent_dir])
        obs, *_ = env.step(action)


def layout_of(env):
    real = env.unwrapped
    return int(real.grid.get(1, real.height // 2 - 1).type == "ball"), *map(int, real.success_pos)


def real_layouts(env_id, view, wanted):
    layouts = {}
    for seed in range(5000):
        env = envs.make_single(env_id, view)
        env.reset(seed=seed)
        layouts.setdefault(layout_of(env), env)
        if len(layouts) == wanted:
            return layouts
    pytest.fail(f"only {len(layouts)} of {wanted} layouts")


@pytest.mark.parametrize("view", [0, 3, 7])
@pytest.mark.parametrize("env_id", MEMORY[:4] + [pytest.param(i, marks=pytest.mark.slow) for i in MEMORY[4:]])
def test_every_state_and_action_of_memory_is_as_in_minigrid(env_id, view):
    size, random_length = (gym.registry[env_id].kwargs.get(name, False) for name in ("size", "random_length"))
    layouts = real_layouts(env_id, view, 4 * (size - 6 if random_length else 1))
    table = envs.memory_table(size, random_length, view)
    state, action = torch.meshgrid((~table.terminal).nonzero().flatten(), torch.arange(3), indexing="ij")
    state, action = state.flatten(), action.flatten()
    vec = gym.make_vec(env_id, len(state), agent_view_size=view)
    vec.reset(seed=0)
    columns = {name: values[state].tolist() for name, values in table.variables.items()}
    key = list(zip(columns["cue"], columns["success_x"], columns["success_y"], strict=True))
    max_steps = vec.max_steps
    assert set(key) == set(layouts) and max_steps == layouts[key[0]].unwrapped.max_steps == 5 * size**2
    for count in (1, max_steps - 1, max_steps):
        vec.state, vec.step_count = state.clone(), torch.full_like(state, count - 1)
        _, reward, terminated, truncated, infos = vec.step(action)
        after = vec.table.next_state[state, action]
        moved = torch.stack([table.variables[name][after] for name in ("x", "y", "direction")], 1).tolist()
        assert torch.equal(infos["_final_obs"], terminated | truncated)
        for i in range(len(state)):
            env, real = layouts[key[i]], layouts[key[i]].unwrapped
            real.agent_pos = (columns["x"][i], columns["y"][i])
            real.agent_dir, real.step_count = columns["direction"][i], count - 1
            expected = env.step(int(action[i]))
            np.testing.assert_array_equal(infos["final_obs"][i], expected[0])
            assert (reward[i], terminated[i], truncated[i]) == (np.float32(expected[1]), *expected[2:4])
            assert moved[i] == [*map(int, real.agent_pos), real.agent_dir]


def chi_square(counts, probs):
    """How many standard deviations Pearson's statistic lies above its mean."""
    expected, freedom = probs * counts.sum(), len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("env_id", ["MiniGrid-MemoryS7-v0", "MiniGrid-MemoryS13Random-v0"])
def test_memory_starts_as_often_as_in_minigrid(env_id):
    vec = gym.make_vec(env_id, 20_000, agent_view_size=3)
    vec.reset(seed=1)
    names = ("cue", "success_x", "success_y", "x", "y", "direction")
    starts = list(zip(*(vec.table.variables[name][vec.table.starts].tolist() for name in names), strict=True))
    probs = vec.table.start_probs.numpy()
    batched = (vec.state[:, None] == vec.table.starts).sum(0).numpy()
    assert batched.sum() == 20_000 and chi_square(batched, probs) < 5
    env, real = gym.make(env_id).unwrapped, np.zeros(len(starts))
    env.gen_obs = lambda: None
    env.reset(seed=0)
    for _ in range(5000):
        env.reset()
        real[starts.index((*layout_of(env), *map(int, env.agent_pos), env.agent_dir))] += 1
    assert real.sum() == 5000 and chi_square(real, probs) < 5


@pytest.mark.parametrize(("size", "width"), [(5, 5), (6, 6), (13, 13), (10, 15), (24, 24)])
def test_each_maze_is_a_spanning_tree(size, width):
    """All free cells are connected, with one passage fewer than cells."""
    count, rooms = 1000 if size < 20 else 200, (size - 1) // 2
    cells, x, y = envs.kruskal_mazes(torch.full((count,), size), width, torch.Generator().manual_seed(1))
    free, reached = (cells != envs.WALL).numpy(), np.zeros((count, width, width), bool)
    assert (free.sum((1, 2)) == 2 * rooms**2 - 1).all() and free[:, 1 : 2 * rooms, 1 : 2 * rooms].sum() == free.sum()
    assert ((free[:, 1:] & free[:, :-1]).sum((1, 2)) + (free[:, :, 1:] & free[:, :, :-1]).sum((1, 2))
            == free.sum((1, 2)) - 1).all()  # fmt: skip
    reached[:, 1, 1] = True
    for _ in range(width**2):
        for shift, axis in ((1, 1), (-1, 1), (1, 2), (-1, 2)):
            reached |= np.roll(reached, shift, axis) & free
    assert (reached == free).all() and (cells[torch.arange(count), x, y] == envs.EMPTY).all()
    assert ((cells == envs.GOAL).sum((1, 2)) == 1).all()
    assert len({one.tobytes() for one in free}) > (3 if rooms == 2 else count // 10)


def test_mazes_are_as_frequent_as_kruskals():
    """Of nine rooms, shuffled edges open a passage to the middle in 0.617 of the mazes, one on the rim in 0.691. Of
    trees drawn uniformly it would be 0.583. The agent is uniform over free cells."""
    count = 40_000
    cells, x, y = envs.kruskal_mazes(torch.full((count,), 7), 7, torch.Generator().manual_seed(4))
    share = (cells != envs.WALL).double().mean(0)
    middle, rim = [share[2, 3], share[3, 2], share[3, 4], share[4, 3]], [share[1, 2], share[2, 1], share[5, 2]]
    assert middle == pytest.approx([0.6174] * 4, abs=0.008) and rim == pytest.approx([0.6913] * 3, abs=0.008)
    starts = torch.bincount(7 * x + y, minlength=49).double().view(7, 7) / count
    assert torch.allclose(starts, share / 17, atol=0.004) and starts.sum() == 1


@pytest.mark.parametrize("view", [3, 7, 0])
@pytest.mark.parametrize("env_id", ["MiniGrid-CustomMaze-S7-v0", "MiniGrid-CustomMazeRandom-S8-v0"])
def test_batched_and_single_maze_agree(env_id, view):
    n, ended = 6, 0
    vec = gym.make_vec(env_id, n, agent_view_size=view, max_steps=60)
    vec.reset(seed=3)
    singles = [envs.make_single(env_id, view) for _ in range(n)]
    def look_at_copy(i):
        """Give single environment i the batched one's maze -> its observation."""
        real, _ = singles[i].unwrapped, singles[i].reset(seed=0)
        for x, y in np.ndindex(real.width, real.height):
            kind = int(vec.cells[i, x, y])
            real.grid.set(x, y, {envs.EMPTY: None, envs.WALL: Wall(), envs.GOAL: Goal()}[kind])
        real.max_steps, real.step_count = 60, 0
        real.agent_pos, real.agent_dir = (int(vec.x[i]), int(vec.y[i])), int(vec.direction[i])
        obs = real.gen_obs()
        return singles[i].observation(obs if view else singles[i].env.observation(obs))

    list(map(look_at_copy, range(n)))
    for actions in np.random.default_rng(0).choice(3, (250, n), p=(0.2, 0.2, 0.6)):
        obs, reward, terminated, truncated, infos = vec.step(actions)
        for i in range(n):
            expected = singles[i].step(int(actions[i]))
            np.testing.assert_array_equal(infos["final_obs"][i], expected[0])
            assert (reward[i], terminated[i], truncated[i]) == (np.float32(expected[1]), *expected[2:4])
            over = expected[2] or expected[3]
            ended += over
            np.testing.assert_array_equal(obs[i], look_at_copy(i) if over else expected[0])
    assert ended > 10


def test_batched_and_single_cartpole_agree():
    n, ended = 5, 0
    vec, single = gym.make_vec("CartPoleNoVel-v0", n), gym.make("CartPoleNoVel-v0").unwrapped
    vec.reset(seed=1)
    single.reset(seed=0)
    for actions in np.random.default_rng(0).integers(0, 2, (200, n)):
        before = vec.state.copy()
        obs, reward, terminated, truncated, infos = vec.step(actions)
        for i in range(n):
            single.state, single.steps_beyond_terminated = before[:, i].copy(), None
            expected = single.step(actions[i])
            np.testing.assert_allclose(infos["final_obs"][i], expected[0], rtol=1e-5, atol=1e-7)
            assert (reward[i], terminated[i], truncated[i]) == (expected[1], expected[2], False)
            ended += terminated[i]
            if terminated[i]:
                assert np.abs(vec.state[:, i]).max() <= 0.05 and vec.steps[i] == 0
            np.testing.assert_allclose(obs[i], vec.state[::2, i], rtol=1e-6)
    assert ended > 20
    vec.reset(seed=1)
    vec.steps[:] = 499
    _, _, terminated, truncated, infos = vec.step(np.array([0, 1, 0, 1, 0]))
    assert truncated.all() and not terminated.any() and infos["_final_obs"].all() and not vec.steps.any()


@every_batched
def test_batched_contract(env_id, kwargs):
    """SAME_STEP, seeded, saves and loads its state, distinct environments, shapes as declared."""
    vec, other = (gym.make_vec(env_id, 16, **kwargs) for _ in range(2))
    assert isinstance(vec, gym.vector.VectorEnv) and vec.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    def play(steps, env=vec):
        actions = np.random.default_rng(0).integers(0, int(env.single_action_space.n), (steps, 16))
        return [[np.asarray(part).tolist() for part in env.step(action)[:4]] for action in actions]

    first, _ = vec.reset(seed=7)
    played = play(40)
    assert tuple(first.shape) == vec.observation_space.shape and np.array_equal(first, vec.reset(seed=7)[0])
    assert played == play(40)
    vec.reset(seed=8)
    assert played != play(40)
    torch.save(vec.state_dict(), "state.pt")
    later = play(60)
    other.reset(seed=99)
    for env in (vec, other):
        env.load_state_dict(torch.load("state.pt", weights_only=True))
        assert later == play(60, env)


@every_batched
def test_batched_environments_refuse_what_gymnasium_does_not_allow(env_id, kwargs):
    vec = gym.make_vec(env_id, 3, **kwargs)
    with pytest.raises(ValueError, match="reset"):
        vec.step(np.zeros(3, np.int64))
    vec.reset()
    calls = [(vec.reset, {"seed": seed}) for seed in (-1, 2**32)]
    bad = ([0, 0], [0.0, 1.0, 0.0], [0, -1, 0], [0, 3, 0])
    calls += [(vec.step, {"actions": np.array(actions)}) for actions in bad]
    calls += [(vec.reset, {"options": {"start": [0, 1, 10_000]}})] if "MiniGrid" in env_id else []
    for function, named in calls:
        with pytest.raises(ValueError, match=r"\w+ \w+"):
            function(**named)


def test_seeds_share_no_stream():
    """Training and evaluation apart, all within the 32 bits that generators read."""
    flat = [seed for run in range(50) for seed in envs.spawn_seeds(run, 64)]
    assert len(set(flat)) == len(flat) and min(flat) >= 0 and max(flat) < 2**31 == envs.EVAL_SEED
    assert all(len(set(envs.spawn_seeds(seed, 512))) == 512 for seed in (36, 14375, 53572))  # in which draws collide
    assert envs.spawn_seeds(5, 4) == envs.spawn_seeds(5, 4) != envs.spawn_seeds(5, 4, 0)
    evaluation = envs.spawn_seeds(5, 1000, evaluation=True)
    assert min(evaluation) >= 2**31 and max(evaluation) < 2**32 and len(set(evaluation)) == 1000
    single = envs.make_batched("MiniGrid-ObstructedMaze-1Dlh-v0", 8, "cpu", 3)
    first = single.reset(seed=1)[0]
    grids = [env.unwrapped.grid.encode().tobytes() for env in single.env.envs]
    assert torch.equal(first, single.reset(seed=1)[0]) and len(set(grids)) == 8


def test_adapter_gives_dense_final_observations_and_wants_same_step_resets():
    vec = envs.make_batched("MiniGrid-ObstructedMaze-1Dl-v0", 3, "cpu", 3)
    before, _ = vec.reset(seed=1)
    for env in vec.env.envs[::2]:
        env.unwrapped.step_count = env.unwrapped.max_steps - 1
    obs, reward, terminated, truncated, infos = vec.step(torch.tensor([0, 0, 0]))
    assert truncated.tolist() == [True, False, True] == infos["_final_obs"].tolist() and not terminated.any()
    assert infos["final_obs"].shape == (3, 28) and infos["final_obs"][1].equal(obs[1])
    assert not infos["final_obs"][0].equal(before[0]) and reward.dtype == torch.float32
    with pytest.raises(ValueError, match="SAME_STEP"):
        envs.TensorVectorEnv(gym.make_vec("CartPole-v1", 2), "cpu")


def test_gymnasiums_wrappers_read_tensors_in_the_order_of_the_readme():
    wrapped = wrappers.ArrayConversion(gym.make_vec("MiniGrid-MemoryS7-v0", 4), torch, np)
    wrapped = wrappers.NormalizeReward(wrappers.RecordEpisodeStatistics(wrapped))
    wrapped.reset(seed=1)
    steps = [wrapped.step(wrapped.action_space.sample()) for _ in range(300)]
    assert isinstance(steps[0][0], np.ndarray) and any("episode" in infos for *_, infos in steps)
