"""PPO with an LSTM on MiniGrid tasks that need memory, in one file.

    python ppo_lstm_minigrid.py --env-id MiniGrid-MemoryS13-v0 --track

The agent sees 3x3 cells. It passes a cue (key or ball), walks down a corridor, and must turn to the matching object at
the fork. Without memory it is right half of the time. With the defaults it is right from every start (exact success
1.0) after 1.0 to 3.8 M of 5 M steps, ten seeds of ten; the 5 M take two and a half minutes on one core of a recent CPU.

Shapes: T = num_steps, N = num_envs (under torchrun this process's share), L = seq_len, B = T / L * N sequences of a
rollout, M = sequences of a minibatch, D = observation size, F = encoded size, H = hidden_size, A = actions.
LSTM states are pairs (h, c) of (1, N, H), as torch.nn.LSTM has them.

What the LSTM adds to PPO; the comments below cite these:
[L1] dones[t] is 1 where obs[t] begins an episode; the state is zeroed before it reads obs[t] (Huang et al. 2022, "The
     37 Implementation Details of PPO"; below "37 details").
[L2] Rollouts are cut into chunks of L steps that begin with the states the rollout had there (Kapturowski et al. 2019).
[L3] Minibatches shuffle whole sequences, never steps, so that each is consecutive and from one environment.
[L4] One matrix product projects the inputs of all steps; only hidden-to-hidden is sequential (Appleyard et al. 2016).
[L5] A time limit is not a termination: bootstrap from V(final_obs), with the state not reset (Pardo et al. 2018).
[L6] Orthogonal weights, zero biases (37 details), but 1 for the forget gate: memories fade slowly (Jozefowicz 2015).
[L7] With random moves the policy is the mixture (1 - e) pi + e uniform: sampling, log-prob and entropy all use it.
[L8] The memoryless control zeroes the state before every step; the dones that GAE sees stay as they are.
"""

import contextlib
import io
import json
import math
import os
import signal
import sys
import time
import warnings
import zipfile
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated

import filelock
import gymnasium as gym
import numpy as np
import torch
import torch.distributed as dist
import tyro
from torch import nn
from tqdm import tqdm

import envs as task_envs

SCRIPT = os.path.basename(__file__)
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun


@dataclass
class Args:
    exp_name: str = os.path.splitext(SCRIPT)[0]  # RUN: part of the run folder's name
    seed: int = 1  # seed of everything random
    torch_deterministic: bool = True  # use deterministic kernels where torch has them
    cuda: bool = True  # use a GPU where there is one
    num_threads: int = 1  # CPU threads for torch; small networks are slower on many
    compile: bool = False  # compile the update with torch.compile (about a minute at the start)
    track: bool = False  # log to Weights & Biases too (WANDB_MODE=offline needs no account)
    wandb_project_name: str = "ppo-lstm"  # W&B project
    wandb_entity: str | None = None  # W&B team or user; None is your default
    capture_video: bool = False  # film three episodes at each evaluation, as mp4 in the run folder's videos/
    save_every: int = 0  # also keep agent_<step>.pt every so many iterations (0: never); agent.pt is saved each minute
    resume: str | None = None  # checkpoint to continue from; its arguments are the defaults of all others

    env_id: str = "MiniGrid-MemoryS13-v0"  # ENVIRONMENT: a MiniGrid id
    view_size: int = 3  # side of the square of cells that the agent sees, odd; 0 is the whole grid
    ignore_mission: bool = False  # accept ids whose mission varies; the agent does not read it

    total_timesteps: Annotated[int, tyro.conf.arg(aliases=["--total-steps"])] = 5_000_000  # PPO: of all environments
    learning_rate: float = 2.5e-3  # Adam's step size
    num_envs: int = 128  # environments stepped together (N); under torchrun those of all processes
    num_steps: int = 64  # steps of each environment per rollout (T); total_timesteps is cut to whole rollouts
    anneal_lr: bool = True  # let the learning rate fall linearly to zero
    gamma: float = 0.999  # discount per step
    gae_lambda: float = 0.95  # lambda of generalised advantage estimation
    num_minibatches: int = 8  # minibatches per epoch; divides the num_envs * num_steps / seq_len sequences of a rollout
    update_epochs: int = 8  # passes over a rollout
    reward_scale: float = 1.0  # factor on rewards for learning; logs and results show raw rewards
    norm_adv: bool = True  # normalise advantages in each minibatch
    clip_coef: float = 0.2  # clip range of the importance ratio
    clip_vloss: bool = False  # clip the value loss too
    ent_coef: float = 0.01  # weight of the entropy bonus
    vf_coef: float = 2.0  # weight of the value loss
    max_grad_norm: float = 0.5  # gradients are clipped to this norm
    target_kl: float | None = None  # end the update when the approximate KL divergence passes this
    rand_move_eps: float = 0.05  # share of uniformly random moves mixed into the policy while training

    seq_len: int = 16  # LSTM: steps of truncated back-propagation through time (L); divides num_steps
    encoder_size: int = 32  # units of the layer before the LSTM (0: none)
    hidden_size: int = 32  # LSTM units (H)
    hidden_layer_size: int = 0  # units of a hidden layer in the actor head and in the critic head (0: none)
    memoryless: bool = False  # the control: zero the LSTM state before every step

    eval_every: int = 10  # EVALUATION: iterations between evaluations (0: only at the end)
    eval_env_id: tuple[str, ...] = ()  # further ids to evaluate on
    eval_episodes: int = 100  # episodes per evaluation where it cannot be exact
    eval_only: bool = False  # with --resume: evaluate, write results.json, train nothing


def make_envs(args: Args, env_id: str, num_envs: int, device):
    """The batched environment where one is registered, otherwise gymnasium's vector environment over single ones."""
    return task_envs.make_batched(env_id, num_envs, device, args.view_size, args.ignore_mission)


def make_env(args: Args, env_id: str) -> gym.Env:
    """One environment that renders, with the observation of `make_envs`."""
    return task_envs.make_single(env_id, args.view_size, "rgb_array", args.ignore_mission)


def layer_init(layer: nn.Linear, std: float = math.sqrt(2)) -> nn.Linear:
    """Orthogonal weights, zero bias (37 details, detail 2)."""
    nn.init.orthogonal_(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


class Encoder(nn.Module):
    """(..., D) uint8 of MiniGrid cells and direction -> (..., F): one-hot, then linear and ReLU (none if size is 0)."""

    def __init__(self, obs_space: gym.spaces.Box, size: int):
        super().__init__()
        cells = (obs_space.shape[0] - 1) // 3
        kinds = torch.tensor([11, 6, 4] * cells + [4])  # objects, colours, states of each cell; directions
        self.register_buffer("offsets", kinds.cumsum(0) - kinds, persistent=False)
        # walls and floor fill the view, what matters is rare: doors, keys, balls, goals and the like count six times
        weights = torch.tensor(([1.0] * 4 + [6.0] * 7 + [1.0] * 10) * cells + [1.0] * 4)
        self.register_buffer("weights", weights, persistent=False)
        self.linear = layer_init(nn.Linear(len(weights), size)) if size else None
        self.out_features = size or len(weights)

    def forward(self, x):
        one_hot = torch.zeros(*x.shape[:-1], len(self.weights), device=x.device)
        one_hot.scatter_(-1, x.long() + self.offsets, 1.0).mul_(self.weights)
        return one_hot if self.linear is None else self.linear(one_hot).relu()


def recurrence(inputs, weight_hh, h, c, not_first, history):
    """The sequential part of an LSTM, gates as in torch.nn.LSTM. inputs (T, N, 4H): W_ih x + b_ih + b_hh; h, c (N, H)
    before the first step; not_first (T, N, 1): 0 where one begins an episode -> hidden (T, N, H), the last h and c."""
    hidden = []
    for x, keep in zip(inputs, not_first, strict=True):
        last_h, last_c = h * keep, c  # [L1]
        i, f, g, o = torch.addmm(x, last_h, weight_hh.t()).chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid() * keep, g.tanh(), o.sigmoid()  # [L1] a closed forget gate empties c
        c = (f * last_c).addcmul_(i, g)
        tanh_c = c.tanh()
        h = o * tanh_c
        hidden.append(h)
        history += last_h, last_c, i, f, g, o, tanh_c  # for LSTMRecurrence
    return torch.stack(hidden), h, c


class LSTMRecurrence(torch.autograd.Function):
    """`recurrence` with its back-propagation written out: fewer operations than autograd's, and an eighth faster."""

    @staticmethod
    def forward(ctx, inputs, weight_hh, h, c, not_first):
        outputs = recurrence(inputs, weight_hh, h, c, not_first, history := [])
        ctx.save_for_backward(weight_hh, not_first, *history)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_hidden, dh, dc):
        weight_hh, not_first, *history = ctx.saved_tensors
        by_sigmoid, by_tanh = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward
        d_gates = []
        for t in reversed(range(len(not_first))):
            _, last_c, i, f, g, o, tanh_c = history[7 * t : 7 * t + 7]
            dh = dh + d_hidden[t]
            dc = torch.addcmul(dc, dh, by_tanh(o, tanh_c))
            d_i, d_f, d_g = by_sigmoid(dc * g, i), by_sigmoid(dc * last_c, f), by_tanh(dc * i, g)
            d_gates.append(torch.cat((d_i, d_f, d_g, by_sigmoid(dh * tanh_c, o)), 1))
            dh, dc = (d_gates[-1] @ weight_hh) * not_first[t], dc * f
        d_gates = torch.stack(d_gates[::-1])  # (T, N, 4H)
        return d_gates, d_gates.flatten(0, 1).t() @ torch.cat(history[::7]), dh, dc, None


def sample(probs, generator=None):
    """One draw (...,) from each probs (..., A): an exponential race. (torch.multinomial would make a GPU wait.)"""
    return (probs / torch.empty_like(probs).exponential_(generator=generator)).argmax(-1)


class Agent(nn.Module):
    """Encoder -> LSTM -> actor and critic; the interface is CleanRL's (ppo_atari_lstm.py). Methods read x (T * N, D),
    time first, lstm_state (h, c) of (1, N, H) from before the first step, and done (T * N,) float, 1 where x begins an
    episode. A single step is T = 1. With an `index` (T * N,) what is read is x[index]."""

    def __init__(self, obs_space: gym.spaces.Box, num_actions: int, args: Args):
        super().__init__()
        self.encoder = Encoder(obs_space, args.encoder_size)
        self.lstm = nn.LSTM(self.encoder.out_features, args.hidden_size)  # holds the parameters; see get_states
        for name, parameter in self.lstm.named_parameters():  # [L6]
            nn.init.zeros_(parameter) if "bias" in name else nn.init.orthogonal_(parameter)
        self.lstm.bias_ih_l0.data[args.hidden_size : 2 * args.hidden_size] = 1.0
        self.actor, self.critic = self._head(args, num_actions, 0.01), self._head(args, 1, 1.0)
        self.memoryless, self.rand_move_eps = args.memoryless, args.rand_move_eps

    @staticmethod
    def _head(args, outputs, std):
        if not args.hidden_layer_size:
            return layer_init(nn.Linear(args.hidden_size, outputs), std)
        hidden = layer_init(nn.Linear(args.hidden_size, args.hidden_layer_size))
        return nn.Sequential(hidden, nn.ReLU(), layer_init(nn.Linear(args.hidden_layer_size, outputs), std))

    def initial_state(self, num_envs: int):
        return tuple(torch.zeros(2, 1, num_envs, self.lstm.hidden_size, device=self.lstm.weight_hh_l0.device))

    def get_states(self, x, lstm_state, done, index=None):
        """-> hidden (T * N, H), the state after the last step."""
        h, c = lstm_state[0][0], lstm_state[1][0]
        if self.memoryless:
            done = torch.ones_like(done)  # [L8]
        not_first = (1.0 - done).view(-1, len(h), 1)
        if index is not None and len(index) <= len(x):  # encode whichever is fewer
            x, index = x[index], None
        lstm = self.lstm
        inputs = nn.functional.linear(self.encoder(x), lstm.weight_ih_l0, lstm.bias_ih_l0 + lstm.bias_hh_l0)  # [L4]
        inputs = inputs if index is None else inputs.index_select(0, index)
        inputs = inputs.view(len(not_first), len(h), -1)  # (T, N, 4H)
        hidden, h, c = LSTMRecurrence.apply(inputs, lstm.weight_hh_l0, h, c, not_first)
        return hidden.flatten(0, 1), (h[None], c[None])

    def get_value(self, x, lstm_state, done):
        return self.critic(self.get_states(x, lstm_state, done)[0]).squeeze(-1)

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
        """-> action (drawn if not given), logprob, entropy, value, (T * N,) each, and the state after the last step."""
        hidden, lstm_state = self.get_states(x, lstm_state, done, index)
        action = sample(self.get_probs(hidden)) if action is None else action
        return action, *self.evaluate_actions(hidden, action), lstm_state

    def act(self, x, lstm_state, done, generator=None):
        """-> action (T * N,) without random moves, state: the most probable one, or drawn from a `generator`."""
        hidden, lstm_state = self.get_states(x, lstm_state, done)
        probs = self.actor(hidden).softmax(-1)
        return probs.argmax(-1) if generator is None else sample(probs, generator), lstm_state


def gae(rewards, values, dones, next_value, next_done, gamma: float, gae_lambda: float):
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) -> advantages, returns, (T, N) each.
    dones[t + 1] says that the episode of step t ended with it; nothing passes over that border."""
    discount = gamma * (1.0 - torch.cat((dones[1:], next_done[None])))
    delta = rewards + discount * torch.cat((values[1:], next_value[None])) - values
    advantages = [delta[-1]]
    for t in reversed(range(len(rewards) - 1)):
        advantages.append(delta[t] + gae_lambda * discount[t] * advantages[-1])
    advantages = torch.stack(advantages[::-1])
    return advantages, advantages + values


def distinct(x):
    """(K, D) on the CPU -> rows, index; x = rows[index]. A rollout shows few different views; each is encoded once."""
    _, first, index = np.unique(x.numpy().view(f"V{x[0].nbytes}"), return_index=True, return_inverse=True)
    return x[torch.from_numpy(first)], torch.from_numpy(index.ravel())


def all_mean(x):
    """The mean of x over the processes that torchrun started, in place; without torchrun x itself."""
    if WORLD > 1:
        dist.all_reduce(x)
        x /= WORLD
    return x


def ppo_loss(newlogprob, entropy, newvalue, logprobs, advantages, returns, values, args: Args):
    """PPO's clipped objective (Schulman et al. 2017, eq. 7, 9) -> loss, stats (detached). Arguments have any one shape;
    the first three are the present network's, the next four the rollout's."""
    logratio = newlogprob - logprobs
    ratio = logratio.exp()
    if args.norm_adv:
        advantages = advantages - all_mean(advantages.mean())
        advantages = advantages / (all_mean(advantages.square().mean()).sqrt() + 1e-8)
    clipped_ratio = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    policy_loss = -torch.min(advantages * ratio, advantages * clipped_ratio).mean()
    value_error = (newvalue - returns) ** 2
    if args.clip_vloss:
        v_clipped = values + (newvalue - values).clamp(-args.clip_coef, args.clip_coef)
        value_error = torch.max(value_error, (v_clipped - returns) ** 2)
    value_loss, entropy = 0.5 * value_error.mean(), entropy.mean()
    loss = policy_loss - args.ent_coef * entropy + args.vf_coef * value_loss
    approx_kl = (ratio - 1 - logratio).mean()  # http://joschu.net/blog/kl-approx.html
    clipfrac = ((ratio - 1).abs() > args.clip_coef).float().mean()
    stats = {"value_loss": value_loss, "policy_loss": policy_loss, "entropy": entropy, "approx_kl": approx_kl,
             "old_approx_kl": -logratio.mean(), "clipfrac": clipfrac}  # fmt: skip
    return loss, {name: value.detach() for name, value in stats.items()}


def train(args: Args, checkpoint: dict | None = None, run_dir: str | None = None, stop: list | tuple = ()):
    """Train, or continue from `checkpoint` -> the agent, and what results.json holds ({} if stopped early).

    Writes to `run_dir`, by default a new folder under runs/. A number in `stop`, which a signal handler may put there,
    ends training after the iteration, with a checkpoint. Raises UsageError before anything is written, OSError where a
    checkpoint cannot be, FloatingPointError if a gradient is not finite."""
    # ---- SETUP
    started = time.time()
    torch.set_num_threads(args.num_threads)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(args.torch_deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
    use_cuda = args.cuda and torch.cuda.is_available()
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if use_cuda else "cpu")
    if use_cuda:
        torch.cuda.set_device(device)
    if WORLD > 1:
        dist.init_process_group("nccl" if use_cuda else "gloo")
    T, N, L, batch_size = args.num_steps, args.num_envs // WORLD, args.seq_len, args.num_steps * args.num_envs
    num_iterations = args.total_timesteps // batch_size
    envs = make_envs(args, args.env_id, N, device)
    agent = Agent(envs.single_observation_space, int(envs.single_action_space.n), args).to(device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, fused=True)
    forward = torch.compile(agent.get_action_and_value, dynamic=False) if args.compile else agent.get_action_and_value
    progress = {"global_step": 0, "train_seconds": 0.0, "results": {}, "wandb_run_id": None} | (checkpoint or {})
    global_step, train_seconds, results = (progress[name] for name in ("global_step", "train_seconds", "results"))

    # ---- STORAGE
    seeds = task_envs.spawn_seeds(args.seed, args.num_envs + WORLD, global_step)  # of each environment and each process
    if RANK or checkpoint:  # the weights begin the same in each process, what is drawn does not
        torch.manual_seed(seeds[args.num_envs + RANK])
    next_obs, _ = envs.reset(seed=seeds[RANK * N : (RANK + 1) * N])
    next_done, next_lstm_state = torch.ones(N, device=device), agent.initial_state(N)  # [L1] obs[0] begins an episode
    obs = torch.zeros((T, *next_obs.shape), dtype=next_obs.dtype, device=device)  # (T, N, D)
    final_obs = torch.zeros_like(obs)  # (T, N, D) what followed step t, before any reset
    timed_out = torch.zeros((T, N), dtype=torch.bool, device=device)  # (T, N) step t ended its episode by a time limit
    actions = torch.zeros((T, N), dtype=torch.int64, device=device)  # (T, N)
    rewards, dones = torch.zeros((2, T, N), device=device)  # (T, N)
    lstm_h, lstm_c = torch.zeros((2, T + 1, N, args.hidden_size), device=device)  # (T + 1, N, H) before reading obs[t]
    running_stats = torch.zeros((2, N), device=device)  # (2, N) return and length of the episodes in progress
    running_stats_at = torch.zeros((T, 2, N), device=device)  # (T, 2, N) the same after each step, before any reset
    if checkpoint:
        restore(checkpoint, args, agent, optimizer, envs, [next_obs, next_done, running_stats, *next_lstm_state])
    for parameter in agent.parameters() if WORLD > 1 else ():
        dist.broadcast(parameter.data, 0)  # the same seed on another CPU may give other last bits
    if RANK == 0:  # one process logs, evaluates and saves
        run_dir, lock, writer, wandb = open_run(args, run_dir, global_step, progress["wandb_run_id"])
        attempt(print, f"{args.env_id} on {device} -> {run_dir}; first step after {time.time() - started:.1f} s")

    def log(metrics):
        for name, value in metrics.items():
            attempt(writer.add_scalar, name, value, global_step)
        if wandb:
            attempt(wandb.log, {**metrics, "global_step": global_step})

    def run_evaluation():
        results = {}
        for env_id in (args.env_id, *args.eval_env_id):
            results[env_id] = evaluate(agent, args, env_id, device, stop)
            if stop:
                return {}
            for prefix, (mode, result) in zip(("eval", "eval_sampled"), results[env_id].items(), strict=True):
                attempt(tqdm.write, f"{env_id} after {global_step:,} steps, {mode}: {result}")
                suffix = "" if env_id == args.env_id else f"/{env_id}"
                log({f"{prefix}/{name}{suffix}": value for name, value in result.items()})
            if args.capture_video:
                film = make_env(args, env_id), agent.act, agent.initial_state(1), f"{run_dir}/videos"
                paths = attempt(task_envs.record_videos, *film, f"{env_id}-step-{global_step}", 3)
                if wandb and paths:
                    log({f"videos/{n}": wandb.Video(path, format="mp4") for n, path in enumerate(paths)})
        return results

    def save(name):
        state = {"envs": envs.state_dict(), "carried": [next_obs, next_done, running_stats, *next_lstm_state],
                 "rng": torch.get_rng_state(), "cuda_rng": use_cuda and torch.cuda.get_rng_state(device)}  # fmt: skip
        states = [state] * WORLD
        if WORLD > 1:
            dist.all_gather_object(states, state)
        if RANK == 0:
            attempt(writer.flush)  # what is logged before a checkpoint is not logged again after it
            buffer = io.BytesIO()  # torch.save itself, on a full disk, may raise anything
            torch.save({"script": SCRIPT, "args": asdict(args), "agent": agent.state_dict(), "ranks": states,
                        "optimizer": optimizer.state_dict(), "results": results, "global_step": global_step,
                        "train_seconds": train_seconds, "wandb_run_id": wandb and wandb.run.id}, buffer)
            write_file(f"{run_dir}/{name}", buffer.getvalue())

    last_save = 0.0  # the first iteration is saved: a full disk shows at once
    bar = tqdm(total=num_iterations * batch_size, initial=global_step, unit_scale=True, disable=RANK > 0 or None)
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
                final_obs[t], timed_out[t] = infos["final_obs"], truncated & ~terminated
                running_stats[0] += rewards[t]
                running_stats[1] += 1
                running_stats_at[t] = running_stats
                running_stats *= 1 - next_done
            lstm_h[T], lstm_c[T] = next_lstm_state[0][0], next_lstm_state[1][0]
            logprobs, _, values = agent.evaluate_actions(lstm_h[1:], actions)  # (T, N); obs[t] led to lstm_h[t + 1]

            # ---- ADVANTAGES
            t, n = timed_out.nonzero(as_tuple=True)
            bootstrapped = rewards * args.reward_scale
            if len(t):  # [L5] all final states of the rollout in one batch; the state after step t enters step t + 1
                state = lstm_h[t + 1, n][None], lstm_c[t + 1, n][None]
                final_value = agent.get_value(final_obs[t, n], state, torch.zeros(len(t), device=device))
                bootstrapped[t, n] += args.gamma * final_value
            next_value = agent.get_value(next_obs, next_lstm_state, next_done)
            advantages, returns = gae(bootstrapped, values, dones, next_value, next_done, args.gamma, args.gae_lambda)

        # ---- UPDATE
        rows, index = obs.flatten(0, 1), torch.arange(T * N, device=device)
        if device.type == "cpu" and not args.compile:  # a GPU would wait for the number of rows
            rows, index = distinct(rows)
        batch = index, dones, actions, logprobs, advantages, returns, values
        batch = [x.view(-1, L, N).transpose(0, 1).reshape(L, -1) for x in batch]  # (L, B), B over chunks, then N [L3]
        b_h, b_c = (x[:T:L].reshape(1, -1, args.hidden_size) for x in (lstm_h, lstm_c))  # (1, B, H) [L2]
        epochs = (torch.randperm(b_h.shape[1], device=device) for _ in range(args.update_epochs))
        all_stats = []
        for mb in (mb for epoch in epochs for mb in epoch.chunk(args.num_minibatches)):  # (M,) sequences [L3]
            mb_index, mb_dones, mb_actions, *mb_rollout = (x.index_select(1, mb).flatten() for x in batch)
            mb_state = b_h.index_select(1, mb), b_c.index_select(1, mb)
            _, newlogprob, entropy, newvalue, _ = forward(rows, mb_state, mb_dones, mb_actions, mb_index)
            loss, stats = ppo_loss(newlogprob, entropy, newvalue, *mb_rollout, args)
            if args.target_kl is not None and all_mean(stats["approx_kl"]) > args.target_kl:
                break
            optimizer.zero_grad()
            loss.backward()
            if WORLD > 1:  # every process takes the same step
                gradients = [parameter.grad for parameter in agent.parameters()]
                nn.utils.vector_to_parameters(all_mean(nn.utils.parameters_to_vector(gradients)), gradients)
            stats["grad_norm"] = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
            optimizer.step()
            all_stats.append(stats)

        # ---- LOG
        means = all_mean(torch.stack([torch.stack(list(stats.values())) for stats in all_stats]).mean(0))
        metrics = {f"losses/{name}": mean for name, mean in zip(all_stats[0], means.tolist(), strict=True)}
        if not math.isfinite(metrics["losses/grad_norm"]):
            raise FloatingPointError("the gradient is not finite: NaN from the environment, or too large steps")
        global_step += batch_size
        train_seconds += time.time() - iteration_start
        bar.update(batch_size)
        metrics["losses/explained_variance"] = 1 - ((returns - values).var() / returns.var()).item()
        metrics |= {"charts/learning_rate": optimizer.param_groups[0]["lr"], "charts/SPS": global_step / train_seconds}
        ends = torch.cat((dones[1:], next_done[None])).bool()
        if ends.any():
            ended_return, ended_length = running_stats_at.transpose(0, 1)[:, ends]
            solved = ended_return >= task_envs.success_return(args.env_id)
            metrics |= {"charts/episodic_return": ended_return.mean().item(), "charts/episodic_length":
                        ended_length.mean().item(), "charts/success_rate": solved.float().mean().item()}  # fmt: skip
        evaluates = iteration == num_iterations or (args.eval_every and iteration % args.eval_every == 0)
        if RANK == 0:
            log(metrics)
            results = run_evaluation() if evaluates else {}  # the checkpoint holds them: they are not computed twice
        if args.save_every and iteration % args.save_every == 0:
            save(f"agent_{global_step}.pt")
        flags = torch.tensor([bool(stop), time.time() - last_save > 60], dtype=torch.float, device=device)
        stopped, due = (all_mean(flags) > 0).tolist()  # the same in every process
        if stopped or due or iteration == num_iterations:
            save("agent.pt")
            last_save = time.time()
        if stopped:
            break

    # ---- RESULTS
    bar.close()
    if RANK == 0:
        results = (results or run_evaluation()) if global_step >= num_iterations * batch_size else {}
        if results:
            results = {"script": SCRIPT, "env_id": args.env_id, "seed": args.seed, "args": asdict(args),
                       "global_step": global_step, "wall_seconds": time.time() - started,
                       "SPS": global_step / train_seconds, "eval": results}  # fmt: skip
            write_file(f"{run_dir}/results.json", json.dumps(results, indent=2).encode())
        attempt(writer.close)
        attempt(wandb.finish) if wandb else None
        lock.release()
    if WORLD > 1:
        dist.destroy_process_group()
    return agent, results


# ------------------------------ The algorithm ends here. What follows can be skipped: evaluation, files, logs, flags.


@torch.no_grad()
def evaluate(agent: Agent, args: Args, env_id: str, device, stop: list | tuple = ()) -> dict:
    """Play fixed episodes of seeds that training never uses -> {"argmax": {...}, "sampled": {...}}. On Memory ids there
    is one from each start, weighted by its probability, so that argmax is exact. Success is a return of at least
    `envs.success_return`. An episode counts as it stands after 10,000 steps."""
    results = {}
    env_seed, action_seed = task_envs.spawn_seeds(0, 2, evaluation=True)
    for mode in ("argmax", "sampled"):
        weights, options, exact = task_envs.evaluation_starts(env_id, args.eval_episodes, once=mode == "argmax")
        N, weights = len(weights), weights.to(device)
        envs = make_envs(args, env_id, N, device)
        generator = torch.Generator(device).manual_seed(action_seed) if mode == "sampled" else None
        next_obs, _ = envs.reset(seed=env_seed, options=options)
        next_lstm_state, next_done = agent.initial_state(N), torch.ones(N, device=device)
        returns, lengths = torch.zeros(2, N, dtype=torch.float64, device=device)
        playing = torch.ones(N, dtype=torch.bool, device=device)
        while playing.any() and lengths.max() < 10_000 and not stop:
            action, next_lstm_state = agent.act(next_obs, next_lstm_state, next_done, generator)
            next_obs, reward, terminated, truncated, _ = envs.step(action)
            returns += reward * playing
            lengths += playing
            next_done = (terminated | truncated).float()
            playing &= ~(terminated | truncated)
        envs.close()
        means = (x * weights for x in (returns >= task_envs.success_return(env_id), returns, lengths))
        rate, mean_return, length = (round(x.sum().item(), 6) for x in means)  # rounded: weights add up to one, nearly
        results[mode] = {"success_rate": rate, "episodic_return": mean_return, "episodic_length": length, "episodes": N,
                         "exact": exact and mode == "argmax" and not playing.any().item()}  # fmt: skip
    return results


class UsageError(ValueError):
    """A bad flag or file; its one line names it."""


@contextlib.contextmanager
def refuse(reason: str):
    """Whatever fails inside becomes a UsageError of one line that begins with the `reason`."""
    try:
        yield
    except Exception as error:
        raise UsageError(f"{reason}: {(str(error).splitlines() or [type(error).__name__])[0]}") from error


def attempt(function, *inputs, **options):
    """Call it. What a log or the console cannot take is reported once and never ends the run."""
    try:
        return function(*inputs, **options)
    except Exception as error:
        warnings.warn(f"a log failed, the run goes on: {error}", stacklevel=2)


def write_file(path: str, content: bytes) -> None:
    """Write the file whole or not at all, even at a kill -9: under another name, flushed to disk, then renamed."""
    with open(path + ".tmp", "wb", buffering=0) as file:
        file.write(content)
        os.fsync(file)
    os.replace(path + ".tmp", path)


def open_run(args: Args, run_dir: str | None, global_step: int, wandb_run_id: str | None):
    """-> run_dir (made if need be), its lock, its TensorBoard writer, wandb or None. Raises UsageError."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training needs it

    name = f"{args.env_id.replace('/', '_')}__{args.exp_name}__{args.seed}__{time.time_ns() // 1000}"
    run_dir = run_dir or f"runs/{name}"
    with refuse(f"--resume: {run_dir} cannot be written, or another process is writing to it"):
        os.makedirs(run_dir, exist_ok=True)
        lock = filelock.FileLock(f"{run_dir}/lock", blocking=False)
        lock.acquire()
        write_file(f"{run_dir}/args.json", json.dumps({"script": SCRIPT, "args": asdict(args)}, indent=2).encode())
    if args.track:
        import wandb

        attempt(lambda: wandb.init(
            project=args.wandb_project_name, entity=args.wandb_entity, name=os.path.basename(run_dir), dir=run_dir,
            config=asdict(args), id=wandb_run_id, resume="must" if wandb_run_id else None))  # fmt: skip
        attempt(lambda: wandb.define_metric("*", step_metric="global_step"))
    writer = SummaryWriter(run_dir, purge_step=global_step + 1 if global_step else None)  # those steps are logged again
    attempt(writer.add_text, "args", "\n".join(f"    {name}: {value}" for name, value in asdict(args).items()))
    return run_dir, lock, writer, wandb if args.track and wandb.run else None


def restore(checkpoint: dict, args: Args, agent: Agent, optimizer, envs, carried: list) -> None:
    """Load all that `save` saved, the tensors `carried` from step to step in place. Raises UsageError."""
    with refuse(f"--resume: {args.resume!r} does not fit this run"):
        agent.load_state_dict(checkpoint["agent"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        moments = [state[name].shape for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
        if moments != [parameter.shape for parameter in agent.parameters() for _ in range(2)]:
            raise ValueError("its optimizer is of another network")  # Adam's fused kernel would crash
        state = checkpoint["ranks"][RANK] if len(checkpoint["ranks"]) == WORLD else {"envs": None}
        if state["envs"] is None:
            return attempt(print, "the episodes in progress were not saved, or by other processes: new ones begin")
        envs.load_state_dict(state["envs"])
        for tensor, kept in zip(carried, state["carried"], strict=True):
            tensor.copy_(kept.view(tensor.shape))
        torch.set_rng_state(state["rng"])
        if carried[0].is_cuda:
            torch.cuda.set_rng_state(state["cuda_rng"], carried[0].device)


def load_checkpoint(path: str) -> dict:
    """Read a checkpoint of this script on the CPU; nothing in it is executed. Raises UsageError if it is not whole."""
    with refuse(f"--resume: {path!r} is missing, damaged or not a checkpoint of {SCRIPT}"):
        damaged = zipfile.ZipFile(path).testzip()  # torch.load does not check the sums that the file carries
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if damaged or checkpoint["script"] != SCRIPT:
            raise ValueError(f"{damaged or checkpoint['script']} does not match")
        saved = checkpoint["args"]
        return checkpoint | {"args": Args(**{f.name: saved[f.name] for f in fields(Args) if f.name in saved})}


def load_agent(path: str, device="cpu") -> tuple[Agent, Args]:
    """The trained agent of a checkpoint of this script, ready to `act`, and its arguments. Raises UsageError."""
    checkpoint = load_checkpoint(path)
    args = checkpoint["args"]
    envs = make_envs(args, args.env_id, 1, device)
    agent = Agent(envs.single_observation_space, int(envs.single_action_space.n), args).to(device)
    agent.load_state_dict(checkpoint["agent"])
    return agent, args


def parse(argv: list[str] | None) -> tuple[Args, dict | None]:
    """The arguments, and the checkpoint that --resume names. Raises UsageError; tyro exits."""
    args, checkpoint = tyro.cli(Args, args=argv), None
    if args.resume:
        checkpoint = load_checkpoint(args.resume)
        saved = replace(checkpoint["args"], resume=args.resume)
        args = tyro.cli(Args, args=argv, default=saved)
        may_change = {"track", "wandb_project_name", "wandb_entity", "capture_video", "save_every", "num_threads",
                      "eval_only", "eval_every", "eval_env_id", "eval_episodes"}  # fmt: skip
        may_change |= set() if saved.anneal_lr else {"total_timesteps"}  # a schedule that ended cannot be lengthened
        for name in (f.name for f in fields(Args) if f.name not in may_change):
            if getattr(args, name) != getattr(saved, name):
                raise UsageError(f"--{name.replace('_', '-')} must be as in the checkpoint, {getattr(saved, name)}")
    rollout, sequences = args.num_envs * args.num_steps, args.num_envs * args.num_steps // max(args.seq_len, 1) // WORLD
    for flags, holds, rule in (  # NaN fulfils no rule
        ("num_envs num_steps seq_len num_minibatches update_epochs hidden_size", lambda v: v >= 1, "at least 1"),
        ("num_threads eval_episodes", lambda v: v >= 1, "at least 1"),
        ("encoder_size hidden_layer_size eval_every save_every", lambda v: v >= 0, "at least 0"),
        ("ent_coef vf_coef", lambda v: 0 <= v < math.inf, "at least 0 and finite"),
        ("gamma gae_lambda rand_move_eps", lambda v: 0 <= v <= 1, "between 0 and 1"),
        ("learning_rate reward_scale clip_coef max_grad_norm", lambda v: 0 < v < math.inf, "positive and finite"),
        ("target_kl", lambda v: v is None or v > 1e-6, "more than 1e-6"),  # the first minibatch is never over it
        ("seed", lambda v: 0 <= v < 2**31, "between 0 and 2**31 - 1"),
        ("exp_name", lambda v: v and "/" not in v, "a name without '/'"),
        ("num_envs", lambda v: v % WORLD == 0, f"a multiple of the {WORLD} processes"),
        ("seq_len", lambda v: args.num_steps % v == 0, f"a divisor of --num-steps {args.num_steps}"),
        ("num_minibatches", lambda v: sequences % v == 0, f"a divisor of the {sequences} sequences of a rollout"),
        ("total_timesteps", lambda v: v >= rollout, f"at least one rollout, num_envs * num_steps = {rollout}"),
        ("eval_only", lambda v: not v or args.resume, "used with --resume CHECKPOINT"),
    ):
        for name in flags.split():
            if not holds(getattr(args, name)):
                raise UsageError(f"--{name.replace('_', '-')} must be {rule}, got {getattr(args, name)!r}")
    spaces = set()
    for flag, env_id in (("--env-id", args.env_id), *(("--eval-env-id", env_id) for env_id in args.eval_env_id)):
        with refuse(f"{flag}: {env_id!r} cannot be used"):
            envs = make_envs(args, env_id, 2, "cpu")
            spaces.add(f"{envs.single_observation_space} {envs.single_action_space}")
            task_envs.try_out(envs, make_env(args, env_id) if args.capture_video else None)
    if len(spaces) > 1:
        raise UsageError(f"--eval-env-id: not all have the observations and actions of {args.env_id}: {spaces}")
    return args, checkpoint


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, 2 for what cannot run, 128 + n when signal n stopped it. A run that fails raises."""
    stop = []

    def on_signal(number, _frame):  # the iteration ends and is saved; the next signal does not wait
        if len(stop) > (WORLD > 1):  # torchrun passes on what a terminal or scheduler has sent already
            os._exit(128 + number)
        stop.append(number)

    for name in {"SIGINT", "SIGTERM", "SIGUSR1"} & set(dir(signal)):
        signal.signal(getattr(signal, name), on_signal)
    try:
        args, checkpoint = parse(argv)
        if args.eval_only:
            agent, ids = load_agent(args.resume)[0], (args.env_id, *args.eval_env_id)
            print(json.dumps({env_id: evaluate(agent, args, env_id, "cpu", stop) for env_id in ids}, indent=2))
            return 128 + stop[0] if stop else 0
        _, results = train(args, checkpoint, os.path.dirname(args.resume) if args.resume else None, stop)
    except UsageError as error:
        attempt(print, f"error: {error}", file=sys.stderr)
        return 2
    return 128 + stop[0] if stop and not results else 0


if __name__ == "__main__":
    sys.stderr = sys.stderr or open(os.devnull, "w")  # it may be closed
    code = main()
    sys.stdout = None  # what a dead console did not take is not flushed again
    sys.exit(code)
