"""What would it give to train many seeds in one process? A spike: nothing in the scripts uses it (see SCALING.md).

    python benchmark/many_seeds.py --seeds 1 4 16                # CPU, one thread; --device cuda on a GPU

One minibatch update of S agents (LSTM of 64 units, MemoryS13's observation, M sequences of L steps each) in three ways:
  separate  one agent after another, with the script's own code, as S runs on one core would
  vmap      torch.func.vmap of the gradient over the stacked parameters
  batched   the same by hand: every matrix product is one of S matrices (torch.baddbmm)
and one rollout step of S * N environments with S separate or batched agents. The gradients of the three are compared first.
vmap and batched differentiate through a plain loop: the script's written-out backward pass has one weight matrix only.
Prints the time of an update and of a rollout step for each S, and the speed-up over `separate`.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import ppo_lstm_minigrid as script


def clock(function, device, seconds: float) -> float:
    """Median seconds of a call."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    function(), wait()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        function(), wait()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def lstm(projected, weight_hh, h, c, keep):
    """The loop of script.LSTMRecurrence on (L, ..., M, 4H), with ordinary autograd; leading dimensions are seeds."""
    hidden = []
    for x, kept in zip(projected, keep, strict=True):
        h, c = h * kept, c * kept
        gates = torch.baddbmm(x, h, weight_hh.mT) if h.ndim == 3 else torch.addmm(x, h, weight_hh.mT)
        i, f, g, o = gates.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        hidden.append(h)
    return torch.stack(hidden), h, c


def linear(x, weight, bias):
    return x @ weight.mT + bias.unsqueeze(-2)


def forward(p, one_hot, h, c, keep):
    """Parameters with or without a leading S, one_hot (L, [S,] M, D), h and c ([S,] M, H) -> logits, values, h, c."""
    projected = linear(one_hot, p["lstm.weight_ih_l0"], p["lstm.bias_ih_l0"] + p["lstm.bias_hh_l0"])
    hidden, h, c = lstm(projected, p["lstm.weight_hh_l0"], h, c, keep)
    value = linear(hidden, p["critic.weight"], p["critic.bias"])[..., 0]
    return linear(hidden, p["actor.weight"], p["actor.bias"]), value, h, c


def losses(p, args, one_hot, h, c, keep, actions, logprobs, advantages, returns):
    """-> the PPO loss of each seed, (S,) or ()."""
    logits, values, _, _ = forward(p, one_hot, h, c, keep)
    eps = args.rand_move_eps
    logp = ((1 - eps) * logits.softmax(-1) + eps / logits.shape[-1]).log()
    entropy = -(logp.exp() * logp).sum(-1)
    newlogprob = logp.gather(-1, actions[..., None])[..., 0]
    ratio = (newlogprob - logprobs).exp()
    over = (0, -1)  # steps and sequences of a seed
    normal = (advantages - advantages.mean(over, keepdim=True)) / (advantages.std(over, keepdim=True) + 1e-8)
    policy = -torch.min(normal * ratio, normal * ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)).mean(over)
    return policy - args.ent_coef * entropy.mean(over) + args.vf_coef * 0.5 * ((values - returns) ** 2).mean(over)


class Work:
    """S agents and a minibatch of L steps and M sequences for each."""

    def __init__(self, S: int, args, device, N: int):
        self.S, self.args, self.L, self.M = S, args, args.seq_len, N * args.num_steps // args.seq_len // args.num_minibatches
        self.envs = script.make_envs(args, args.env_id, S * N, device)
        torch.manual_seed(1)
        space = self.envs.single_observation_space
        self.agents = [script.Agent(space, 3, args).to(device) for _ in range(S)]
        L, M, H = self.L, self.M, args.hidden_size
        source = script.make_envs(args, args.env_id, S * L * M, device)
        self.obs = source.reset(seed=1)[0].view(L, S, M, -1)
        self.distinct = [agent.encoder.distinct(self.obs[:, s].flatten(0, 1)) for s, agent in enumerate(self.agents)]
        self.h, self.c = torch.randn(2, S, M, H, device=device) * 0.1
        self.dones = (torch.rand(L, S, M, device=device) < 0.05).float()
        self.actions = torch.randint(3, (L, S, M), device=device)
        self.rollout = (torch.full((L, S, M), -1.1, device=device), *torch.randn(2, L, S, M, device=device))
        self.separate_optimizers = [torch.optim.Adam(a.parameters(), lr=1e-4, fused=True) for a in self.agents]
        parameters = [dict(agent.named_parameters()) for agent in self.agents]
        self.stacked = {name: nn.Parameter(torch.stack([p[name].detach() for p in parameters])) for name in parameters[0]}
        self.optimizer = torch.optim.Adam(self.stacked.values(), lr=1e-4, fused=True)
        self.next_obs, self.next_done = self.envs.reset(seed=1)[0].view(S, N, -1), torch.zeros(S, N, device=device)
        self.state = torch.zeros(2, S, N, H, device=device)

    def one_hot(self, obs):
        return self.agents[0].encoder(obs)  # encoder_size 0: no weights in it

    def separate_gradients(self, s):
        agent, rollout = self.agents[s], [x[:, s].flatten() for x in self.rollout]
        (rows, index), dones, actions = self.distinct[s], *(x[:, s].flatten() for x in (self.dones, self.actions))
        _, logprob, entropy, value, _ = agent.get_action_and_value(
            rows, (self.h[s][None], self.c[s][None]), dones, actions, index
        )
        loss, _ = script.ppo_loss(logprob, entropy, value, *rollout, rollout[-1], self.args)
        agent.zero_grad()
        loss.backward()

    def separate(self):
        for s, (agent, optimizer) in enumerate(zip(self.agents, self.separate_optimizers, strict=True)):
            self.separate_gradients(s)
            nn.utils.clip_grad_norm_(agent.parameters(), self.args.max_grad_norm)
            optimizer.step()

    def batched_gradients(self):
        keep = 1 - self.dones[..., None]
        loss = losses(self.stacked, self.args, self.one_hot(self.obs), self.h, self.c, keep, self.actions, *self.rollout)
        self.optimizer.zero_grad()
        loss.sum().backward()

    def vmap_gradients(self):
        def loss(p, one_hot, h, c, keep, actions, *rollout):
            return losses(p, self.args, one_hot, h, c, keep, actions, *rollout)

        inputs = (self.one_hot(self.obs), self.h, self.c, 1 - self.dones[..., None], self.actions, *self.rollout)
        gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(0, 1, 0, 0, 1, 1, 1, 1, 1))(
            {n: p.detach() for n, p in self.stacked.items()}, *inputs
        )
        for name, parameter in self.stacked.items():
            parameter.grad = gradients[name]

    def step(self):
        """Clip each seed's gradients to its own norm, and step."""
        norm = sum(p.grad.flatten(1).square().sum(1) for p in self.stacked.values()).sqrt()
        scale = (self.args.max_grad_norm / (norm + 1e-6)).clamp(max=1)
        for p in self.stacked.values():
            p.grad.mul_(scale.view(-1, *[1] * (p.ndim - 1)))
        self.optimizer.step()

    def batched(self):
        self.batched_gradients()
        self.step()

    def vmap(self):
        self.vmap_gradients()
        self.step()

    @torch.no_grad()
    def separate_rollout(self):
        hidden = [agent.get_states(self.next_obs[s], self.state[:, s, None], self.next_done[s])[0]
                  for s, agent in enumerate(self.agents)]  # fmt: skip
        actions = [script.sample(agent.get_probs(h)) for agent, h in zip(self.agents, hidden, strict=True)]
        self.envs.step(torch.cat(actions))

    @torch.no_grad()
    def batched_rollout(self):
        keep = 1 - self.next_done[None, ..., None]
        logits, _, _, _ = forward(self.stacked, self.one_hot(self.next_obs)[None], *self.state, keep)
        eps = self.args.rand_move_eps
        self.envs.step(script.sample((1 - eps) * logits[0].softmax(-1) + eps / 3).flatten())

    def compare(self):
        """The three ways give the same gradients."""
        for s in range(self.S):
            self.separate_gradients(s)
        expected = [torch.stack(p) for p in zip(*([q.grad for q in a.parameters()] for a in self.agents), strict=True)]
        for way in (self.batched_gradients, self.vmap_gradients):
            way()
            for p, gradient in zip(self.stacked.values(), expected, strict=True):
                torch.testing.assert_close(p.grad, gradient, rtol=1e-3, atol=1e-5)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 4, 16], help="values of S (1 4 16)")
    parser.add_argument("--num-envs", type=int, default=64, help="environments of each seed (64)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each measurement (3)")
    parser.add_argument("--device", default="cpu")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    device = torch.device(flags.device)
    N = flags.num_envs
    args = script.Args(num_envs=N, num_steps=128, num_minibatches=4, update_epochs=4, hidden_size=64, encoder_size=0)
    print("  S  way           update, ms  rollout step, ms  training steps/s  speed-up")
    for S in flags.seeds:
        work, speeds = Work(S, args, device, N), {}
        work.compare()
        rollout = {"separate": clock(work.separate_rollout, device, flags.seconds),
                   "batched": clock(work.batched_rollout, device, flags.seconds)}  # fmt: skip
        for way in ("separate", "vmap", "batched"):
            update, step = clock(getattr(work, way), device, flags.seconds), rollout.get(way, rollout["batched"])
            seconds = args.num_steps * step + args.update_epochs * args.num_minibatches * update  # of an iteration
            speeds[way] = S * N * args.num_steps / seconds
            print(f"{S:3}  {way:<12}{1e3 * update:12.2f}{1e3 * step:18.3f}{speeds[way]:18,.0f}"
                  f"{speeds[way] / speeds['separate']:10.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
