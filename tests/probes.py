"""Tiny environments that each need one thing to be right; they run through the CartPole script (a flat Box)."""

import math

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Probe(gym.Env):
    """One step of reward 1 (V = 1). A subclass says how long an episode is, what is seen and what a step is worth."""

    length, size = 1, 1

    def __init__(self):
        self.observation_space = spaces.Box(-1e9, 1e9, (self.size,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.secret = 0, int(self.np_random.integers(2))
        return np.array(self.see(), self.observation_space.dtype), {}

    def step(self, action):
        reward = float(self.worth(int(action)))
        self.t += 1
        return np.array(self.see(), self.observation_space.dtype), reward, *self.ends(), {}

    def see(self):
        return [0]

    def worth(self, action):
        return 1

    def ends(self):
        return self.t >= self.length, False


class ValueOfObservation(Probe):
    """The reward is what is seen (-1 or 1)."""

    def see(self):
        return [2 * self.secret - 1]

    def worth(self, action):
        return 2 * self.secret - 1


class Discounting(Probe):
    """Two steps, reward 1 at the second: V = gamma, then 1."""

    length = 2

    def see(self):
        return [self.t]

    def worth(self, action):
        return self.t == 1


class ActionChoice(Probe):
    """Action 1 is right."""

    def worth(self, action):
        return action == 1


class ActionByObservation(ValueOfObservation):
    """The action must equal what is seen."""

    def worth(self, action):
        return action == self.secret


class Recall(Probe):
    """The secret is seen first, nothing for a while, and at the end (a flag) the action must equal it."""

    length, size = 6, 2

    def see(self):
        return [(2 * self.secret - 1) * (self.t == 0), self.t == self.length - 1]

    def worth(self, action):
        return action == self.secret and self.t == self.length - 1


class Counter(Probe):
    """Shows its step, from 1; episodes are 1 to 7 steps, ended by either flag."""

    def see(self):
        self.length = int(self.np_random.integers(1, 8)) if self.t == 0 else self.length
        return [self.t + 1]

    def ends(self):
        over = self.t >= self.length
        return over and self.secret == 0, over and self.secret == 1


class TimeLimit(Probe):
    """Cut after 5 steps by a time limit."""

    def ends(self):
        return False, self.t >= 5


class BothFlags(Probe):
    """The same, but terminated at that very step too."""

    def ends(self):
        return self.t >= 5, self.t >= 5


class NanReward(Probe):
    """Fine until it is not."""

    steps, fault = 0, math.nan

    def worth(self, action):
        self.steps += 1
        if self.steps > 200 and self.fault is None:
            raise RuntimeError("the environment is broken")
        return self.fault if self.steps > 200 else 1


class Raises(NanReward):
    fault = None


class NanObservation(NanReward):
    fault = 1

    def see(self):
        return [math.nan if self.steps > 200 else 0]


class Unusual(Probe):
    """What an environment of one's own may be: actions from 1, an odd dtype, a seed of 32 bits, a bound of 0."""

    length, dtype = 10, np.float64

    def __init__(self, render_mode=None):
        self.render_mode, self.action_space = render_mode, spaces.Discrete(2, start=1)
        self.observation_space = spaces.Box(np.array([-1, -9]), np.array([0, 1e-3]), dtype=self.dtype)

    def reset(self, *, seed=None, options=None):
        np.random.RandomState(seed)
        return super().reset(seed=seed)

    def see(self):
        return [0, 0]

    def worth(self, action):
        return {1: 0.3, 2: 0.7}[action]

    def render(self):
        return np.full((33, 31, 3), 20 * self.t, np.uint8)


class Half(Unusual):
    dtype = np.float16


class NoRender(Unusual):
    render = None


PROBES = (Probe, ValueOfObservation, Discounting, ActionChoice, ActionByObservation, Recall, Counter, TimeLimit,
          BothFlags, NanReward, Raises, NanObservation, Unusual, Half, NoRender)  # fmt: skip
THRESHOLDS = {Unusual: 7.0, Half: 0.0}


def register():
    for probe in PROBES:
        gym.register(f"My/{probe.__name__}-v0", probe, disable_env_checker=True, reward_threshold=THRESHOLDS.get(probe))


def arguments(script, **overrides):
    """Of small runs on probes."""
    small = {"num_envs": 8, "num_steps": 16, "seq_len": 8, "num_minibatches": 2, "update_epochs": 4, "hidden_size": 16,
             "encoder_size": 16, "learning_rate": 5e-3, "gamma": 0.9, "reward_scale": 1.0, "ent_coef": 0.01,
             "eval_every": 0, "eval_episodes": 20, "num_threads": 1, "cuda": False}  # fmt: skip
    return script.Args(**{**small, **overrides})
