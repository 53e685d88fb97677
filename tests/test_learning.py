"""It learns: probe environments in seconds, the two tasks themselves with `-m slow`."""

import probes
import pytest
import torch

import ppo_lstm_cartpole_novel
import ppo_lstm_minigrid


def trained(name, steps, **overrides):
    """-> the agent, its evaluation."""
    env_id = f"My/{name}-v0"
    args = probes.arguments(ppo_lstm_cartpole_novel, env_id=env_id, total_timesteps=steps, **overrides)
    agent, results = ppo_lstm_cartpole_novel.train(args)
    return agent, results["eval"][env_id]


@pytest.mark.parametrize(("name", "steps", "episodes", "expected", "flags"), [
    ("Constant", 3_200, [[0.0]], [[1.0]], {}),
    ("ValueOfObservation", 6_400, [[-1.0], [1.0]], [[-1.0], [1.0]], {}),
    ("Discounting", 5_120, [[0.0, 1.0]], [[0.5, 1.0]], {"gamma": 0.5, "gae_lambda": 0.5}),
])  # fmt: skip
def test_values(name, steps, episodes, expected, flags):
    """The critic's value of each observation of an episode."""
    agent, _ = trained(name, steps, **flags)
    for seen, values in zip(episodes, expected, strict=True):
        done = torch.tensor([1.0, 0.0])[: len(seen)]
        value = agent.get_value(torch.tensor(seen)[:, None], agent.initial_state(1), done)
        torch.testing.assert_close(value.detach(), torch.tensor(values), atol=0.05, rtol=0)


@pytest.mark.parametrize("name", ["ActionChoice", "ActionByObservation"])
def test_actions(name):
    _, results = trained(name, 3_840)
    assert results["argmax"]["episodic_return"] > 0.95
    assert results["sampled"]["episodic_return"] > 0.8


def test_recall_after_a_delay():
    """The cue is five steps old when it is needed, and chunks of 8 steps cut most episodes of 6 in two."""
    assert trained("Recall", 20_480, num_envs=16)[1]["argmax"]["episodic_return"] > 0.95


def test_memoryless_control_cannot_recall():
    _, results = trained("Recall", 6_400, num_envs=16, memoryless=True, eval_episodes=200)
    assert 0.3 < results["argmax"]["episodic_return"] < 0.7


@pytest.mark.slow
def test_cartpole_without_velocities():
    """The defaults reach 475 over 100 held-out episodes; the memoryless control stays below 100."""
    _, results = ppo_lstm_cartpole_novel.train(ppo_lstm_cartpole_novel.Args())
    assert results["eval"]["CartPoleNoVel-v0"]["argmax"]["episodic_return"] >= 475
    _, results = ppo_lstm_cartpole_novel.train(ppo_lstm_cartpole_novel.Args(memoryless=True))
    assert results["eval"]["CartPoleNoVel-v0"]["argmax"]["episodic_return"] < 100


@pytest.mark.slow
def test_memory():
    """The defaults solve MemoryS7 exactly; the memoryless control guesses at the fork."""
    args = {"env_id": "MiniGrid-MemoryS7-v0", "total_timesteps": 1_000_000}
    _, results = ppo_lstm_minigrid.train(ppo_lstm_minigrid.Args(**args))
    assert results["eval"]["MiniGrid-MemoryS7-v0"]["argmax"]["success_rate"] >= 0.97
    _, results = ppo_lstm_minigrid.train(ppo_lstm_minigrid.Args(**args, memoryless=True))
    assert results["eval"]["MiniGrid-MemoryS7-v0"]["argmax"]["success_rate"] <= 0.6
