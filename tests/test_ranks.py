"""One policy trained by two processes that torchrun starts (Gloo, CPU): they agree on everything, none waits."""

import glob
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, one, results_of, same, scalars, slow, started, tiny

import ppo_lstm_minigrid


def torchrun(file, *flags, number=2):
    how = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
    return ["env", "OMP_NUM_THREADS=1", *how, ROOT / file, *map(str, flags)]


def run(*inputs, **named):
    done = subprocess.run(torchrun(*inputs, **named), capture_output=True, text=True, timeout=150)
    return done.returncode, done.stdout, done.stderr


@slow
def test_ranks_average_all_they_exchange_and_one_of_them_writes(script):
    """Gradients, the moments of advantages and of all returns, KL divergences, metrics."""
    flags = tiny(script, "--desired-kl", 1e-5, "--learning-rate", 0.02, "--eval-every", 2)
    code, _, err = run("tests/ranks.py", "none", script.__name__, *flags)
    assert code == 0, err
    run_dir, (ranks, returns) = one("runs/*"), zip(*(torch.load(f"rank{rank}.pt") for rank in range(2)), strict=True)
    assert any(len(before) > 5 and not same(before, other) for (before, _), (other, _) in zip(*ranks, strict=True))
    for (a, mean), (b, other) in zip(*ranks, strict=True):
        assert same(mean, other)
        torch.testing.assert_close([(x + y) / 2 for x, y in zip(a, b, strict=True)], mean)
    returns = torch.stack([torch.cat(both, 1).flatten() for both in zip(*returns, strict=True)])
    var = returns.var(1, correction=0).maximum(returns.square().mean(1) / 16) + 1e-6
    checkpoint = script.load_checkpoint(f"{run_dir}/agent.pt")
    torch.testing.assert_close(checkpoint["agent"]["return_stats"], torch.stack((returns.mean(), var.mean())))
    a, b = checkpoint["ranks"]
    assert results_of(run_dir)["global_step"] == 256 and not same(a["envs"], b["envs"]) and not same(a["rng"], b["rng"])
    assert [step for step, _ in scalars(run_dir)["charts/SPS"]] == [64, 128, 192, 256]


@slow
@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1)])
def test_resumed_by_as_many_processes_a_run_goes_on_exactly_by_others_with_new_episodes(before, after):
    flags = tiny(ppo_lstm_minigrid, "--save-every", 2, "--desired-kl", 0.005)
    code, _, err = run("ppo_lstm_minigrid.py", *flags, number=before)
    assert code == 0, err
    path = one("runs/*/agent.pt")
    expected = ppo_lstm_minigrid.load_checkpoint(path)
    os.remove(one("runs/*/results.json"))
    code, _, err = run("ppo_lstm_minigrid.py", "--resume", one("runs/*/agent_128.pt"), number=after)
    assert code == 0, err
    resumed = ppo_lstm_minigrid.load_checkpoint(path)
    assert resumed["global_step"] == 256 and len(resumed["ranks"]) == after
    assert all(same(expected[k], resumed[k]) == (before == after) for k in ("agent", "weights", "optimizer", "ranks"))


@slow
@pytest.mark.parametrize(("fault", "message"), [
    ("raises", "rank 1 is broken"), ("dies", "SIGKILL"), ("nan", "not finite")])  # fmt: skip
def test_a_rank_that_fails_ends_the_job_with_its_error(fault, message):
    flags, begin = tiny(ppo_lstm_minigrid, "--total-timesteps", 10**6), time.time()
    code, _, err = run("tests/ranks.py", fault, "ppo_lstm_minigrid", *flags)
    assert code != 0 and message in err and time.time() - begin < 60 and not glob.glob("runs/*/results.json")


@slow
def test_a_signal_to_all_at_once_stops_the_ranks_after_the_same_iteration():
    flags = tiny(ppo_lstm_minigrid, "--total-timesteps", 10**7)
    process = started(torchrun("ppo_lstm_minigrid.py", *flags))
    time.sleep(1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (*map(int, children), process.pid):
        os.kill(pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    checkpoint = ppo_lstm_minigrid.load_checkpoint(one("runs/*/agent.pt"))
    assert process.returncode != 0 and checkpoint["global_step"] > 64 and len(checkpoint["ranks"]) == 2, err
    assert not glob.glob("runs/*/results.json")


def test_a_job_that_torchrun_starts_again_resumes_its_run_or_the_one_it_was_given(script, monkeypatch):
    assert script.main(tiny(script)) == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert script.parse(tiny(script))[0].resume == (path := one("runs/*/agent.pt"))
    assert script.parse(tiny(script, "--resume", f"./{path}"))[0].resume == f"./{path}"


def test_flags_are_checked_for_each_process(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "WORLD", 3)
    for flags, says in (("--num-envs=128", "--num-envs must be a multiple of the 3 processes"),
                        ("--num-envs=9 --num-steps=128 --num-minibatches=7", "--num-minibatches")):  # fmt: skip
        assert script.main(flags.split()) == 2 and says in capsys.readouterr().err
