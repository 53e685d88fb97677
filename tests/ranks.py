"""One of the processes that test_ranks.py starts: `ranks.py HOW SCRIPT FLAGS...`.

HOW is `gradients`: of one minibatch, in float64; `train`: the script, noting the weights at each step of the optimizer;
`raises`, `dies`, `nan`: the script, and rank 1 raises, is killed or sees a NaN in its 21st minibatch; `dies once`: only
the first time that torchrun starts it. The first two leave `rank{n}.pt`.
"""

import importlib
import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))


def minibatch(script, args, rank: int):
    """An agent, the same for each rank, and a minibatch that differs: inputs of the agent and of ppo_loss."""
    torch.set_default_dtype(torch.double)
    torch.manual_seed(0)
    envs = script.make_envs(args, args.env_id, 6, "cpu")
    agent = script.Agent(envs.single_observation_space, 2, args)
    draw = torch.Generator().manual_seed(rank)
    obs = torch.cat([envs.reset(seed=10 * rank + t)[0] for t in range(5)])
    state = tuple(torch.randn(1, 6, args.hidden_size, generator=draw) for _ in range(2))
    dones, *rollout = torch.rand(5, 30, generator=draw)
    actions = torch.randint(2, (30,), generator=draw)
    return agent, obs if obs.dtype == torch.uint8 else obs.double(), state, (dones < 0.2).double(), actions, rollout


def loss(script, args, agent, obs, state, dones, actions, rollout):
    _, logprob, entropy, value, _ = agent.get_action_and_value(obs, state, dones, actions)
    return script.ppo_loss(logprob, entropy, value, rollout[0] - 1, *rollout[1:], args)


def gradients(script):
    torch.distributed.init_process_group("gloo")
    args = script.Args(hidden_size=8, encoder_size=4, clip_vloss=True)
    agent, *inputs = minibatch(script, args, script.RANK)
    result, stats = loss(script, args, agent, *inputs)
    result.backward()
    left = [[script.all_mean(x) for x in values] for values in ([p.grad for p in agent.parameters()], stats.values())]
    torch.distributed.destroy_process_group()
    return left


def train(script, how: str, flags: list[str]):
    weights, calls, step, ppo_loss = [], [], torch.optim.Adam.step, script.ppo_loss

    def noting(optimizer):
        step(optimizer)
        weights.append(torch.cat([p.detach().flatten() for p in optimizer.param_groups[0]["params"]]))

    def failing(newlogprob, *inputs):
        calls.append(1)
        if script.RANK == 1 and len(calls) == 21:
            if how == "raises":
                raise RuntimeError("rank 1 is broken")
            if how == "dies" or (how == "dies once" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"):
                os.kill(os.getpid(), signal.SIGKILL)
            newlogprob = newlogprob * float("nan") if how == "nan" else newlogprob
        return ppo_loss(newlogprob, *inputs)

    torch.optim.Adam.step, script.ppo_loss = noting, failing
    assert script.main(flags) == 0
    return weights


if __name__ == "__main__":
    how, script = sys.argv[1], importlib.import_module(sys.argv[2])
    left = gradients(script) if how == "gradients" else train(script, how, sys.argv[3:])
    torch.save(left, f"rank{script.RANK}.pt")
