"""One of the processes that torchrun starts for test_ranks.py: `ranks.py FAULT SCRIPT FLAGS...` runs the script, and
leaves `rank{n}.pt`: what each call of all_mean was given and what it made of that, and the returns of each rollout.

FAULT befalls rank 1 in its 21st minibatch: `raises`, `dies`, `nan` or `none`.
"""

import importlib
import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
fault, script, minibatches, exchanged, rollouts = sys.argv[1], importlib.import_module(sys.argv[2]), [], [], []
ppo_loss, all_mean, gae = script.ppo_loss, script.all_mean, script.gae


def failing_loss(newlogprob, *inputs):
    minibatches.append(1)
    if script.RANK == 1 and len(minibatches) == 21:
        if fault == "raises":
            raise RuntimeError("rank 1 is broken")
        if fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        newlogprob = newlogprob * float("nan") if fault == "nan" else newlogprob
    return ppo_loss(newlogprob, *inputs)


def noting_mean(*tensors):
    before = [tensor.clone() for tensor in tensors]
    result = all_mean(*tensors)
    exchanged.append((before, [tensor.clone() for tensor in tensors]))
    return result


script.ppo_loss, script.all_mean = failing_loss, noting_mean
script.gae = lambda *inputs: rollouts.append(gae(*inputs)) or rollouts[-1]
assert script.main(sys.argv[3:]) == 0
torch.save((exchanged, [returns for _, returns in rollouts]), f"rank{script.RANK}.pt")
