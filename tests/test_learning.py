"""It learns: probe environments in seconds, the two tasks themselves with `-m slow`."""

import pytest
import torch
from probes import CartPoleArgs

import ppo_lstm_cartpole_novel
import ppo_lstm_minigrid
from ppo_lstm_cartpole_novel import train


def values(agent, sequence):
    """The critic's value of each observation of one episode."""
    x = torch.tensor(sequence, dtype=torch.float32).view(len(sequence), -1)
    done = torch.zeros(len(sequence))
    done[0] = 1
    with torch.no_grad():
        return agent.get_value(x, agent.initial_state(1), done)


def test_constant_value(probe):
    agent, _ = train(CartPoleArgs(env_id="ProbeConstant-v0", total_timesteps=3_200))
    torch.testing.assert_close(values(agent, [0.0]), torch.ones(1), atol=0.05, rtol=0)


def test_value_of_an_observation(probe):
    agent, _ = train(CartPoleArgs(env_id="ProbeValueOfObservation-v0", total_timesteps=6_400))
    for seen in (-1.0, 1.0):
        torch.testing.assert_close(values(agent, [seen]), torch.tensor([seen]), atol=0.05, rtol=0)


def test_discounting(probe):
    agent, _ = train(CartPoleArgs(env_id="ProbeDiscounting-v0", total_timesteps=5_120, gamma=0.5, gae_lambda=0.5))
    torch.testing.assert_close(values(agent, [0.0, 1.0]), torch.tensor([0.5, 1.0]), atol=0.05, rtol=0)


@pytest.mark.parametrize("env_id", ["ProbeActionChoice-v0", "ProbeActionByObservation-v0"])
def test_actions(probe, env_id):
    _, results = train(CartPoleArgs(env_id=env_id, total_timesteps=3_840))
    assert results["eval"][env_id]["argmax"]["episodic_return"] > 0.95
    assert results["eval"][env_id]["sampled"]["episodic_return"] > 0.8


def test_recall_after_a_delay(probe):
    """The cue is five steps old when it is needed, and chunks of 8 steps cut most episodes of 6 in two."""
    args = CartPoleArgs(env_id="ProbeRecall-v0", total_timesteps=20_480, num_envs=16, seq_len=8)
    _, results = train(args)
    assert results["eval"]["ProbeRecall-v0"]["argmax"]["episodic_return"] > 0.95


def test_memoryless_control_cannot_recall(probe):
    args = CartPoleArgs(env_id="ProbeRecall-v0", total_timesteps=6_400, num_envs=16, memoryless=True, eval_episodes=200)
    _, results = train(args)
    assert 0.3 < results["eval"]["ProbeRecall-v0"]["argmax"]["episodic_return"] < 0.7


@pytest.mark.slow
def test_cartpole_without_velocities():
    """The defaults reach 475 over 100 held-out episodes; the memoryless control stays below 100."""
    _, results = train(ppo_lstm_cartpole_novel.Args())
    assert results["eval"]["CartPoleNoVel-v0"]["argmax"]["episodic_return"] >= 475
    _, results = train(ppo_lstm_cartpole_novel.Args(memoryless=True))
    assert results["eval"]["CartPoleNoVel-v0"]["argmax"]["episodic_return"] < 100


@pytest.mark.slow
def test_memory():
    """The defaults solve MemoryS7 exactly; the memoryless control guesses at the fork."""
    args = {"env_id": "MiniGrid-MemoryS7-v0", "total_timesteps": 1_000_000}
    _, results = ppo_lstm_minigrid.train(ppo_lstm_minigrid.Args(**args))
    assert results["eval"]["MiniGrid-MemoryS7-v0"]["argmax"]["success_rate"] >= 0.97
    _, results = ppo_lstm_minigrid.train(ppo_lstm_minigrid.Args(**args, memoryless=True))
    assert results["eval"]["MiniGrid-MemoryS7-v0"]["argmax"]["success_rate"] <= 0.6
