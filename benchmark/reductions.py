"""What do processes that train one policy pay for meeting? (SCALING.md quotes this.)

    torchrun --standalone --nproc-per-node 2 benchmark/reductions.py            # flags of ppo_lstm_minigrid.py may follow

For the agent that the flags describe, for each thing the processes do together: how often in an iteration, bytes that a process
contributes, median microseconds of a call. Then what they come to in an iteration, and for each step of the environments.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import envs as task_envs
import ppo_lstm_minigrid as script


def median(function, calls: int = 200) -> float:
    """Median seconds of a call; the processes begin each together, as after equal work."""
    times = []
    for _ in range(calls):
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        begin = time.perf_counter()
        result = function()
        if isinstance(result, torch.Tensor) and result.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main():
    args = tyro.cli(script.Args)
    torch.set_num_threads(args.num_threads)
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    ranks = task_envs.Ranks(device)
    N, T = args.num_envs // ranks.number, args.num_steps
    envs = script.make_envs(args, args.env_id, N, device)
    agent = script.Agent(envs.single_observation_space, int(envs.single_action_space.n), args).to(device)
    for parameter in agent.parameters():
        parameter.grad = torch.randn_like(parameter)
    weights = sum(parameter.numel() for parameter in agent.parameters())
    stats = {str(i): torch.zeros((), device=device) for i in range(6)}
    advantages = torch.randn(T * N // args.num_minibatches, device=device)

    minibatches = args.update_epochs * args.num_minibatches
    meetings = [
        ("gradients and statistics", minibatches, 4 * (weights + len(stats)),
         lambda: ranks.average(agent.parameters(), stats)["0"]),
        ("mean and spread of advantages", minibatches, 16, lambda: ranks.std_mean(advantages)[0]),
        ("whether to stop or save", 1, 16, lambda: ranks.largest(0, 0)),
    ]  # fmt: skip
    total = 0.0
    lines = [f"{ranks.number} processes, {device}, {weights:,} weights, {N} environments x {T} steps each"]
    for name, often, size, function in meetings:
        seconds = median(function)
        total += often * seconds
        lines.append(f"{name:<32}{often:5} x {size:10,} bytes {1e6 * seconds:10,.0f} us")
    lines.append(f"{'together':<32}{1e3 * total:26.2f} ms an iteration, {1e9 * total / (T * args.num_envs):.0f} ns a step")
    if ranks.rank == 0:
        print("\n".join(lines))
    ranks.close()


if __name__ == "__main__":
    main()
