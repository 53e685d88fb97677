"""One policy trained by two processes that torchrun starts (Gloo, CPU): they agree on everything, none waits for ever."""

import glob
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ranks
import torch
from conftest import ROOT, cartpole_slowly, one, results_of, same, saved, scalars, started, tiny

import ppo_lstm_minigrid

slow = pytest.mark.slow


def torchrun(file, *flags, number=2, restarts=0):
    """The command."""
    how = ["--standalone", f"--nproc-per-node={number}", f"--max-restarts={restarts}"]
    return ["env", "OMP_NUM_THREADS=1", sys.executable, "-m", "torch.distributed.run", *how, ROOT / file, *map(str, flags)]


def run(*inputs, **named):
    """-> exit code, stdout, stderr."""
    done = subprocess.run(torchrun(*inputs, **named), capture_output=True, text=True, timeout=150)
    return done.returncode, done.stdout, done.stderr


@cartpole_slowly
def test_gradients_are_those_of_one_process_that_sees_all(script, monkeypatch):
    """The union of the ranks' minibatches, fed to one process, in float64."""
    with socket.socket() as free:  # what torchrun sets, without waiting for torchrun
        free.bind(("127.0.0.1", 0))
        env = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = [sys.executable, ROOT / "tests" / "ranks.py", "gradients", script.__name__]
    processes = [subprocess.Popen(command, env={**env, "RANK": str(rank)}) for rank in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    args = script.Args(hidden_size=8, encoder_size=4, clip_vloss=True)

    def union(a, b):  # (T * N, ...) of each, time first -> (T * 2 N, ...)
        return torch.cat((a.unflatten(0, (5, 6)), b.unflatten(0, (5, 6))), 1).flatten(0, 1)

    try:
        (agent, *first), (_, *second) = (ranks.minibatch(script, args, rank) for rank in range(2))
        obs, dones, actions = (union(first[i], second[i]) for i in (0, 2, 3))
        state = tuple(torch.cat(pair, 1) for pair in zip(first[1], second[1], strict=True))
        loss, stats = ranks.loss(script, args, agent, obs, state, dones, actions, list(map(union, first[4], second[4])))
    finally:
        torch.set_default_dtype(torch.float)
    loss.backward()
    for rank in range(2):
        gradients, averages = torch.load(f"rank{rank}.pt")
        torch.testing.assert_close(gradients, [p.grad for p in agent.parameters()], rtol=1e-10, atol=1e-12)
        assert [x.item() for x in averages] == pytest.approx([x.item() for x in stats.values()], rel=1e-6)


@cartpole_slowly
@slow
def test_ranks_have_the_same_weights_at_every_step_and_one_of_them_writes(script):
    flags = tiny(script, "--target-kl", 1e-5, "--learning-rate", 0.02, "--eval-every", 2)
    code, _, err = run("tests/ranks.py", "train", script.__name__, *flags)
    assert code == 0, err
    first, second = (torch.load(f"rank{rank}.pt") for rank in range(2))
    assert 4 <= len(first) == len(second) < 16  # the target KL ended some updates
    assert all(map(torch.equal, first, second)) and not torch.equal(first[0], first[-1])
    run_dir = one("runs/*")
    checkpoint = script.load_checkpoint(f"{run_dir}/agent.pt")
    a, b = checkpoint["ranks"]
    assert checkpoint["global_step"] == 256 == results_of(run_dir)["global_step"]
    assert not same(a["envs"], b["envs"]) and not same(a["rng"], b["rng"])
    assert [step for step, _ in scalars(run_dir)["charts/SPS"]] == [64, 128, 192, 256]


@slow
@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 2)])
def test_resumed_by_as_many_processes_a_run_goes_on_exactly_by_others_it_says_what_begins_again(before, after):
    flags = tiny(ppo_lstm_minigrid, "--save-every", 2, "--target-kl", 0.02)
    code, _, err = run("ppo_lstm_minigrid.py", *flags, number=before)
    assert code == 0, err
    path = one("runs/*/agent.pt")
    expected = ppo_lstm_minigrid.load_checkpoint(path)
    os.remove(one("runs/*/results.json"))
    code, out, err = run("ppo_lstm_minigrid.py", "--resume", one("runs/*/agent_128.pt"), number=after)
    assert code == 0 and ("new ones begin" in out) == (before != after), err
    resumed = ppo_lstm_minigrid.load_checkpoint(path)
    assert resumed["global_step"] == 256 and len(resumed["ranks"]) == after
    assert all(same(expected[key], resumed[key]) == (before == after) for key in ("agent", "optimizer", "ranks"))


@slow
@pytest.mark.parametrize(("how", "message"), [("raises", "rank 1 is broken"), ("dies", "SIGKILL"), ("nan", "not finite")])
def test_a_rank_that_fails_ends_the_job_with_its_error(how, message):
    begin = time.time()
    code, _, err = run("tests/ranks.py", how, "ppo_lstm_minigrid", *tiny(ppo_lstm_minigrid, "--total-timesteps", 10**6))
    assert code != 0 and message in err and time.time() - begin < 60 and not glob.glob("runs/*/results.json")


@slow
def test_restarted_by_torchrun_a_job_resumes_in_its_folder():
    """The sixth of eight iterations is lost with rank 1; what comes out equals the run without a fault."""
    flags = tiny(ppo_lstm_minigrid, "--total-timesteps", 512, "--save-every", 1, "--exp-name")
    for how, name in (("train", "whole"), ("dies once", "restarted")):
        code, _, err = run("tests/ranks.py", how, "ppo_lstm_minigrid", *flags, name, restarts=1)
        assert code == 0, err
    assert same(saved(one("runs/*__whole__*")), saved(one("runs/*__restarted__*")))


@slow
@pytest.mark.parametrize("to", ["torchrun", "one rank", "all at once"])
def test_a_signal_stops_all_ranks_after_the_same_iteration(to):
    """All at once is what a scheduler does: the ranks get it, and again from torchrun."""
    flags = tiny(ppo_lstm_minigrid, "--total-timesteps", 10**7)
    process = started(torchrun("ppo_lstm_minigrid.py", *flags), start_new_session=True)
    time.sleep(1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    pids = [pid for pid in map(int, children) if b"ppo_lstm" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(pids) == 2
    for pid in {"torchrun": [process.pid], "one rank": pids[1:], "all at once": [*pids, process.pid]}[to]:
        os.kill(pid, signal.SIGINT if to == "torchrun" else signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    checkpoint = ppo_lstm_minigrid.load_checkpoint(one("runs/*/agent.pt"))
    assert process.returncode != 0 and checkpoint["global_step"] > 64 and len(checkpoint["ranks"]) == 2, err
    assert not glob.glob("runs/*/results.json")


def test_flags_are_checked_for_each_process(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "WORLD", 3)
    for flags, says in (("--num-envs=128", "--num-envs must be a multiple of the 3 processes"),
                        ("--num-envs=9 --num-steps=128 --num-minibatches=7", "--num-minibatches")):  # fmt: skip
        assert script.main(flags.split()) == 2 and says in capsys.readouterr().err
