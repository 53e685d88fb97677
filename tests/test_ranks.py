"""One policy trained by two processes that torchrun starts (Gloo, CPU): they agree on everything, and none waits for ever."""

import glob
import json
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
from conftest import cartpole_slowly
from test_train import ROOT, TINY, env_flags, same, scalars

import envs as task_envs
import ppo_lstm_minigrid

slow = pytest.mark.slow


def torchrun(file, *flags, number=2, **kwargs):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number), ROOT / file]
    return subprocess.Popen([*command, *map(str, flags)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            **kwargs)  # fmt: skip


def two_ranks(how, script, *flags):
    """Run tests/ranks.py to its end -> exit code, stdout, stderr, and what each rank left."""
    process = torchrun("tests/ranks.py", how, script.__name__, *flags)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err, [torch.load(path) for path in sorted(glob.glob("rank?.pt"))]


@pytest.fixture
def in_float64():
    torch.set_default_dtype(torch.double)
    yield
    torch.set_default_dtype(torch.float)


@cartpole_slowly
def test_gradients_are_those_of_one_process_that_sees_all(script, in_float64):
    """The union of the ranks' minibatches, fed to one process, in float64."""
    with socket.socket() as free:  # what torchrun sets, without waiting for torchrun
        free.bind(("127.0.0.1", 0))
        env = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = [sys.executable, ROOT / "tests" / "ranks.py", "gradients", script.__name__]
    processes = [subprocess.Popen(command, env={**env, "RANK": str(rank)}) for rank in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    left = [torch.load(f"rank{rank}.pt") for rank in range(2)]
    args = script.Args(hidden_size=8, encoder_size=4, clip_vloss=True)
    (agent, *one), (_, *two) = (ranks.minibatch(script, args, rank) for rank in range(2))

    def union(a, b):  # (T * N, ...) of each, time first -> (T * 2 N, ...)
        return torch.cat((a.unflatten(0, (5, 6)), b.unflatten(0, (5, 6))), 1).flatten(0, 1)

    obs, dones, actions = (union(one[i], two[i]) for i in (0, 2, 3))
    state = tuple(torch.cat(pair, 1) for pair in zip(one[1], two[1], strict=True))
    rollout = [union(a, b) for a, b in zip(one[4], two[4], strict=True)]
    loss, stats = ranks.loss(script, args, agent, obs, state, dones, actions, rollout)
    loss.backward()
    for gradients, averages, decided in left:
        assert decided == [1, 5]
        for gradient, parameter in zip(gradients, agent.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-10, atol=1e-12)
        assert averages.keys() == stats.keys()
        for name in stats:
            assert averages[name].item() == pytest.approx(stats[name].item(), rel=1e-6)


@cartpole_slowly
@slow
def test_ranks_have_the_same_weights_at_every_step_and_one_of_them_writes(script):
    flags = [*env_flags(script), *TINY, "--total-timesteps", "256", "--target-kl", "1e-5", "--learning-rate", "0.02",
             "--eval-every", "2"]  # fmt: skip
    code, out, err, left = two_ranks("train", script, *flags)
    assert code == 0, err
    one, two = left
    assert 4 <= len(one) == len(two) < 16  # the target KL ended some updates
    assert all(map(torch.equal, one, two)) and not torch.equal(one[0], one[-1])
    assert out.count("first step after") == 1 and len(os.listdir("runs")) == 1
    (run,) = map(Path, glob.glob("runs/*"))
    checkpoint = script.load_checkpoint(str(run / "agent.pt"))
    a, b = checkpoint["ranks"]
    assert checkpoint["global_step"] == 256 == json.loads((run / "results.json").read_text())["global_step"]
    assert len(a["next_done"]) == 2 and not same(a["envs"], b["envs"]) and not same(a["rng"], b["rng"])
    assert [step for step, _ in scalars(str(run))["charts/SPS"]] == [64, 128, 192, 256]


@slow
@pytest.mark.parametrize("before, after", [(2, 2), (2, 1), (1, 2)])
def test_resumed_by_as_many_processes_it_goes_on_exactly_by_others_it_says_what_starts_anew(before, after):
    script = ppo_lstm_minigrid
    flags = [*env_flags(script), *TINY, "--total-timesteps", "256", "--save-every", "2", "--target-kl", "0.02"]
    process = torchrun("ppo_lstm_minigrid.py", *flags, number=before)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    (run,) = map(Path, glob.glob("runs/*"))
    expected = script.load_checkpoint(str(run / "agent.pt"))
    (run / "results.json").unlink()
    process = torchrun("ppo_lstm_minigrid.py", "--resume", run / "agent_128.pt", number=after)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    resumed = script.load_checkpoint(str(run / "agent.pt"))
    assert resumed["global_step"] == 256 and len(resumed["ranks"]) == after
    assert ("start anew" in out) == (before != after)
    assert all(same(expected[key], resumed[key]) == (before == after) for key in ("agent", "optimizer", "ranks"))


@slow
@pytest.mark.parametrize("how, message", [("raises", "rank 1 is broken"), ("dies", "SIGKILL"), ("nan", "not finite")])
def test_a_rank_that_fails_ends_the_job_with_its_error(how, message):
    begin = time.time()
    code, _, err, _ = two_ranks(how, ppo_lstm_minigrid, *env_flags(ppo_lstm_minigrid), *TINY, "--total-timesteps", "1000000")
    assert code != 0 and message in err and time.time() - begin < 60
    assert not glob.glob("runs/*/results.json")


@slow
@pytest.mark.parametrize("to", ["torchrun", "one rank", "all at once"])
def test_a_signal_stops_all_ranks_after_the_same_iteration(to):
    """All at once is what a scheduler does: the ranks get it, and again from torchrun."""
    script = ppo_lstm_minigrid
    process = torchrun("ppo_lstm_minigrid.py", *env_flags(script), *TINY, "--total-timesteps", "10000000",
                       start_new_session=True)  # fmt: skip
    while "first step" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    time.sleep(2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [pid for pid in map(int, children) if b"ppo_lstm" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(ranks) == 2
    for pid in {"torchrun": [process.pid], "one rank": ranks[1:], "all at once": [*ranks, process.pid]}[to]:
        os.kill(pid, signal.SIGINT if to == "torchrun" else signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode != 0 and "go on with --resume" in out, err
    (path,) = glob.glob("runs/*/agent.pt")
    checkpoint = script.load_checkpoint(path)
    assert checkpoint["global_step"] > 64 and len(checkpoint["ranks"]) == 2


def test_flags_are_checked_for_each_process(monkeypatch, capsys):
    monkeypatch.setattr(task_envs, "rank_and_number", lambda: (0, 3))
    assert ppo_lstm_minigrid.main(["--num-envs", "128"]) == 2
    assert "--num-envs must be a multiple of the 3 processes" in capsys.readouterr().err
    assert ppo_lstm_minigrid.main(["--num-envs", "9", "--num-minibatches", "8"]) == 2
    assert "--num-minibatches must divide the 12 sequences" in capsys.readouterr().err


def test_each_process_takes_its_own_gpu_or_says_that_there_are_too_few(monkeypatch, capsys):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    task_envs.take_gpu(True)
    monkeypatch.setenv("LOCAL_RANK", "2")
    task_envs.take_gpu(False)
    assert taken == [1]
    assert ppo_lstm_minigrid.main([]) == 2
    assert "take a smaller --nproc-per-node" in capsys.readouterr().err and not os.path.exists("runs")
