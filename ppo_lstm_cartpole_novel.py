"""PPO with an LSTM on CartPole without velocities, in one file.

    python ppo_lstm_cartpole_novel.py --track

The agent sees where the cart is and how the pole leans, not how fast either moves: it has to remember where they were.
Expect a return of 500, or nearly, after 50,000 steps, some five seconds on a CPU core (five seeds of ten; four more reached
484 to 499, one 395); without memory it stays near 43.

Read it top to bottom: Args, environments, agent, `gae`, `ppo_loss`, `evaluate`, `train`. `train` is the algorithm.

Shapes: T = num_steps, N = num_envs (this process's share of them under torchrun), L = seq_len, C = T // L chunks of a
rollout, B = C * N sequences, M = sequences in a minibatch, D = observation size, F = encoded size, H = hidden_size,
A = actions.
LSTM states are pairs (h, c) of (1, N, H), as torch.nn.LSTM has them.

What the LSTM adds to PPO (the comments below cite these):
[L1] Done alignment. dones[t] is 1 where obs[t] is the first observation of an episode; the state is zeroed before it
     reads obs[t]. next_done belongs to next_obs. (Huang et al. 2022, "The 37 Implementation Details of PPO", recurrent
     details; the autoreset must be SAME_STEP for this to hold, see envs.py.)
[L2] Truncated BPTT from stored states. A rollout is cut into chunks of L steps, each begins with the state that the
     rollout had there (Kapturowski et al. 2019, "Recurrent Experience Replay", stored state), and gradients stop there.
[L3] Minibatches shuffle whole sequences, never steps, so that each is consecutive and from one environment.
[L4] One matrix product projects the inputs of all steps; only hidden-to-hidden is sequential (Appleyard et al. 2016).
[L5] Truncation is not termination: at a time limit the return bootstraps from V(final_obs) read with the state after
     the last step, not reset (Pardo et al. 2018, "Time Limits in RL").
[L6] Orthogonal LSTM weights and zero biases, as for the layers (37 details, recurrent detail 2), save the forget gate's
     bias of 1, so that a new memory fades slowly (Jozefowicz et al. 2015, "An Empirical Exploration of RNNs").
[L7] With random moves the policy is the mixture (1 - e) pi + e uniform: sampling, log-prob and entropy all use it.
[L8] The memoryless control zeroes the state before every step; the dones that GAE sees stay as they are.
"""

import argparse
import atexit
import io
import json
import math
import os
import signal
import sys
import time
import traceback
import warnings
import zipfile
from dataclasses import asdict, dataclass, fields
from typing import Annotated

import gymnasium as gym
import torch
import tyro
from torch import nn
from tqdm import tqdm

import envs as task_envs

FORMAT = 2  # of the checkpoint; raised when an older script could misread a newer file


@dataclass
class Args:
    # --- run
    exp_name: str = "ppo_lstm_cartpole_novel"
    """name of the experiment, part of the run folder's name"""
    seed: int = 1
    """seed of everything random"""
    torch_deterministic: bool = True
    """use deterministic kernels where torch has them"""
    cuda: bool = True
    """use a GPU where there is one"""
    num_threads: int = 1
    """CPU threads for torch; small networks are slower on many"""
    compile: bool = False
    """compile the update with torch.compile (about a minute at the start)"""
    cudagraphs: bool = False
    """capture the compiled update as CUDA graphs (GPU only)"""
    track: bool = False
    """log to Weights & Biases too (WANDB_MODE=offline needs no account)"""
    wandb_project_name: str = "ppo-lstm"
    """W&B project"""
    wandb_entity: str | None = None
    """W&B team or user; None is your default"""
    capture_video: bool = False
    """record three episodes as mp4 at each evaluation"""
    save_every: int = 0
    """also keep agent_<step>.pt every so many iterations (0: never); agent.pt is written each minute and at the end"""
    resume: str | None = None
    """checkpoint to continue from; its arguments are the defaults of all others"""

    # --- environment
    env_id: str = "CartPoleNoVel-v0"
    """an id with a flat Box observation and discrete actions"""

    # --- PPO
    total_timesteps: Annotated[int, tyro.conf.arg(aliases=["--total-steps"])] = 50_000
    """environment steps to train for, over all environments"""
    learning_rate: float = 2e-3
    """Adam's step size"""
    num_envs: int = 8
    """environments stepped together (N); under torchrun those of all processes"""
    num_steps: int = 128
    """steps of each environment per rollout (T)"""
    anneal_lr: bool = True
    """let the learning rate fall linearly to zero"""
    gamma: float = 0.99
    """discount per step"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation"""
    num_minibatches: int = 2
    """minibatches per epoch"""
    update_epochs: int = 10
    """passes over a rollout"""
    reward_scale: float = 0.02
    """what rewards are multiplied by for learning (statistics show them as they are)"""
    norm_adv: bool = True
    """normalise advantages in each minibatch"""
    clip_coef: float = 0.1
    """clip range of the importance ratio"""
    clip_vloss: bool = False
    """clip the value loss too"""
    ent_coef: float = 0.0
    """weight of the entropy bonus"""
    vf_coef: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 0.5
    """gradients are clipped to this norm"""
    target_kl: float | None = None
    """end the update when the approximate KL divergence passes this"""
    rand_move_eps: float = 0.0
    """share of uniformly random moves mixed into the policy while training"""

    # --- LSTM
    seq_len: int = 16
    """steps of truncated back-propagation through time (L); divides num_steps"""
    encoder_size: int = 0
    """units of the layer before the LSTM (0: none)"""
    hidden_size: int = 64
    """LSTM units (H)"""
    hidden_layer_size: int = 0
    """units of a hidden layer in the actor head and in the critic head (0: none)"""
    memoryless: bool = False
    """the control: zero the LSTM state before every step"""

    # --- evaluation
    eval_every: int = 8
    """iterations between evaluations (0: only at the end)"""
    eval_env_id: tuple[str, ...] = ()
    """further ids to evaluate on"""
    eval_episodes: int = 100
    """episodes per evaluation where it cannot be exact"""
    eval_only: bool = False
    """with --resume: evaluate, write results.json, train nothing"""

    def __post_init__(self):
        check_args(self)
        task_envs.check_flat_box(self.env_id)
        for env_id in self.eval_env_id:
            task_envs.check_flat_box(env_id, "--eval-env-id")


def check_args(args) -> None:
    """Raises UsageError with one line that names the flag and the remedy. Written so that NaN fails every test."""

    def require(flags, holds, remedy):
        for flag in flags.split():
            value = getattr(args, flag[2:].replace("-", "_"))
            if not holds(value):
                raise task_envs.UsageError(f"{flag} {remedy}, got {value!r}")

    batch_size, number = args.num_envs * args.num_steps, task_envs.rank_and_number()[1]
    require("--num-envs --num-steps --seq-len --num-minibatches --update-epochs --hidden-size --num-threads --eval-episodes",
            lambda v: v >= 1, "must be at least 1")  # fmt: skip
    require("--encoder-size --hidden-layer-size --eval-every --save-every", lambda v: v >= 0, "must be at least 0")
    require("--gamma --gae-lambda --rand-move-eps", lambda v: 0 <= v <= 1, "must be between 0 and 1")
    require("--learning-rate --reward-scale --clip-coef --max-grad-norm", lambda v: 0 < v < math.inf,
            "must be positive and finite")  # fmt: skip
    require("--ent-coef --vf-coef", lambda v: 0 <= v < math.inf, "must be at least 0 and finite")
    require("--target-kl", lambda v: v is None or v > 0, "must be positive")
    require("--seed", lambda v: 0 <= v < 2**31, "must be between 0 and 2**31 - 1")
    require("--exp-name", lambda v: v and "/" not in v, "must be a name without '/'")
    require("--seq-len", lambda v: args.num_steps % v == 0, f"must divide --num-steps {args.num_steps}")
    require("--num-envs", lambda v: v % number == 0, f"must be a multiple of the {number} processes")
    sequences = batch_size // args.seq_len // number
    require("--num-minibatches", lambda v: sequences % v == 0,
            f"must divide the {sequences} sequences of a rollout (num_envs * num_steps / seq_len, of one process)")  # fmt: skip
    require("--norm-adv", lambda v: not v or batch_size > args.num_minibatches,
            "needs at least two steps in a minibatch; take --no-norm-adv or fewer --num-minibatches")  # fmt: skip
    require("--total-timesteps", lambda v: v >= batch_size,
            f"must be at least one rollout, num_envs * num_steps = {batch_size}")  # fmt: skip
    require("--eval-only", lambda v: not v or args.resume, "needs --resume CHECKPOINT")


def make_envs(args: Args, env_id: str, num_envs: int, device):
    """The batched environment where one is registered, otherwise gymnasium's vector environment over single ones."""
    return task_envs.make_batched(env_id, num_envs, device)


def make_env(args: Args, env_id: str) -> gym.Env:
    """One environment that renders, with the observation of `make_envs`."""
    return task_envs.make_single(env_id, render_mode="rgb_array")


def layer_init(layer: nn.Linear, std: float = math.sqrt(2), bias: float = 0.0) -> nn.Linear:
    """Orthogonal weights, constant bias (37 details, detail 2)."""
    nn.init.orthogonal_(layer.weight, std)
    nn.init.constant_(layer.bias, bias)
    return layer


class Encoder(nn.Module):
    """(..., D) float32 -> (..., F): linear and ReLU (the observation itself if size is 0)."""

    def __init__(self, obs_space: gym.spaces.Box, size: int):
        super().__init__()
        # inputs of order one: CartPole's pole leans by hundredths of a radian, its bound is 0.42
        bound = torch.tensor(obs_space.high).where(torch.tensor(obs_space.high < 1e3), torch.tensor(5.0))
        self.register_buffer("scale", 5 / bound, persistent=False)
        self.linear = layer_init(nn.Linear(len(bound), size)) if size else None
        self.out_features = size or len(bound)

    def distinct(self, x):
        """(B, D) -> rows and index (B,), x = rows[index]. Observations of real numbers hardly repeat: the rows are all of x."""
        return x, torch.arange(len(x), device=x.device)

    def forward(self, x):
        x = x * self.scale
        return x if self.linear is None else self.linear(x).relu()


class LSTMRecurrence(torch.autograd.Function):
    """The sequential part of an LSTM that forgets at episode starts; torch.nn.LSTM's gate order (i, f, g, o).

    apply(projected, weight_hh, h, c, keep): projected (T, N, 4H) is W_ih x + b_ih + b_hh of every step; weight_hh (4H, H);
    h, c (N, H) the state before the first step; keep (T, N, 1) is 0 where the step begins an episode, so that nothing
    passes into it, 1 elsewhere. Returns the hidden states (T, N, H) and the last h and c (N, H).

    Back-propagation through time is written out: it takes fewer operations than autograd's, and one matrix product for the
    weight's gradient (Appleyard et al. 2016 do so for the forward pass). [L4]
    """

    @staticmethod
    def forward(ctx, projected, weight_hh, h, c, keep):
        hidden, history = [], []
        for x, kept in zip(projected, keep, strict=True):
            last_h, last_c = h * kept, c  # [L1]
            i, f, g, o = torch.addmm(x, last_h, weight_hh.t()).chunk(4, 1)
            i, f, g, o = i.sigmoid(), f.sigmoid() * kept, g.tanh(), o.sigmoid()  # [L1] nothing of c passes into an episode
            c = (f * last_c).addcmul_(i, g)
            tanh_c = c.tanh()
            h = o * tanh_c
            hidden.append(h)
            history += last_h, last_c, i, f, g, o, tanh_c  # seven a step
        ctx.save_for_backward(weight_hh, keep, *history)
        return torch.stack(hidden), h, c

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_hidden, dh, dc):
        weight_hh, keep, *history = ctx.saved_tensors
        by_sigmoid, by_tanh = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward
        d_gates = []
        for t in reversed(range(len(keep))):
            _, last_c, i, f, g, o, tanh_c = history[7 * t : 7 * t + 7]
            dh = dh + d_hidden[t]
            dc = torch.addcmul(dc, dh, by_tanh(o, tanh_c))
            d_i, d_f, d_g = by_sigmoid(dc * g, i), by_sigmoid(dc * last_c, f), by_tanh(dc * i, g)
            d_gates.append(torch.cat((d_i, d_f, d_g, by_sigmoid(dh * tanh_c, o)), 1))
            dh, dc = (d_gates[-1] @ weight_hh) * keep[t], dc * f
        d_gates = torch.stack(d_gates[::-1])  # (T, N, 4H)
        return d_gates, d_gates.flatten(0, 1).t() @ torch.cat(history[::7]), dh, dc, None


def sample(probs, generator=None):
    """One draw (...,) from each distribution probs (..., A): an exponential race, won with probability probs."""
    return (probs / torch.empty_like(probs).exponential_(generator=generator)).argmax(-1)


class Agent(nn.Module):
    """Encoder -> LSTM -> actor head and critic head. The interface is CleanRL's (ppo_atari_lstm.py).

    Every method reads x (T * N, D), time first, with lstm_state (h, c) of (1, N, H) from before the first step and
    done (T * N,) float, 1 where x is an episode's first observation. A single step is T = 1. With an `index` (T * N,) what
    is read is x[index], and rows of x that recur are encoded once.
    """

    def __init__(self, obs_space: gym.spaces.Box, num_actions: int, args: Args):
        super().__init__()
        self.encoder = Encoder(obs_space, args.encoder_size)
        self.lstm = nn.LSTM(self.encoder.out_features, args.hidden_size)  # holds the parameters; see get_states
        for name, parameter in self.lstm.named_parameters():  # [L6]
            if "bias" in name:
                nn.init.constant_(parameter, 0.0)
            else:
                nn.init.orthogonal_(parameter, 1.0)
        self.lstm.bias_ih_l0.data[args.hidden_size : 2 * args.hidden_size] = 1.0
        self.actor = self._head(args, num_actions, 0.01)
        self.critic = self._head(args, 1, 1.0)
        self.memoryless = args.memoryless
        self.rand_move_eps = args.rand_move_eps

    @staticmethod
    def _head(args, outputs, std):
        if not args.hidden_layer_size:
            return layer_init(nn.Linear(args.hidden_size, outputs), std)
        hidden = layer_init(nn.Linear(args.hidden_size, args.hidden_layer_size))
        return nn.Sequential(hidden, nn.ReLU(), layer_init(nn.Linear(args.hidden_layer_size, outputs), std))

    def initial_state(self, num_envs: int):
        """The zero state: h and c, (1, N, H) each."""
        return tuple(torch.zeros(2, 1, num_envs, self.lstm.hidden_size, device=self.lstm.weight_hh_l0.device))

    def get_states(self, x, lstm_state, done, index=None):
        """-> hidden (T * N, H), the state after the last step."""
        h, c = lstm_state[0][0], lstm_state[1][0]
        if self.memoryless:
            done = torch.ones_like(done)  # [L8]
        lstm = self.lstm
        if index is not None and len(index) <= len(x):  # the fewer are encoded
            x, index = x[index], None
        projected = nn.functional.linear(self.encoder(x), lstm.weight_ih_l0, lstm.bias_ih_l0 + lstm.bias_hh_l0)  # [L4]
        projected = projected if index is None else projected.index_select(0, index)
        projected = projected.view(-1, *h.shape[:-1], projected.shape[-1])  # (T, N, 4H)
        keep = (1.0 - done).view(-1, h.shape[0], 1)
        hidden, h, c = LSTMRecurrence.apply(projected, lstm.weight_hh_l0, h, c, keep)
        return hidden.flatten(0, 1), (h[None], c[None])

    def get_value(self, x, lstm_state, done):
        """-> value (T * N,)."""
        hidden, _ = self.get_states(x, lstm_state, done)
        return self.critic(hidden).squeeze(-1)

    def get_probs(self, hidden):
        """hidden (..., H) -> probs (..., A) of the policy that trains, random moves included."""
        probs, eps = self.actor(hidden).softmax(-1), self.rand_move_eps
        return (1 - eps) * probs + eps / probs.shape[-1] if eps else probs  # [L7]

    def evaluate_actions(self, hidden, action):
        """hidden (..., H), action (...) -> its logprob, the policy's entropy, value, (...) each."""
        # the mixture is never near zero; without it only log_softmax keeps an all but certain policy finite
        logprobs = self.get_probs(hidden).log() if self.rand_move_eps else self.actor(hidden).log_softmax(-1)
        logprob = logprobs.gather(-1, action[..., None]).squeeze(-1)
        return logprob, -(logprobs.exp() * logprobs).sum(-1), self.critic(hidden).squeeze(-1)

    def get_action_and_value(self, x, lstm_state, done, action=None, index=None):
        """-> action, logprob, entropy, value, (T * N,) each, and the state after the last step.

        The policy is the one that trains; without `action` one is drawn from it.
        """
        hidden, lstm_state = self.get_states(x, lstm_state, done, index)
        if action is None:
            action = sample(self.get_probs(hidden))
        return action, *self.evaluate_actions(hidden, action), lstm_state

    def get_logits(self, x, lstm_state, done):
        """-> logits (T * N, A) of the policy without random moves, state."""
        hidden, lstm_state = self.get_states(x, lstm_state, done)
        return self.actor(hidden), lstm_state

    def act(self, x, lstm_state, done, generator=None):
        """-> action (T * N,) without random moves, state: the most probable one, or drawn from a `generator`."""
        logits, lstm_state = self.get_logits(x, lstm_state, done)
        return logits.argmax(-1) if generator is None else sample(logits.softmax(-1), generator), lstm_state


def gae(rewards, values, dones, next_value, next_done, gamma: float, gae_lambda: float):
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) -> advantages, returns, (T, N) each.

    rewards, values, dones (T, N), next_value, next_done (N,). dones[t + 1] says that the episode of step t ended with
    it; nothing passes over that border. Where it was cut by a time limit, the bootstrap is in the reward already [L5].
    """
    discount = gamma * (1.0 - torch.cat((dones[1:], next_done[None])))
    delta = rewards + discount * torch.cat((values[1:], next_value[None])) - values
    advantages = [delta[-1]]
    for t in reversed(range(len(rewards) - 1)):
        advantages.append(delta[t] + gae_lambda * discount[t] * advantages[-1])
    advantages = torch.stack(advantages[::-1])
    return advantages, advantages + values


def to_sequences(x, seq_len: int):
    """(T, N, ...) -> (L, B, ...): sequence c * N + n holds steps c * L to (c + 1) * L - 1 of environment n [L3]."""
    T, N = x.shape[:2]
    return x.view(T // seq_len, seq_len, N, *x.shape[2:]).transpose(0, 1).flatten(1, 2)


def ppo_loss(newlogprob, entropy, newvalue, logprobs, advantages, returns, values, args: Args, std_mean=torch.std_mean):
    """PPO's clipped objective (Schulman et al. 2017, eq. 7 and 9) on a minibatch of any one shape -> loss, stats.

    The first three are the present network's, the next four the rollout's. Stats are tensors of one number, detached.
    """
    logratio = newlogprob - logprobs
    ratio = logratio.exp()
    if args.norm_adv:
        std, mean = std_mean(advantages)
        advantages = (advantages - mean) / (std + 1e-8)
    clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    policy_loss = -torch.min(advantages * ratio, advantages * clipped).mean()
    value_error = (newvalue - returns) ** 2
    if args.clip_vloss:
        near = values + (newvalue - values).clamp(-args.clip_coef, args.clip_coef)
        value_error = torch.max(value_error, (near - returns) ** 2)
    value_loss = 0.5 * value_error.mean()
    entropy = entropy.mean()
    loss = policy_loss - args.ent_coef * entropy + args.vf_coef * value_loss
    with torch.no_grad():
        stats = {
            "value_loss": value_loss,
            "policy_loss": policy_loss,
            "entropy": entropy,
            "old_approx_kl": -logratio.mean(),
            "approx_kl": (ratio - 1 - logratio).mean(),  # http://joschu.net/blog/kl-approx.html
            "clipfrac": ((ratio - 1).abs() > args.clip_coef).float().mean(),
        }
    return loss, {name: value.detach() for name, value in stats.items()}


@torch.no_grad()
def evaluate(agent: Agent, args: Args, env_id: str, device) -> dict:
    """Play fixed episodes that training cannot have seen the seeds of, one in each of as many environments.

    Returns {"argmax": {...}, "sampled": {...}}, each with success_rate, episodic_return, episodic_length, episodes and
    exact. On Memory ids there is an episode from each start, weighted by its probability, so that argmax is exact.
    Success is a return of at least `envs.success_return`.
    """
    results = {}
    threshold = task_envs.success_return(env_id)
    starts = task_envs.start_weights(env_id)
    for mode in ("argmax", "sampled"):
        options = None
        weights = torch.full((args.eval_episodes,), 1 / args.eval_episodes, dtype=torch.float64)
        if starts is not None:
            repeats = 1 if mode == "argmax" else math.ceil(args.eval_episodes / len(starts))
            weights = starts.repeat(repeats) / repeats
            options = {"start": torch.arange(len(starts)).repeat(repeats)}
        envs = make_envs(args, env_id, len(weights), device)
        generator = torch.Generator(device).manual_seed(task_envs.EVAL_SEED) if mode == "sampled" else None
        next_obs, _ = envs.reset(seed=task_envs.EVAL_SEED, options=options)
        next_lstm_state, next_done = agent.initial_state(len(weights)), torch.ones(len(weights), device=device)
        returns, lengths = torch.zeros(2, len(weights), dtype=torch.float64, device=device)
        playing = torch.ones(len(weights), dtype=torch.bool, device=device)
        while playing.any():
            action, next_lstm_state = agent.act(next_obs, next_lstm_state, next_done, generator)
            next_obs, reward, terminated, truncated, _ = envs.step(action)
            returns += reward * playing
            lengths += playing
            next_done = (terminated | truncated).float()
            playing &= ~(terminated | truncated)
        envs.close()
        if not returns.isfinite().all():
            raise FloatingPointError(f"an evaluation episode of {env_id} has a return that is not finite")
        weights = weights.to(device)
        results[mode] = {
            "success_rate": min(1.0, ((returns >= threshold) * weights).sum().item()),
            "episodic_return": (returns * weights).sum().item(),
            "episodic_length": (lengths * weights).sum().item(),
            "episodes": len(weights),
            "exact": starts is not None and mode == "argmax",
        }
    return results


def write_file(path: str, content: bytes) -> None:
    """Write the file whole or not at all: under a temporary name, flushed to disk, then renamed. Raises OSError."""
    try:
        with open(path + ".tmp", "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + ".tmp", path)
    except OSError:
        if os.path.exists(path + ".tmp"):
            os.remove(path + ".tmp")  # a full disk needs the room
        raise


def save_checkpoint(path: str, checkpoint: dict) -> None:
    buffer = io.BytesIO()  # torch.save itself, on a full disk, may raise anything
    torch.save(checkpoint, buffer)
    write_file(path, buffer.getvalue())


def load_checkpoint(path: str) -> dict:
    """Read a checkpoint on the CPU. Raises UsageError with one line where the file is not a whole, readable one."""
    if not os.path.isfile(path):
        raise task_envs.UsageError(f"--resume: no file {path!r}")
    try:
        damaged = zipfile.ZipFile(path).testzip()  # torch.load does not check the sums that the file carries
        checkpoint = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
        kinds = {"format": int, "script": str, "args": dict, "agent": dict}
        known = all(isinstance(checkpoint[name], kind) for name, kind in kinds.items())
    except Exception:  # zipfile and torch raise many kinds for a file that is not theirs
        known = False
    if not known:
        raise task_envs.UsageError(f"--resume: {path!r} is damaged or not a checkpoint; take an older agent_<step>.pt")
    if checkpoint["format"] > FORMAT:
        raise task_envs.UsageError(f"--resume: {path!r} was written by a newer version; update the script")
    return checkpoint


def load_agent(path: str, device="cpu") -> tuple[Agent, Args]:
    """The trained agent of a checkpoint of this script, ready to `act`, and its arguments."""
    checkpoint = load_checkpoint(path)
    args = Args(**checkpoint["args"])
    envs = make_envs(args, args.env_id, 1, device)
    agent = Agent(envs.single_observation_space, int(envs.single_action_space.n), args).to(device)
    agent.load_state_dict(checkpoint["agent"])
    return agent, args


def train(args: Args, checkpoint: dict | None = None, run_dir: str | None = None, stop: list | None = None):
    """Train, or continue from `checkpoint`; -> the agent and what `results.json` holds (None when stopped early; under torchrun
    {} in all processes but the first).

    Everything is written to `run_dir` (a new folder under runs/ by default). An element in `stop`, which a signal
    handler may put there, ends training after the iteration with a checkpoint.
    Raises FloatingPointError, before anything is saved, if a gradient or an evaluation's return is not finite, and
    OSError where a checkpoint cannot be written.
    """
    # ---- SETUP
    started = time.time()
    torch.set_num_threads(args.num_threads)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.deterministic = args.torch_deterministic
    torch.use_deterministic_algorithms(args.torch_deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    ranks = task_envs.Ranks(device)  # alone, unless torchrun started several
    leads = ranks.rank == 0  # one process logs, evaluates and saves
    run_dir = run_dir or (new_run_dir(args) if leads else None)
    print(f"{args.env_id} on {device}, {args.num_threads} threads -> {run_dir}")

    T, N, L = args.num_steps, args.num_envs // ranks.number, args.seq_len
    envs = make_envs(args, args.env_id, N, device)
    agent = Agent(envs.single_observation_space, int(envs.single_action_space.n), args).to(device)
    ranks.broadcast(agent.parameters())  # the same seed on another CPU may give other last bits
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, fused=True)
    learn = agent.get_action_and_value
    if args.compile or args.cudagraphs:
        learn = compiled(learn, args)

    # ---- STORAGE
    global_step = checkpoint["global_step"] if checkpoint else 0
    seeds = task_envs.train_seeds([args.seed, global_step], args.num_envs + 2 * ranks.number)[args.num_envs :]
    if ranks.rank or checkpoint:  # the weights are the same in each process, what is drawn is not
        torch.manual_seed(seeds[ranks.number + ranks.rank])
    next_obs, _ = envs.reset(seed=seeds[ranks.rank])
    next_done = torch.ones(N, device=device)  # [L1] the first observation of each environment begins an episode
    next_lstm_state = agent.initial_state(N)
    obs = torch.zeros((T, *next_obs.shape), dtype=next_obs.dtype, device=device)  # (T, N, D)
    final_obs = torch.zeros_like(obs)  # (T, N, D) what followed step t, before any reset
    cut = torch.zeros((T, N), dtype=torch.bool, device=device)  # (T, N) step t ended its episode by a time limit
    actions = torch.zeros((T, N), dtype=torch.int64, device=device)  # (T, N)
    rewards, dones = torch.zeros((2, T, N), device=device)  # (T, N)
    lstm_h, lstm_c = torch.zeros((2, T + 1, N, args.hidden_size), device=device)  # (T + 1, N, H) before reading obs[t]
    episodes = torch.zeros((2, N), device=device)  # (2, N) return and length of the episodes in progress
    episodes_at = torch.zeros((T, 2, N), device=device)  # (T, 2, N) the same after each step, before any reset

    train_seconds, return_ema, results = 0.0, None, {}
    if checkpoint:
        agent.load_state_dict(checkpoint["agent"])
    if checkpoint and not args.eval_only:
        optimizer.load_state_dict(checkpoint["optimizer"])
        train_seconds, return_ema, results = (checkpoint[name] for name in ("train_seconds", "return_ema", "results"))
        if len(checkpoint["ranks"]) != ranks.number:
            print(f"saved by {len(checkpoint['ranks'])} processes, continued by {ranks.number}: "
                  "episodes in progress and random numbers start anew")  # fmt: skip
        else:
            mine = checkpoint["ranks"][ranks.rank]
            envs.load_state_dict(mine["envs"])
            if task_envs.resumes_exactly(envs):
                next_obs, next_done = mine["next_obs"].to(device), mine["next_done"].to(device)
                next_lstm_state = tuple(state.to(device) for state in mine["next_lstm_state"])
                episodes = mine["episodes"].to(device)
            else:
                print("the episodes in progress cannot be saved for this environment: they start anew")
                next_obs, _ = envs.reset()
            torch.set_rng_state(mine["rng"]["torch"])
            if device.type == "cuda" and "cuda" in mine["rng"]:
                torch.cuda.set_rng_state(mine["rng"]["cuda"])
    logger = leads and Logger(args, run_dir, global_step, checkpoint and checkpoint.get("wandb_run_id"))

    def save(name):
        rng = {"torch": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state()} if device.type == "cuda" else {})
        states = ranks.collect({"envs": envs.state_dict(), "next_obs": next_obs, "next_done": next_done,
                                "next_lstm_state": next_lstm_state, "episodes": episodes, "rng": rng})  # fmt: skip
        if leads:
            logger.flush()  # what was logged before a checkpoint is not logged again by the run that resumes from it
            save_checkpoint(os.path.join(run_dir, name), {
                "format": FORMAT, "script": os.path.basename(__file__), "args": asdict(args), "agent": agent.state_dict(),
                "optimizer": optimizer.state_dict(), "ranks": states, "global_step": global_step,
                "train_seconds": train_seconds, "return_ema": return_ema, "results": results,
                "wandb_run_id": logger.wandb_run_id})  # fmt: skip

    def run_evaluation():
        results = {env_id: evaluate(agent, args, env_id, device) for env_id in (args.env_id, *args.eval_env_id)}
        metrics = {}
        for env_id, result in results.items():
            suffix = "" if env_id == args.env_id else f"/{env_id}"
            for mode, prefix in (("argmax", "eval"), ("sampled", "eval_sampled")):
                for name in ("success_rate", "episodic_return", "episodic_length"):
                    metrics[f"{prefix}/{name}{suffix}"] = result[mode][name]
        logger.log(metrics, global_step)
        if args.capture_video:
            def policy(x, state, done):
                return agent.act(x.to(device), state or agent.initial_state(1), done.to(device))
            for env_id in results:
                with torch.no_grad():
                    logger.videos(task_envs.record_videos(make_env(args, env_id), policy, f"{run_dir}/videos",
                                                          f"{env_id}-step-{global_step}", 3), global_step)  # fmt: skip
        return results

    batch_size = T * args.num_envs
    num_iterations = 0 if args.eval_only else args.total_timesteps // batch_size
    last_save, last_print = 0.0, time.time()  # the first iteration is saved, so that a full disk shows at once
    bar = tqdm(total=num_iterations * batch_size, initial=global_step, unit="step", unit_scale=True,
               disable=not sys.stderr.isatty() or args.eval_only or not leads)  # fmt: skip
    if not args.eval_only:
        print(f"first step after {time.time() - started:.1f} s")

    for iteration in range(global_step // batch_size + 1, num_iterations + 1):
        iteration_start = time.time()
        if args.anneal_lr:
            optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - (iteration - 1) / num_iterations)

        # ---- ROLLOUT
        with torch.no_grad():
            for t in range(T):
                obs[t], dones[t] = next_obs, next_done
                lstm_h[t], lstm_c[t] = next_lstm_state[0][0], next_lstm_state[1][0]
                hidden, next_lstm_state = agent.get_states(next_obs, next_lstm_state, next_done)
                actions[t] = sample(agent.get_probs(hidden))
                next_obs, rewards[t], terminated, truncated, infos = envs.step(actions[t])
                next_done = (terminated | truncated).float()
                final_obs[t], cut[t] = infos["final_obs"], truncated & ~terminated
                episodes[0] += rewards[t]
                episodes[1] += 1
                episodes_at[t] = episodes
                episodes *= 1 - next_done
            lstm_h[T], lstm_c[T] = next_lstm_state[0][0], next_lstm_state[1][0]
            logprobs, _, values = agent.evaluate_actions(lstm_h[1:], actions)  # (T, N); obs[t] led to lstm_h[t + 1]

            # ---- ADVANTAGES
            t, n = cut.nonzero(as_tuple=True)
            bootstrapped = rewards * args.reward_scale
            if len(t):  # [L5] all final states of the rollout in one batch; the state after step t enters step t + 1
                state = lstm_h[t + 1, n][None], lstm_c[t + 1, n][None]
                final_value = agent.get_value(final_obs[t, n], state, torch.zeros_like(t, dtype=torch.float))
                bootstrapped[t, n] += args.gamma * final_value
            next_value = agent.get_value(next_obs, next_lstm_state, next_done)
            advantages, returns = gae(bootstrapped, values, dones, next_value, next_done, args.gamma, args.gae_lambda)

        # ---- UPDATE
        # what belongs to a step lies side by side, so that a minibatch is gathered in three pieces, not nine
        rows, index = agent.encoder.distinct(obs.flatten(0, 1))
        b_integers = to_sequences(torch.stack((index.view(T, N), actions), -1), L)  # (L, B, 2)
        b_floats = to_sequences(torch.stack((dones, logprobs, advantages, returns, values), -1), L)  # (L, B, 5)
        b_states = torch.stack((lstm_h[:T:L], lstm_c[:T:L])).view(2, 1, -1, args.hidden_size)  # (2, 1, B, H) [L2]
        totals, updates, kl_reached = {}, 0, False
        for _epoch in range(args.update_epochs):
            for mb in torch.randperm(b_states.shape[2], device=device).chunk(args.num_minibatches):  # (M,) sequences [L3]
                mb_index, mb_actions = b_integers.index_select(1, mb).view(-1, 2).T.contiguous()
                mb_dones, *mb_rollout = b_floats.index_select(1, mb).view(-1, 5).T.contiguous()
                mb_states = b_states.index_select(2, mb).unbind()
                _, newlogprob, entropy, newvalue, _ = learn(rows, mb_states, mb_dones, mb_actions, mb_index)
                loss, stats = ppo_loss(newlogprob, entropy, newvalue, *mb_rollout, args, ranks.std_mean)
                optimizer.zero_grad()
                loss.backward()
                stats = ranks.average(agent.parameters(), stats)
                if args.target_kl is not None and stats["approx_kl"] > args.target_kl:
                    kl_reached = True
                    break
                stats["grad_norm"] = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
                totals = {name: totals.get(name, 0) + value for name, value in stats.items()}
                updates += 1
            if kl_reached:
                break

        # ---- LOG
        losses = {name: (total / updates).item() for name, total in totals.items()}
        if not math.isfinite(losses.get("grad_norm", 0.0)):
            raise FloatingPointError(
                f"the gradient is not finite after step {global_step}: look for NaN or infinity in the environment's "
                "observations and rewards, or lower --learning-rate")  # fmt: skip
        global_step += batch_size
        train_seconds += time.time() - iteration_start
        bar.update(batch_size)
        metrics = {f"losses/{name}": value for name, value in losses.items()}
        unexplained = (returns - values).var() / returns.var()
        metrics["losses/explained_variance"] = 1 - unexplained.item()
        metrics["charts/learning_rate"] = optimizer.param_groups[0]["lr"]
        metrics["charts/SPS"] = global_step / train_seconds
        ends = torch.cat((dones[1:], next_done[None])).bool()
        if ends.any():
            ended_return, ended_length = episodes_at[:, 0][ends], episodes_at[:, 1][ends]
            mean_return = ended_return.mean().item()
            return_ema = mean_return if return_ema is None else 0.9 * return_ema + 0.1 * mean_return
            threshold = task_envs.success_return(args.env_id)
            metrics["charts/episodic_return"] = mean_return
            metrics["charts/episodic_return_ema"] = return_ema
            metrics["charts/episodic_length"] = ended_length.mean().item()
            metrics["charts/success_rate"] = (ended_return >= threshold).float().mean().item()
        if leads:
            logger.log(metrics, global_step)

        evaluates = iteration == num_iterations or (args.eval_every and iteration % args.eval_every == 0)
        # the checkpoint holds the results: they are neither computed nor logged twice
        results = run_evaluation() if evaluates and leads else {}
        if results or time.time() - last_print > 10:
            line = f"step {global_step:>9,}  {metrics['charts/SPS']:>7,.0f} steps/s"
            line += f"  return {return_ema:.3f}" if return_ema is not None else ""
            line += "".join(f"  success on {name} {r['argmax']['success_rate']:.3f}" for name, r in results.items())
            tqdm.write(line)
            last_print = time.time()
        keep = args.save_every and iteration % args.save_every == 0
        if keep:
            save(f"agent_{global_step}.pt")
        signalled, due = ranks.largest(stop[0] if stop else 0, time.time() - last_save > 60)  # all do the same
        if keep or signalled or due or iteration == num_iterations:
            save("agent.pt")
            last_save = time.time()
        if signalled:
            break

    # ---- RESULTS
    bar.close()
    finished = args.eval_only or global_step >= num_iterations * batch_size
    if finished and leads:
        results = results or run_evaluation()
        results = {"env_id": args.env_id, "seed": args.seed, "args": asdict(args), "global_step": global_step,
                   "wall_seconds": time.time() - started, "SPS": global_step / train_seconds if train_seconds else None,
                   "eval": results}  # fmt: skip
        write_file(os.path.join(run_dir, "results.json"), json.dumps(results, indent=2).encode())
        for env_id, result in results["eval"].items():
            print(f"{env_id} after {global_step:,} steps:", ", ".join(
                f"{mode} success {r['success_rate']:.4f}{' (exact)' if r['exact'] else ''} return {r['episodic_return']:.3f}"
                f" length {r['episodic_length']:.1f}" for mode, r in result.items()))  # fmt: skip
    if leads:
        logger.close()
    envs.close()
    ranks.close()
    return agent, results if finished else None


def compiled(function, args: Args):
    """`function` through torch.compile, or itself, with one line of warning, on a machine that cannot compile."""
    backend = "inductor" if args.compile else "cudagraphs"
    mode = "reduce-overhead" if args.compile and args.cudagraphs else None
    fast, works = torch.compile(function, backend=backend, mode=mode, dynamic=False), []

    def call(x, lstm_state, done, action, index):
        if works == [False]:
            return function(x, lstm_state, done, action, index)
        try:
            outputs = fast(x[index], lstm_state, done, action)  # of the same shape, however many rows are distinct
        except Exception as error:
            if works:
                raise
            works.append(False)
            warnings.warn(f"--compile: goes on without, {type(error).__name__}: {str(error).splitlines()[0]}", stacklevel=1)
            return function(x, lstm_state, done, action, index)
        works[:] = [True]
        return outputs

    return call


class Logger:
    """Scalars and videos to TensorBoard, and to W&B with --track. A log that fails never ends the run."""

    def __init__(self, args: Args, run_dir: str, global_step: int, wandb_run_id: str | None):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training needs it

        # what a killed run logged after its last checkpoint is logged again, so let it be forgotten
        self.writer = SummaryWriter(run_dir, purge_step=global_step + 1 if global_step else None)
        self.run, self.wandb_run_id, self.complaints = None, None, set()
        atexit.register(self.flush)  # a run that fails shows how
        if not args.track:
            return
        try:
            import wandb

            self.run = wandb.init(
                project=args.wandb_project_name, entity=args.wandb_entity, name=os.path.basename(run_dir), dir=run_dir,
                config=asdict(args), id=wandb_run_id, resume="must" if wandb_run_id else None,
                settings=wandb.Settings(init_timeout=60))  # fmt: skip
            self.run.define_metric("*", step_metric="global_step")
            self.wandb_run_id = self.run.id
        except Exception as error:
            print(f"--track: W&B is not available ({str(error).splitlines()[0]}); the run goes on with TensorBoard alone. "
                  "WANDB_MODE=offline logs without an account.", file=sys.stderr)  # fmt: skip

    def _try(self, function, *inputs):
        try:
            function(*inputs)
        except Exception as error:
            if str(error) not in self.complaints:
                print(f"log entries are lost: {error}; training goes on", file=sys.stderr)
            self.complaints.add(str(error))

    def log(self, metrics: dict, global_step: int) -> None:
        for name, value in metrics.items():
            self._try(self.writer.add_scalar, name, value, global_step)
        if self.run:
            self._try(self.run.log, {**metrics, "global_step": global_step})

    def videos(self, paths: list[str], global_step: int) -> None:
        if self.run:
            import wandb

            videos = {f"videos/{i}": wandb.Video(path, format="mp4") for i, path in enumerate(paths)}
            self._try(self.run.log, {**videos, "global_step": global_step})

    def flush(self) -> None:
        self._try(self.writer.flush)

    def close(self) -> None:
        atexit.unregister(self.flush)
        self._try(self.writer.close)
        if self.run:
            self._try(self.run.finish)


def new_run_dir(args: Args) -> str:
    """Create and return runs/{env_id}__{exp_name}__{seed}__{time}."""
    run_dir, now = "runs", int(time.time())
    os.makedirs(run_dir, exist_ok=True)
    while os.path.exists(run_dir):
        run_dir, now = os.path.join("runs", f"{args.env_id}__{args.exp_name}__{args.seed}__{now}"), now + 1
    os.mkdir(run_dir)
    return run_dir


def like(a, b) -> bool:
    """Whether b has all that a has: keys, lengths, shapes and types; values may differ."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and (a.shape, a.dtype) == (b.shape, b.dtype)
    if isinstance(a, dict):
        return isinstance(b, dict) and all(name in b and like(value, b[name]) for name, value in a.items())
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(like, a, b))
    return type(a) is type(b)


def parse(argv: list[str] | None) -> tuple[Args, dict | None]:
    """Arguments, and the checkpoint that --resume names. Raises UsageError with one line for the user."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--resume")
    path = early.parse_known_args(argv)[0].resume
    if path is None:
        args = tyro.cli(Args, args=argv)
        checkpoint = None
    else:
        checkpoint = load_checkpoint(path)
        here = os.path.basename(__file__)
        if checkpoint["script"] != here:
            raise task_envs.UsageError(f"--resume: {path!r} was written by {checkpoint['script']}; run that script")
        if checkpoint["args"].keys() != {field.name for field in fields(Args)}:
            raise task_envs.UsageError(f"--resume: {path!r} has other arguments than this {here}; run the script that wrote it")
        saved = Args(**{**checkpoint["args"], "resume": path})
        args = tyro.cli(Args, args=argv, default=saved)
        if not {"optimizer", "ranks"} <= checkpoint.keys() and not args.eval_only:
            raise task_envs.UsageError(f"--resume: {path!r} is an exported agent or from an older version, it cannot train on; "
                                       "add --eval-only")  # fmt: skip
        free = {"track", "wandb_project_name", "wandb_entity", "capture_video", "save_every", "num_threads", "resume"}
        free |= {"eval_only", "eval_every", "eval_env_id", "eval_episodes"}
        free |= set() if args.anneal_lr else {"total_timesteps"}
        for field in fields(Args):
            if field.name not in free and getattr(args, field.name) != getattr(saved, field.name):
                flag = "--" + field.name.replace("_", "-")
                given, before = getattr(args, field.name), getattr(saved, field.name)
                raise task_envs.UsageError(f"{flag} {given} differs from the checkpoint's {before}; leave it out, or start "
                                           "a new run without --resume")  # fmt: skip
        batch_size = args.num_envs * args.num_steps
        ended = os.path.exists(os.path.join(os.path.dirname(path), "results.json"))  # else its evaluation is still to come
        if ended and not args.eval_only and checkpoint["global_step"] + batch_size > args.total_timesteps:
            remedy = "its learning rate ends there, so add" if args.anneal_lr else "raise it, or add"
            raise task_envs.UsageError(f"--total-timesteps {args.total_timesteps} is reached by {path!r}; {remedy} --eval-only")

    task_envs.take_gpu(args.cuda)
    if args.cudagraphs and not args.eval_only and not (args.cuda and torch.cuda.is_available()):
        raise task_envs.UsageError("--cudagraphs needs a GPU and --cuda; leave it out")
    spaces = {}
    for env_id in (args.env_id, *args.eval_env_id):
        envs = make_envs(args, env_id, 1, "cpu")
        spaces[env_id] = envs.single_observation_space, int(envs.single_action_space.n)
        envs.close()
        if spaces[env_id] != spaces[args.env_id]:
            raise task_envs.UsageError(f"--eval-env-id: {env_id} has another observation or action space than {args.env_id}")
    if checkpoint:  # what has other shapes would load silently, or worse: compare with what this run would save
        agent = Agent(*spaces[args.env_id], args)
        fresh = {"agent": agent.state_dict()}
        if not args.eval_only:
            _, number = task_envs.rank_and_number()
            N, states = args.num_envs // number, checkpoint["ranks"]
            envs = make_envs(args, args.env_id, N, "cuda" if args.cuda and torch.cuda.is_available() else "cpu")
            state = {"next_obs": envs.reset()[0], "envs": envs.state_dict(), "next_done": torch.zeros(N),
                     "next_lstm_state": agent.initial_state(N), "episodes": torch.zeros(2, N),
                     "rng": {"torch": torch.get_rng_state()}}  # fmt: skip
            envs.close()
            adam = [{"step": torch.zeros(()), "exp_avg": p, "exp_avg_sq": p} for p in agent.parameters()]
            anew = isinstance(states, list) and len(states) != number  # saved by another number of processes
            fresh |= {"ranks": states if anew else [state] * number, "global_step": 0, "train_seconds": 0.0, "results": {}}
            if checkpoint["optimizer"]["state"]:
                fresh["optimizer"] = {"state": dict(enumerate(adam))}
        if not like(fresh, checkpoint):
            raise task_envs.UsageError(f"--resume: {path!r} holds other shapes than its arguments say, or is from another kind "
                                       "of device; take another file")  # fmt: skip
    return args, checkpoint


def way_on(run_dir: str | None) -> str:
    """What to tell who has to start a stopped or failed run again."""
    path = os.path.join(run_dir or "", "agent.pt")
    return f"go on with --resume {path}" if run_dir and os.path.exists(path) else "there is no checkpoint yet"


class Stopped(BaseException):
    """Raised some seconds after a signal, wherever the run is then."""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 1 after a failed run, 2 for a bad flag, 128 + n when stopped by signal n."""
    stop, run_dir, results, first = [], None, None, 0.0
    rank, _ = task_envs.rank_and_number()
    if rank > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (one process speaks, and writes)

    def on_signal(number, _frame):
        nonlocal first
        if not stop:  # the iteration may end and be saved
            stop.append(number)
            first = time.monotonic()
            if hasattr(signal, "setitimer"):
                signal.setitimer(signal.ITIMER_REAL, 6, 2)
        elif number in asked and time.monotonic() - first < 0.3:
            pass  # the same one: a terminal, torchrun or a scheduler may each have passed it on
        elif len(stop) == 1 and number not in asked:  # it did not within 6 seconds: the last checkpoint stands
            stop.append(number)
            raise Stopped
        else:  # a second signal does not wait, nor does the process for longer than 8 seconds
            os._exit(128 + stop[0])

    asked = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)}
    timer = {signal.SIGALRM} if hasattr(signal, "SIGALRM") else set()
    handlers = {number: signal.signal(number, on_signal) for number in asked | timer}
    try:
        args, checkpoint = parse(argv)
        inside = args.resume and os.path.realpath(args.resume).startswith(os.path.realpath("runs") + os.sep)
        run_dir = "" if rank > 0 else os.path.dirname(args.resume) if inside and not args.eval_only else new_run_dir(args)
        _, results = train(args, checkpoint, run_dir, stop)
    except SystemExit as error:  # tyro has said what is wrong, or has shown --help
        return error.code or 0
    except Stopped:
        print("the iteration in progress took too long to end and is not saved")
    except Exception as error:
        if run_dir is None and isinstance(error, (task_envs.UsageError, OSError)):
            print(f"error: {error}", file=sys.stderr)
            return 2
        if not isinstance(error, (FloatingPointError, OSError)):  # an environment's, or a bug: show where
            traceback.print_exc()
        print(f"error: {str(error) or type(error).__name__}" + (f"; {way_on(run_dir)}" if run_dir else ""), file=sys.stderr)
        return 1
    finally:
        if timer:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if results is None:
        print(f"stopped; {way_on(run_dir)}")
        return 128 + (stop[0] if stop else signal.SIGTERM)  # a signal may have come to another process
    return 0


if __name__ == "__main__":
    sys.exit(main())
