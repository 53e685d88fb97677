"""Tiny environments that each need one thing to be right; they run through the CartPole script (a flat Box)."""

import math
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from gymnasium import spaces

import ppo_lstm_cartpole_novel


class Probe(gym.Env):
    """An episode is `length` steps; a subclass says what is seen, and what a step is worth."""

    length, size = 1, 1

    def __init__(self):
        self.observation_space = spaces.Box(-1e9, 1e9, (self.size,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.secret = 0, int(self.np_random.integers(2))
        return self.see(), {}

    def step(self, action):
        reward = float(self.worth(int(action)))
        self.t += 1
        terminated, truncated = self.ends()
        return self.see(), reward, terminated, truncated, {}

    def see(self):
        return np.zeros(1, np.float32)

    def worth(self, action):
        return 1

    def ends(self):
        return self.t >= self.length, False


class Constant(Probe):
    """One step, reward 1: V = 1."""


class ValueOfObservation(Probe):
    """One step, the reward is what is seen (-1 or 1)."""

    def see(self):
        return np.array([2 * self.secret - 1], np.float32)

    def worth(self, action):
        return 2 * self.secret - 1


class Discounting(Probe):
    """Two steps, reward 1 at the second: V = gamma, then 1."""

    length = 2

    def see(self):
        return np.array([self.t], np.float32)

    def worth(self, action):
        return self.t == 1


class ActionChoice(Probe):
    """One step: action 1 is right."""

    def worth(self, action):
        return action == 1


class ActionByObservation(ValueOfObservation):
    """One step: the action must equal what is seen."""

    def worth(self, action):
        return action == self.secret


class Recall(Probe):
    """The secret is seen first, nothing for a while, and at the end (a flag) the action must equal it."""

    length, size = 6, 2

    def see(self):
        last = self.t == self.length - 1
        return np.array([(2 * self.secret - 1) * (self.t == 0), last], np.float32)

    def worth(self, action):
        return action == self.secret if self.t == self.length - 1 else 0


class Counter(Probe):
    """Shows its step, from 1; episodes are 1 to 7 steps, ended by either flag."""

    def reset(self, **kwargs):
        super().reset(**kwargs)
        self.length = int(self.np_random.integers(1, 8))
        return self.see(), {}

    def see(self):
        return np.array([self.t + 1], np.float32)

    def ends(self):
        over = self.t >= self.length
        return over and self.secret == 0, over and self.secret == 1


class TimeLimit(Probe):
    """Reward 1 each step, cut after 5 by a time limit."""

    def ends(self):
        return False, self.t >= 5


class BothFlags(Probe):
    """The same, but terminated at that very step too."""

    def ends(self):
        return self.t >= 5, self.t >= 5


class NanReward(Probe):
    """Rewards are fine until one is not."""

    steps = 0

    def worth(self, action):
        self.steps += 1
        return float("nan") if self.steps > 200 else 1.0


class NanObservation(NanReward):
    """Not the reward but what is seen."""

    def worth(self, action):
        super().worth(action)
        return 1.0

    def see(self):
        return np.array([math.nan if self.steps > 200 else 0], np.float32)


class Raises(NanReward):
    """Works until it does not."""

    def worth(self, action):
        if math.isnan(super().worth(action)):
            raise RuntimeError("the environment is broken")
        return 1.0


class Unusual(Probe):
    """What an environment of one's own may be: actions from 1, an odd dtype, a seed of 32 bits, a bound of 0."""

    dtype = np.float64

    def __init__(self, render_mode=None):
        super().__init__()
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(2, start=1)
        self.observation_space = spaces.Box(np.array([-1, -9]), np.array([0, 1e-3]), dtype=self.dtype)

    def reset(self, *, seed=None, options=None):
        np.random.RandomState(seed)
        return super().reset(seed=seed)

    def see(self):
        return np.zeros(2, self.dtype)

    def worth(self, action):
        return {1: 0.3, 2: 0.7}[action]

    def ends(self):
        return self.t >= 10, False

    def render(self):
        return np.full((33, 31, 3), 20 * self.t, np.uint8)


class Half(Unusual):
    """The same in 16 bits."""

    dtype = np.float16


class NoRender(Unusual):
    """The same, but there is no picture of it."""

    render = None


PROBES = (Constant, ValueOfObservation, Discounting, ActionChoice, ActionByObservation, Recall, Counter, TimeLimit,
          BothFlags, NanReward, NanObservation, Raises, NoRender)  # fmt: skip


def register():
    for probe in PROBES:
        if f"Probe{probe.__name__}-v0" not in gym.registry:
            gym.register(f"Probe{probe.__name__}-v0", entry_point=probe, disable_env_checker=True)
    for probe, threshold in ((Unusual, 7.0), (Half, 0.0)):
        if f"My/{probe.__name__}-v0" not in gym.registry:
            gym.register(f"My/{probe.__name__}-v0", entry_point=probe, disable_env_checker=True, reward_threshold=threshold)


@dataclass
class CartPoleArgs(ppo_lstm_cartpole_novel.Args):
    """Small runs on probes."""

    num_envs: int = 8
    num_steps: int = 16
    seq_len: int = 8
    num_minibatches: int = 2
    update_epochs: int = 4
    hidden_size: int = 16
    encoder_size: int = 16
    learning_rate: float = 5e-3
    anneal_lr: bool = True
    gamma: float = 0.9
    gae_lambda: float = 0.95
    reward_scale: float = 1.0
    ent_coef: float = 0.01
    eval_every: int = 0
    eval_episodes: int = 20
    num_threads: int = 1
    cuda: bool = False
