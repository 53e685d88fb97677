"""It learns: probe environments in seconds, the tasks themselves with `-m slow`."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import probes
import pytest
import torch
from conftest import ROOT, results_of

import ppo_lstm_cartpole_novel
import ppo_lstm_minigrid


def trained(name, steps, **overrides):
    """-> the agent, its evaluation."""
    args = probes.arguments(ppo_lstm_cartpole_novel, env_id=f"My/{name}-v0", total_timesteps=steps, **overrides)
    agent, results = ppo_lstm_cartpole_novel.train(args)
    return agent, results["eval"][args.env_id]


@pytest.mark.parametrize(("name", "steps", "episodes", "expected", "flags"), [("Constant", 3_200, [[0.0]], [[1.0]], {}),
    ("ValueOfObservation", 6_400, [[-1.0], [1.0]], [[-1.0], [1.0]], {}),
    ("Discounting", 5_120, [[0.0, 1.0]], [[0.5, 1.0]], {"gamma": 0.5, "gae_lambda": 0.5})])  # fmt: skip
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


def test_recall_after_a_delay_which_the_memoryless_control_cannot():
    """The cue is five steps old when it is needed, and chunks of 8 steps cut most episodes of 6 in two."""
    assert trained("Recall", 20_480, num_envs=16)[1]["argmax"]["episodic_return"] > 0.95
    _, results = trained("Recall", 6_400, num_envs=16, memoryless=True, eval_episodes=200)
    assert 0.3 < results["argmax"]["episodic_return"] < 0.7


@pytest.mark.slow
@pytest.mark.parametrize(("script", "flags", "score", "least", "control"), [
    (ppo_lstm_cartpole_novel, {}, "episodic_return", 475, 100),
    (ppo_lstm_minigrid, {"env_id": "MiniGrid-MemoryS7-v0", "total_timesteps": 1_000_000}, "success_rate", 0.97, 0.6),
], ids=("cartpole", "memory"))  # fmt: skip
def test_the_defaults_solve_the_tasks_and_the_memoryless_control_does_not(script, flags, score, least, control):
    for memoryless in (False, True):
        _, results = script.train(script.Args(**flags, memoryless=memoryless))
        result = results["eval"][results["env_id"]]["argmax"][score]
        assert result <= control if memoryless else result >= least


@pytest.mark.slow
def test_the_t_maze_of_the_readme_as_printed():
    readme = (ROOT / "README.md").read_text()
    Path("tmaze.py").write_text(re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1])
    commands = re.search(r"```bash\n(cp ppo.*?)```", readme, re.DOTALL)[1]
    for path in ROOT.glob("*.py"):
        shutil.copy(path, ".")
    env = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-ec", commands], check=True, env=env)
    lstm, control = sorted(map(results_of, Path().glob("runs/*")), key=lambda results: results["args"]["memoryless"])
    assert lstm["eval"]["TMaze-v0"]["argmax"]["success_rate"] == 1.0
    assert control["eval"]["TMaze-v0"]["argmax"]["success_rate"] <= 0.6
