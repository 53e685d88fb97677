"""One of the processes that torchrun starts for test_ranks.py: `ranks.py FAULT SCRIPT FLAGS...` runs the script, and
leaves `rank{n}.pt`: of each step of the optimizer the minibatch, the gradients, and the weights after it.

FAULT is what happens to rank 1 in its 21st minibatch: `raises`, `dies`, `nan`, `dies once` (when torchrun starts it for
the first time) or `none`.
"""

import importlib
import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
fault, script, minibatches, steps = sys.argv[1], importlib.import_module(sys.argv[2]), [], []
step, ppo_loss, forward = torch.optim.Adam.step, script.ppo_loss, script.Agent.get_action_and_value


def noting_forward(agent, x, *inputs):
    minibatches.append([x[inputs[-1]], *inputs[:-1]])
    return forward(agent, x, *inputs)


def failing_loss(newlogprob, entropy, newvalue, *inputs):
    minibatches[-1].append(inputs[:-1])
    if script.RANK == 1 and len(minibatches) == 21:
        if fault == "raises":
            raise RuntimeError("rank 1 is broken")
        if fault == "dies" or (fault == "dies once" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"):
            os.kill(os.getpid(), signal.SIGKILL)
        newlogprob = newlogprob * float("nan") if fault == "nan" else newlogprob
    return ppo_loss(newlogprob, entropy, newvalue, *inputs)


def noting_step(optimizer):
    parameters = optimizer.param_groups[0]["params"]
    gradients = [parameter.grad.clone() for parameter in parameters]
    step(optimizer)
    steps.append((minibatches[-1], gradients, [parameter.detach().clone() for parameter in parameters]))


script.Agent.get_action_and_value, script.ppo_loss, torch.optim.Adam.step = noting_forward, failing_loss, noting_step
assert script.main(sys.argv[3:]) == 0
torch.save(steps, f"rank{script.RANK}.pt")
