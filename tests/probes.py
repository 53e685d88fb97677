"""Tiny environments that each need one thing to be right; they run through the CartPole script (a flat Box)."""

import math

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Probe(gym.Env):
    """One step of reward 1. Others say how long an episode is, what is seen, what a step is worth and what ends it."""

    length, size, steps = 1, 1, 0
    def __init__(self):
        self.observation_space = spaces.Box(-1e9, 1e9, (self.size,), np.float32)
        self.action_space = spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.secret = 0, int(self.np_random.integers(2))
        return np.asarray(self.see(), self.observation_space.dtype), {}
    def step(self, action):
        self.steps += 1
        reward = float(self.worth(int(action)))
        self.t += 1
        return np.asarray(self.see(), self.observation_space.dtype), reward, *self.ends(), {"n": np.zeros(self.t)}
    def see(self):
        return [0]
    def worth(self, action):
        return 1
    def ends(self):
        return self.t >= self.length, False


class Counter(Probe):
    """Shows its step, from 1; episodes are 1 to 7 steps, ended by either flag."""
    def see(self):
        self.length = int(self.np_random.integers(1, 8)) if self.t == 0 else self.length
        return [self.t + 1]
    def ends(self):
        over = self.t >= self.length
        return over and self.secret == 0, over and self.secret == 1


class Unusual(Probe):
    """What an environment of one's own may be: actions from 1, an odd dtype, a seed of 32 bits, a bound of 0."""

    length, metadata = 10, {"render_modes": ["rgb_array"]}
    def __init__(self, render_mode=None):
        self.render_mode, self.action_space = render_mode, spaces.Discrete(2, start=1)
        self.observation_space = spaces.Box(np.array([-1, -9]), np.array([0, 1e-3]), dtype=np.float64)
    def reset(self, *, seed=None, options=None):
        np.random.RandomState(seed)
        return super().reset(seed=seed)
    def see(self):
        return [0, 0]
    def worth(self, action):
        return {1: 0.3, 2: 0.7}[action]
    def render(self):
        return np.full((33, 31, 3), 20 * self.t, np.uint8)


def cue(env):
    return 2 * env.secret - 1


PROBES = {"Constant": (Probe, {}),
    "ValueOfObservation": (Probe, {"see": lambda self: [cue(self)], "worth": lambda self, _: cue(self)}),
    "Discounting": (Probe, {"length": 2, "see": lambda self: [self.t], "worth": lambda self, _: self.t == 1}),
    "ActionChoice": (Probe, {"worth": lambda self, action: action == 1}),
    "ActionByObservation": (Probe, {"see": lambda self: [cue(self)], "worth": lambda self, a: a == self.secret}),
    # the secret is seen first, nothing for a while, and at the end (a flag) the action must equal it
    "Recall": (Probe, {"length": 6, "size": 2, "see": lambda self: [cue(self) * (self.t == 0), self.t == 5],
                       "worth": lambda self, action: action == self.secret and self.t == 5}),
    "TimeLimit": (Probe, {"ends": lambda self: (False, self.t >= 5), "array": np.zeros(1, np.float32),
                          "see": lambda self: np.copyto(self.array, self.t) or self.array}),  # the same array each time
    "BothFlags": (Probe, {"ends": lambda self: (self.t >= 5, self.t >= 5)}),
    "NanReward": (Probe, {"worth": lambda self, _: math.nan if self.steps > 200 else 1}),
    "NanObservation": (Probe, {"see": lambda self: [math.nan if self.steps > 200 else 0]}),
    "Raises": (Probe, {"worth": lambda self, _: 1 // (self.steps <= 200)}),
    "Counter": (Counter, {}), "Unusual": (Unusual, {}), "NoRender": (Unusual, {"render": None})}  # fmt: skip


def register():
    for name, (base, members) in PROBES.items():
        options = {"reward_threshold": 7.0 if base is Unusual else None, "disable_env_checker": True}
        gym.register(f"My/{name}-v0", type(name, (base,), members), **options)


def arguments(script, **overrides):  # no hidden layer: observations of zeros leave its ReLUs without a gradient
    small = {"num_steps": 16, "seq_len": 8, "update_epochs": 4, "hidden_size": 16, "encoder_size": 16, "gamma": 0.9,
             "learning_rate": 5e-3, "ent_coef": 0.01, "eval_every": 0, "hidden_layer_size": 0}  # fmt: skip
    return script.Args(**{**small, "eval_episodes": 20, "cuda": False, **overrides})
