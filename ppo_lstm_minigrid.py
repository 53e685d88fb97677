"""PPO with an LSTM, in one file, on a task that needs memory.

An agent that sees 3x3 cells of a MiniGrid passes a cue (key or ball), walks down a corridor, and must turn to the same
object at the fork: a coin toss without memory. 59 seeds of 59 end at 1.0 from every start, in 106 s on a CPU core:
    python ppo_lstm_minigrid.py --env-id MiniGrid-MemoryS13-v0

T = num_steps, N = num_envs (of this process), L = seq_len, B = T / L * N sequences of a rollout, M of a minibatch, D =
observation size, F = encoded, H = hidden_size, A = actions; states are (h, c) of (1, N, H). What the LSTM adds to PPO:
[L1] dones[t] is 1 where obs[t] begins an episode; the state is zeroed before it ("37 details", Huang et al. 2022).
[L2] Rollouts are cut into chunks of L steps that begin with the states the rollout had there (Kapturowski et al. 2019).
[L3] Minibatches shuffle whole sequences, never steps, so that each is consecutive and from one environment.
[L4] One matrix product projects the inputs of all steps; only hidden-to-hidden is sequential (Appleyard et al. 2016).
[L5] A time limit is not a termination: bootstrap from V(final_obs), with the state not reset (Pardo et al. 2018).
[L6] Orthogonal weights, zero biases (37 details), but 1 for the forget gate: memories fade slowly (Jozefowicz 2015).
[L7] With random moves the policy is the mixture (1 - e) pi + e uniform: sampling, log-prob and entropy all use it.
[L8] The memoryless control zeroes the state before every step; the dones that GAE sees stay as they are.
"""

import contextlib
import glob
import io
import json
import os
import signal
import sys
import time
import warnings
import zipfile
from dataclasses import asdict, dataclass, replace
from typing import Annotated

import filelock
import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import distributed, nn
from tqdm import tqdm, trange

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

    total_timesteps: Annotated[int, tyro.conf.arg(aliases=["--total-steps"])] = 3_000_000  # PPO: steps, rounded down
    learning_rate: float = 2.5e-3  # Adam's step size; --desired-kl steers it from here on, within 3e-4 to 5e-3
    adam_betas: tuple[float, float] = (0.95, 0.95)  # Adam's; equal ones keep what was learned (Dohare et al. 2023)
    num_envs: int = 64  # environments stepped together (N); under torchrun those of all processes
    num_steps: int = 128  # steps of each environment per rollout (T); total_timesteps is rounded down to rollouts
    num_minibatches: int = 8  # minibatches per epoch; divides the num_envs * num_steps / seq_len sequences of a rollout
    update_epochs: int = 8  # passes over a rollout
    clip_coef: float = 0.2  # clip range of the importance ratio
    ent_coef: float = 0.02  # weight of the entropy bonus
    vf_coef: float = 1.0  # weight of the value loss
    rand_move_eps: float = 0.1  # share of uniformly random moves mixed into the policy while training
    novelty_coef: float = 0.0  # reward for each thing that a cell of the view shows first in this episode (annealed)
    anneal_moves: bool = True  # with --anneal-lr, let this share fall too: in the end none frees the agent from a loop
    gamma: float = 0.995  # discount per step
    gae_lambda: float = 0.95  # lambda of generalised advantage estimation
    anneal_lr: bool = True  # let the learning rate, or with --desired-kl its goal and limits, fall linearly to zero
    desired_kl: float = 0.02  # an update ends at twice this KL divergence, which steers the learning rate (0: neither)
    norm_adv: bool = True  # normalise advantages in each minibatch
    norm_value: bool = True  # let the critic predict returns that are standardised by running statistics
    clip_vloss: bool = False  # clip the value loss too
    max_grad_norm: float = 0.5  # gradients are clipped to this norm
    ema_decay: float = 0.0  # evaluate, keep the weights' mean over iterations (0: the last), Polyak and Juditsky 1992

    seq_len: int = 32  # LSTM: steps of truncated back-propagation through time (L); divides num_steps
    encoder_size: int = 0  # units of the layer before the LSTM (0: none)
    hidden_size: int = 32  # LSTM units (H)
    hidden_layer_size: int = 64  # units of a hidden layer in the actor head and in the critic head (0: none)
    memoryless: bool = False  # the control: zero the LSTM state before every step

    eval_every: int = 10  # EVALUATION: iterations between evaluations (0: only at the end)
    eval_env_id: tuple[str, ...] = ()  # further ids to evaluate on
    eval_episodes: int = 100  # episodes per evaluation where it cannot be exact
    eval_only: bool = False  # with --resume: print the evaluation as JSON, train and write nothing


def make_envs(args: Args, env_id: str, num_envs: int, device):
    """The batched environment where one is registered, otherwise gymnasium's vector environment over single ones."""
    return task_envs.make_batched(env_id, num_envs, device, args.view_size, args.ignore_mission)


def make_env(args: Args, env_id: str) -> gym.Env:
    """One environment that renders, with the observation of `make_envs`."""
    return task_envs.make_single(env_id, args.view_size, "rgb_array", args.ignore_mission)


def layer_init(layer: nn.Module, std: float = 2**0.5) -> nn.Module:
    """Orthogonal weights, zero biases (37 details, detail 2)."""
    for parameter in layer.parameters():
        nn.init.orthogonal_(parameter, std) if parameter.ndim == 2 else nn.init.zeros_(parameter)
    return layer


class Encoder(nn.Module):
    """Observations (..., D) -> inputs of order one, then a linear layer and ReLU (none if size is 0) -> (..., F)."""
    def __init__(self, obs_space: gym.spaces.Box, size: int):
        super().__init__()
        cells = (obs_space.shape[0] - 1) // 3
        kinds = torch.tensor([11, 6, 4] * cells + [4])  # objects, colours, states of each cell; then directions
        self.register_buffer("offsets", kinds.cumsum(0) - kinds, persistent=False)
        # walls and floor fill the view, what matters is rare: doors, keys, balls, goals and the like count six times
        self.register_buffer("scale", torch.tensor(([1.0] * 4 + [6.0] * 7 + [1.0] * 10) * cells + [1.0] * 4), False)
        self.linear = layer_init(nn.Linear(len(self.scale), size)) if size else None
        self.out_features = size or len(self.scale)

    def forward(self, x):
        one_hot = torch.zeros(*x.shape[:-1], len(self.scale), device=x.device)
        x = one_hot.scatter_(-1, x.long() + self.offsets, 1.0).mul_(self.scale)
        return x if self.linear is None else self.linear(x).relu()


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
    def backward(ctx, d_hidden, dh, dc):
        weight_hh, not_first, *history = ctx.saved_tensors
        d_gates, by_sigmoid, by_tanh = [], torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward
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
        self.lstm = layer_init(nn.LSTM(self.encoder.out_features, args.hidden_size), 1.0)  # get_states computes it
        self.lstm.bias_ih_l0.data[args.hidden_size : 2 * args.hidden_size] = 1.0  # [L6]
        self.actor, self.critic = self._head(args, num_actions, 0.01), self._head(args, 1, 1.0)
        self.register_buffer("return_stats", torch.tensor([0.0, 1.0]))  # mean and variance
        self.register_buffer("rand_move_eps", torch.tensor(args.rand_move_eps), persistent=False)  # falls in training
        self.memoryless = args.memoryless

    def _head(self, args, outputs, std):
        if not args.hidden_layer_size:
            return layer_init(nn.Linear(args.hidden_size, outputs), std)
        hidden = layer_init(nn.Linear(args.hidden_size, args.hidden_layer_size))
        return nn.Sequential(hidden, nn.ReLU(), layer_init(nn.Linear(args.hidden_layer_size, outputs), std))

    def initial_state(self, num_envs: int):
        return tuple(torch.zeros(2, 1, num_envs, self.lstm.hidden_size, device=self.lstm.weight_hh_l0.device))

    def get_states(self, x, lstm_state, done, index=None):
        """-> hidden (T * N, H), the state after the last step."""
        h, c = lstm_state[0][0], lstm_state[1][0]
        done = torch.ones_like(done) if self.memoryless else done  # [L8]
        not_first = (1.0 - done.float()).view(-1, len(h), 1)
        if index is not None and len(index) <= len(x):  # encode whichever is fewer
            x, index = x[index], None
        weight, bias = self.lstm.weight_ih_l0, self.lstm.bias_ih_l0 + self.lstm.bias_hh_l0
        inputs = nn.functional.linear(self.encoder(x), weight, bias)  # [L4]
        inputs = (inputs if index is None else inputs.index_select(0, index)).view(len(not_first), len(h), -1)
        hidden, h, c = LSTMRecurrence.apply(inputs, self.lstm.weight_hh_l0, h, c, not_first)
        return hidden.flatten(0, 1), (h[None], c[None])

    def get_value(self, x, lstm_state, done):
        return self.value(self.get_states(x, lstm_state, done)[0])

    def value(self, hidden):  # (..., H) -> (...): the critic predicts standardised returns (van Hasselt et al. 2016)
        return self.critic(hidden).squeeze(-1) * self.return_stats[1].sqrt() + self.return_stats[0]

    def get_logprobs(self, hidden):
        """hidden (..., H) -> logprobs (..., A) of the policy that trains, random moves included."""
        logprobs, eps = self.actor(hidden).log_softmax(-1), self.rand_move_eps
        return torch.logaddexp(logprobs + (1 - eps).log(), (eps / logprobs.shape[-1]).log())  # [L7]

    def evaluate_actions(self, hidden, action):
        """hidden (..., H), action (...) -> its logprob, the policy's entropy, value, (...) each."""
        logprobs = self.get_logprobs(hidden)
        logprob = logprobs.gather(-1, action[..., None]).squeeze(-1)
        return logprob, -(logprobs.exp() * logprobs).sum(-1), self.value(hidden)

    def get_action_and_value(self, x, lstm_state, done, action=None, index=None):
        """-> action (drawn if not given), logprob, entropy, value, (T * N,) each, and the state after the last step."""
        hidden, lstm_state = self.get_states(x, lstm_state, done, index)
        action = sample(self.get_logprobs(hidden).exp()) if action is None else action
        return action, *self.evaluate_actions(hidden, action), lstm_state

    @torch.no_grad()
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


def all_mean(*tensors):
    """Set each tensor to its mean over the processes that torchrun started, in one exchange -> the first tensor."""
    if WORLD > 1:
        vector = nn.utils.parameters_to_vector(tensors)
        distributed.all_reduce(vector)
        nn.utils.vector_to_parameters(vector / WORLD, tensors)
    return tensors[0]


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
    stats = {"value_loss": value_loss, "policy_loss": policy_loss, "entropy": entropy,
             "old_approx_kl": -logratio.mean(), "clipfrac": ((ratio - 1).abs() > args.clip_coef).float().mean(),
             "approx_kl": (ratio - 1 - logratio).mean()}  # http://joschu.net/blog/kl-approx.html  # fmt: skip
    return loss, {name: value.detach() for name, value in stats.items()}


def train(args: Args, checkpoint: dict | None = None, run_dir: str | None = None, stop: list | tuple = ()):
    """Train, or continue from `checkpoint`, until a signal handler puts a number into `stop`; write to `run_dir` (a new
    one under runs/) -> the averaged agent, results ({} if stopped). Raises UsageError, FloatingPointError at NaN."""
    # ---- SETUP
    started, results = time.time(), {}
    torch.set_num_threads(args.num_threads)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(args.torch_deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
    use_cuda = args.cuda and torch.cuda.is_available()
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if use_cuda else "cpu")  # torchrun: a GPU each
    if use_cuda:
        torch.cuda.set_device(device)
    if WORLD > 1:  # the others wait while one evaluates, an hour at most
        distributed.init_process_group("nccl" if use_cuda else "gloo", timeout=np.timedelta64(1, "h").item())
    T, N, L, batch_size = args.num_steps, args.num_envs // WORLD, args.seq_len, args.num_steps * args.num_envs
    num_iterations = args.total_timesteps // batch_size
    envs = make_envs(args, args.env_id, N, device)
    agent, ema = (Agent(envs.single_observation_space, envs.single_action_space.n, args).to(device) for _ in range(2))
    optimizer = torch.optim.Adam(agent.parameters(), args.learning_rate, args.adam_betas, fused=True)
    forward = torch.compile(agent.get_action_and_value, dynamic=False) if args.compile else agent.get_action_and_value
    rng = torch.cuda.default_generators[device.index] if use_cuda else torch.default_generator  # of all draws below
    global_step, train_seconds = ((checkpoint or {}).get(name, 0) for name in ("global_step", "train_seconds"))

    # ---- STORAGE
    seeds = task_envs.spawn_seeds(args.seed, args.num_envs + WORLD, global_step)  # of each environment and each process
    torch.manual_seed(seeds[args.num_envs + RANK])  # the weights are the same in each process, what is drawn is not
    next_obs, _ = envs.reset(seed=seeds[RANK * N : (RANK + 1) * N])
    next_done, next_lstm_state = torch.ones(N, device=device), agent.initial_state(N)  # [L1] obs[0] begins an episode
    obs, final_obs = next_obs.new_zeros((2, T, *next_obs.shape))  # (T, N, D); final: what followed, before any reset
    timed_out = torch.zeros((T, N), dtype=torch.bool, device=device)  # (T, N) step t ended its episode by a time limit
    actions = torch.zeros((T, N), dtype=torch.int64, device=device)  # (T, N)
    rewards, dones = torch.zeros((2, T, N), device=device)  # (T, N)
    lstm_h, lstm_c = torch.zeros((2, T + 1, N, args.hidden_size), device=device)  # (T + 1, N, H) before reading obs[t]
    running_stats = torch.zeros((2, N), device=device)  # (2, N) return and length of the episodes in progress
    running_stats_at = torch.zeros((T, 2, N), device=device)  # (T, 2, N) the same after each step, before any reset
    radix, first = torch.tensor([24, 4, 1], device=device), 264 * torch.arange(next_obs.shape[1] // 3, device=device)
    shown = torch.zeros((N, 264 * len(first) * (args.novelty_coef > 0)), dtype=torch.bool, device=device)  # (N, 264 C)

    # ---- RESUME, LOG and SAVE
    if checkpoint:
        with refuse(f"--resume: {args.resume!r} does not fit this run, or is an exported agent (add --eval-only)"):
            agent.load_state_dict(checkpoint["weights"])
            ema.load_state_dict(checkpoint["agent"])
            optimizer.load_state_dict(checkpoint["optimizer"])
            for parameter, moments in optimizer.state.items():  # other shapes would crash the process
                moments |= {name: moments[name].view_as(parameter) for name in ("exp_avg", "exp_avg_sq")}
            states = checkpoint["ranks"]  # of as many processes, on the CPU or on GPUs as here; else new episodes begin
            if len(states) == WORLD and (own := states[RANK])["envs"] and len(own["rng"]) == len(rng.get_state()):
                envs.load_state_dict(own["envs"])
                rng.set_state(own["rng"])
                next_obs, next_done, running_stats, shown, *next_lstm_state = (x.to(device) for x in own["carried"])
    if RANK == 0:  # one process logs, evaluates and saves
        name = f"{args.env_id}__{args.exp_name}__{args.seed}__{time.time_ns() // 1000}".replace("/", "_")
        run_dir, wandb = run_dir or f"runs/{name}", None
        with refuse(f"{run_dir} cannot be written, or another process is writing to it"):
            os.makedirs(run_dir, exist_ok=True)
            _lock = filelock.FileLock(f"{run_dir}/lock").acquire(blocking=False)  # held until this function returns
            write_file(f"{run_dir}/args.json", json.dumps({"script": SCRIPT, "args": asdict(args)}, indent=2).encode())
        from torch.utils.tensorboard import SummaryWriter  # slow to import
        writer = SummaryWriter(run_dir, purge_step=global_step + 1)  # steps after the checkpoint are logged again
        if args.track:
            import wandb  # slow to import
            name = os.path.basename(os.path.abspath(run_dir))  # also the run's id: a resumed run is the same run
            attempt(wandb.init, project=args.wandb_project_name, entity=args.wandb_entity, name=name, id=name,
                    resume="allow", dir=run_dir, config=asdict(args))  # fmt: skip
        attempt(print, f"{args.env_id} on {device} -> {run_dir}; first step after {time.time() - started:.1f} s")
    def log(metrics):
        for name, value in metrics.items():
            attempt(writer.add_scalar, name, value, global_step)
        if wandb:
            attempt(wandb.log, metrics, step=global_step)
    def evaluate_all():
        results = {env_id: evaluate(ema, args, env_id, device, stop) for env_id in (args.env_id, *args.eval_env_id)}
        for env_id, result in results.items() if not stop else ():
            attempt(tqdm.write, f"{env_id} after {global_step:,} steps: " + "; ".join(
                f"{mode} " + " ".join(f"{k} {v:.4g}" for k, v in r.items()) for mode, r in result.items()))
            suffix = "" if env_id == args.env_id else f"/{env_id}"
            for prefix, mode in (("eval", "argmax"), ("eval_sampled", "sampled")):
                log({f"{prefix}/{name}{suffix}": value for name, value in result[mode].items()})
            if args.capture_video:
                paths = attempt(task_envs.record_videos, make_env(args, env_id), ema.act, ema.initial_state(1),
                                f"{run_dir}/videos", f"{env_id}-step-{global_step}", 3)  # fmt: skip
                if wandb and paths:
                    attempt(wandb.log, {env_id: [wandb.Video(path, format="mp4") for path in paths]}, step=global_step)
        return results if not stop else {}
    def save(name):
        states = [{"envs": envs.state_dict(), "rng": rng.get_state(),
                   "carried": [next_obs, next_done, running_stats, shown, *next_lstm_state]}] * WORLD  # fmt: skip
        if WORLD > 1:
            distributed.all_gather_object(states, states[0])
        if RANK == 0:
            attempt(writer.flush)  # what is logged before a checkpoint is not logged again after it
            buffer = io.BytesIO()  # torch.save itself, on a full disk, may raise anything
            torch.save({"script": SCRIPT, "args": asdict(args), "agent": ema.state_dict(), "ranks": states,
                        "weights": agent.state_dict(), "optimizer": optimizer.state_dict(),  # these train
                        "global_step": global_step, "train_seconds": train_seconds}, buffer)  # fmt: skip
            write_file(f"{run_dir}/{name}", buffer.getvalue())

    last_save, adam = 0.0, optimizer.param_groups[0]  # the first iteration is saved: a full disk shows at once
    for iteration in trange(global_step // batch_size + 1, num_iterations + 1, disable=RANK > 0 or None):
        iteration_start = time.time()
        frac = 1 - (iteration - 1) / num_iterations if args.anneal_lr else 1.0
        adam["lr"] = frac * (min(max(adam["lr"] / frac, 3e-4), 5e-3) if args.desired_kl else args.learning_rate)
        agent.rand_move_eps.fill_(args.rand_move_eps * (frac if args.anneal_moves else 1.0))

        # ---- ROLLOUT
        with torch.no_grad():
            for t in range(T):
                obs[t], dones[t] = next_obs, next_done
                lstm_h[t], lstm_c[t] = next_lstm_state[0][0], next_lstm_state[1][0]
                hidden, next_lstm_state = agent.get_states(next_obs, next_lstm_state, next_done)
                actions[t] = sample(agent.get_logprobs(hidden).exp())
                next_obs, rewards[t], terminated, truncated, infos = envs.step(actions[t])
                next_done = (terminated | truncated).float()
                final_obs[t], timed_out[t] = infos["final_obs"], truncated & ~terminated
                running_stats_at[t] = running_stats + torch.stack((rewards[t], torch.ones_like(next_done)))
                running_stats = running_stats_at[t] * (1 - next_done)
                if args.novelty_coef:  # a bonus within the episode (Henaff et al. 2023), for contents, not whole views
                    contents = (next_obs[:, :-1].view(N, -1, 3) * radix).sum(2) + first  # (N, C) object, colour, state
                    shown &= next_done[:, None] == 0
                    rewards[t] += args.novelty_coef * frac * (~shown.gather(1, contents)).sum(1) * (1 - next_done)
                    shown.scatter_(1, contents, True)
            lstm_h[T], lstm_c[T] = next_lstm_state[0][0], next_lstm_state[1][0]
            logprobs, _, values = agent.evaluate_actions(lstm_h[1:], actions)  # (T, N); obs[t] led to lstm_h[t + 1]

            # ---- ADVANTAGES
            bootstrapped, (t, n) = rewards.clone(), timed_out.nonzero(as_tuple=True)
            if len(t):  # [L5] all final observations in one batch, read with lstm_h[t + 1], the state after step t
                state = lstm_h[t + 1, n][None], lstm_c[t + 1, n][None]
                bootstrapped[t, n] += args.gamma * agent.get_value(final_obs[t, n], state, rewards.new_zeros(len(t)))
            next_value = agent.get_value(next_obs, next_lstm_state, next_done)
            advantages, returns = gae(bootstrapped, values, dones, next_value, next_done, args.gamma, args.gae_lambda)

        # ---- UPDATE
        if args.norm_value:  # moving averages; without the floor a solved task's rare failures would swamp the loss
            mean, square = all_mean(torch.stack((returns.mean(), returns.square().mean())))
            var = all_mean(returns.var(correction=0) + (returns.mean() - mean) ** 2).maximum(square / 16) + 1e-6
            agent.return_stats.lerp_(torch.stack((mean, var)), max(0.01, 1 / iteration))
        std = agent.return_stats[1].sqrt()
        rows, index = obs.flatten(0, 1), torch.arange(T * N, device=device)
        if device.type == "cpu" and not args.compile:  # a GPU would wait for the number of rows
            rows, index = distinct(rows)
        old = agent.value(lstm_h[1:]).detach() if args.clip_vloss else values  # by the same statistics as the new ones
        batch = dones, actions, index, logprobs, advantages, returns / std, old / std
        batch = [x.view(-1, L, N).transpose(0, 1).reshape(L, -1) for x in batch]  # (L, B), B over chunks, then N [L3]
        b_h, b_c = (x[:T:L].reshape(1, -1, args.hidden_size) for x in (lstm_h, lstm_c))  # (1, B, H) [L2]
        epochs = (torch.randperm(b_h.shape[1], device=device) for _ in range(args.update_epochs))
        all_stats, goal, too_far = [], args.desired_kl * frac, False
        for mb in (mb for epoch in epochs for mb in epoch.chunk(args.num_minibatches)):  # (M,) [L3], one loop to break
            mb_batch = [x.index_select(1, mb).flatten() for x in batch]
            _, newlogprob, entropy, newvalue, _ = forward(rows, (b_h[:, mb], b_c[:, mb]), *mb_batch[:3])
            loss, stats = ppo_loss(newlogprob, entropy, newvalue / std, *mb_batch[3:], args)
            if too_far := bool(all_stats and goal and all_mean(stats["approx_kl"]) > 2 * goal):
                break
            optimizer.zero_grad()
            loss.backward()
            all_mean(*(p.grad for p in agent.parameters() if p.grad is not None))  # every process takes the same step
            stats["grad_norm"] = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
            optimizer.step()
            all_stats.append(stats)
        for mean, new in zip(ema.state_dict().values(), agent.state_dict(keep_vars=True).values(), strict=True):
            mean.copy_(mean.lerp(new.data, max(1 - args.ema_decay, 1 / iteration)) if new.requires_grad else new)

        # ---- LOG
        means = all_mean(torch.stack([torch.stack(list(stats.values())) for stats in all_stats]).mean(0))
        metrics = {f"losses/{name}": mean for name, mean in zip(all_stats[0], means.tolist(), strict=True)}
        if not np.isfinite(metrics["losses/grad_norm"]):
            raise FloatingPointError("the gradient is not finite: NaN from the environment, or too large steps")
        global_step, train_seconds = global_step + batch_size, train_seconds + time.time() - iteration_start
        metrics["losses/explained_variance"] = 1 - ((returns - values).var() / returns.var()).item()
        metrics |= {"charts/learning_rate": adam["lr"], "charts/SPS": global_step / train_seconds}
        adam["lr"] *= 1 / 1.5 if too_far else 1.5 if metrics["losses/approx_kl"] < goal / 2 else 1  # like RSL-RL
        ends = torch.cat((dones[1:], next_done[None])).bool()
        if ends.any():
            ended_return, ended_length = running_stats_at.transpose(0, 1)[:, ends]
            solved = ended_return >= task_envs.success_return(args.env_id)
            metrics |= {"charts/episodic_return": ended_return.mean().item(), "charts/episodic_length":
                        ended_length.mean().item(), "charts/success_rate": solved.float().mean().item()}  # fmt: skip
        if RANK == 0:
            log(metrics)
            if args.eval_every and iteration % args.eval_every == 0 and iteration < num_iterations:
                evaluate_all()
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
    if RANK == 0:
        if global_step >= num_iterations * batch_size and (scores := evaluate_all()):
            results = {"script": SCRIPT, "env_id": args.env_id, "seed": args.seed, "args": asdict(args),
                       "global_step": global_step, "wall_seconds": time.time() - started,
                       "SPS": global_step / train_seconds, "eval": scores}  # fmt: skip
            write_file(f"{run_dir}/results.json", json.dumps(results, indent=2).encode())
        else:
            attempt(print, f"stopped; continue with --resume {run_dir}/agent.pt", flush=True)
        attempt(writer.close)
        if wandb:
            attempt(wandb.finish)
    if WORLD > 1:
        distributed.destroy_process_group()
    return ema, results

# ------------------------------ The algorithm ends here. What follows can be skipped: evaluation, files, logs, flags.
@torch.no_grad()
def evaluate(agent: Agent, args: Args, env_id: str, device, stop: list | tuple = ()) -> dict:
    """Play fixed episodes of seeds that training never uses -> {"argmax": {...}, "sampled": {...}}. On Memory ids there
    is one from each start, weighted by its probability, so argmax is exact. After 10,000 steps they are cut."""
    results, (env_seed, action_seed) = {}, task_envs.spawn_seeds(0, 2, evaluation=True)
    for mode in ("argmax", "sampled"):
        weights, options, exact = task_envs.evaluation_starts(env_id, args.eval_episodes, once=mode == "argmax")
        N, weights = len(weights), weights.to(device)
        envs = make_envs(args, env_id, N, device)
        generator = torch.Generator(device).manual_seed(action_seed) if mode == "sampled" else None
        next_obs, _ = envs.reset(seed=env_seed, options=options)
        next_lstm_state, (next_done, playing) = agent.initial_state(N), torch.ones(2, N, device=device)
        returns, lengths = torch.zeros(2, N, dtype=torch.float64, device=device)
        while playing.any() and lengths.max() < 10_000 and not stop:
            action, next_lstm_state = agent.act(next_obs, next_lstm_state, next_done, generator)
            next_obs, reward, terminated, truncated, _ = envs.step(action)
            returns += reward * playing
            lengths += playing
            playing *= 1 - (next_done := (terminated | truncated).float())
        envs.close()
        scores = (returns >= task_envs.success_return(env_id), returns, lengths)
        rate, mean_return, length = (round((weights * x).sum().item(), 6) for x in scores)  # weights sum to 1, nearly
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


def load_checkpoint(path: str) -> dict:
    """Read a checkpoint of this script on the CPU; nothing in it is executed. Raises UsageError if it is not whole."""
    with refuse(f"--resume: {path!r} is missing, damaged or not a checkpoint of {SCRIPT}"):
        damaged = zipfile.ZipFile(path).testzip()  # torch.load does not check the sums that the file carries
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if damaged or checkpoint["script"] != SCRIPT:
            raise ValueError(f"{damaged or checkpoint['script']} does not match")
        return checkpoint | {"args": Args(**{k: v for k, v in checkpoint["args"].items() if hasattr(Args, k)})}


def load_agent(path: str, device="cpu") -> tuple[Agent, Args]:
    """The trained agent of a checkpoint of this script, ready to `act`, and its arguments. Raises UsageError."""
    checkpoint = load_checkpoint(path)
    with refuse(f"--resume: {path!r} holds another agent than its arguments say"):
        args, envs = checkpoint["args"], make_envs(checkpoint["args"], checkpoint["args"].env_id, 1, device)
        agent = Agent(envs.single_observation_space, int(envs.single_action_space.n), args).to(device)
        agent.load_state_dict(checkpoint["agent"])
        return agent, args


def parse(argv: list[str] | None) -> tuple[Args, dict | None]:
    """The arguments, and the checkpoint that --resume names. Raises UsageError; tyro exits."""
    args, checkpoint = tyro.cli(Args, args=argv), None
    if not args.resume and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":  # torchrun restarts a failed run
        name = glob.escape(f"{args.env_id}__{args.exp_name}__{args.seed}__".replace("/", "_"))
        args.resume = max(glob.glob(f"runs/{name}*/agent.pt"), key=os.path.getmtime, default="")
    if args.resume:
        checkpoint = load_checkpoint(args.resume)
        saved = replace(checkpoint["args"], resume=args.resume)
        args = tyro.cli(Args, args=argv, default=saved)
        may_change = "track", "wandb", "capture_video", "save_every", "num_threads", "cuda", "eval"  # also eval_*
        may_change += () if saved.anneal_lr else ("total_timesteps",)  # a schedule that ended cannot be lengthened
        for name, value in asdict(saved).items():
            if getattr(args, name) != value and not name.startswith(may_change):
                raise UsageError(f"--{name.replace('_', '-')} must be as in the checkpoint, {value}")
    high = {"seed": 2**31 - 1, "gamma": 1, "gae_lambda": 1, "rand_move_eps": 1, "adam_betas": 0.99999, "desired_kl": 10,
            "novelty_coef": 10**6, "ema_decay": 1}  # fmt: skip
    zeros = (*high, "view_size", "encoder_size", "hidden_layer_size", "eval_every", "save_every", "vf_coef", "ent_coef")
    for name, value in ((k, x) for k, v in asdict(args).items() for x in (v if type(v) is tuple else [v])):  # NaN fails
        lowest, highest = 0 if name in zeros else 1 if type(value) is int else 1e-6, high.get(name, 10**12)
        if type(value) in (int, float) and not lowest <= value <= highest:
            raise UsageError(f"--{name.replace('_', '-')} must lie between {lowest} and {highest}, got {value}")
    sequences = args.num_envs * args.num_steps // args.seq_len // WORLD
    for name, holds, rule in (("num_envs", args.num_envs % WORLD == 0, f"a multiple of the {WORLD} processes"),
        ("seq_len", args.num_steps % args.seq_len == 0, f"a divisor of --num-steps {args.num_steps}"),
        ("num_minibatches", sequences % args.num_minibatches == 0, f"a divisor of a rollout's {sequences} sequences"),
        ("total_timesteps", args.total_timesteps >= args.num_envs * args.num_steps, "at least num_envs * num_steps"),
        ("eval_only", not args.eval_only or args.resume, "used with --resume CHECKPOINT"),
    ):
        if not holds:
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
    """Exit code: 0, 2 for what cannot run, 128 + n after signal n. A run that fails raises."""
    stop = []
    def on_signal(number, _frame):  # the iteration ends and is saved; the next signal does not wait
        if len(stop) >= (2 if WORLD > 1 else 1):  # torchrun passes on what a terminal or scheduler has sent already
            os._exit(128 + number)
        stop.append(number)
    for name in {"SIGINT", "SIGTERM", "SIGUSR1"} & set(dir(signal)):
        signal.signal(getattr(signal, name), on_signal)
    try:
        args, checkpoint = parse(argv)
        if args.eval_only:
            agent, ids = load_agent(args.resume)[0], (args.env_id, *args.eval_env_id)
            results = {env_id: evaluate(agent, args, env_id, "cpu", stop) for env_id in ids}
            attempt(print, json.dumps({} if stop else results, indent=2))
        else:
            train(args, checkpoint, os.path.dirname(args.resume) or "." if args.resume else None, stop)
    except UsageError as error:
        attempt(print, f"error: {error}", file=sys.stderr)
        return 2
    return 128 + stop[0] if stop else 0


if __name__ == "__main__":
    sys.stderr = sys.stderr or io.StringIO()  # it may be closed
    code = main()
    sys.stdout = None  # what a dead console did not take is not flushed again
    sys.exit(code)
