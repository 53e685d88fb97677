"""What the README promises of runs that are killed, stopped, or meet a fault."""

import glob
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import cartpole_slowly, command, one, results_of, same, saved, slow, spy, started, tiny

import envs as task_envs
import ppo_lstm_cartpole_novel
import ppo_lstm_minigrid

MOMENTS = int(os.environ.get("MOMENTS", "3"))  # how often each script is killed; MOMENTS=20 once in a while


@slow
def test_killed_at_any_moment_a_run_resumes_bit_for_bit(script, exact):
    flags = tiny(script, "--eval-every", 2, "--save-every", 1, "--desired-kl", 0.005, "--rand-move-eps", 0.1,
                 "--total-timesteps", 768, "--exp-name")  # fmt: skip
    draw, begin = random.Random(0), time.time()
    assert script.main([*flags, "whole"]) == 0
    seconds, expected = time.time() - begin, saved(one("runs/*__whole__*"))
    assert len(expected[0]) == 13 and len(expected[1]["eval/success_rate"]) == 6
    for moment in range(MOMENTS):
        pattern = f"runs/*__killed{moment}__*"
        process = started(command(script, *flags, f"killed{moment}"), f"{pattern}/agent.pt")
        time.sleep(draw.uniform(0, seconds))
        process.kill()
        process.communicate()
        if not glob.glob(f"{pattern}/results.json"):
            done = subprocess.run(command(script, "--resume", one(f"{pattern}/agent.pt")), capture_output=True)
            assert done.returncode == 0, done.stderr
        assert same(expected, saved(one(pattern))), moment


def test_a_signal_ends_a_long_evaluation_and_the_iterations_before_it_are_saved(script, monkeypatch):
    steps = []
    with monkeypatch.context() as patch:
        spy(patch, script.Agent, "act", lambda *_: steps.append(1) or (len(steps) == 5 and signal.raise_signal(15)))
        assert script.main(tiny(script, "--total-timesteps", 256, "--eval-every", 2)) == 143
    assert len(steps) == 5 and script.load_checkpoint(one("runs/*/agent.pt"))["global_step"] == 128


def test_a_second_signal_ends_at_once(script, monkeypatch):
    monkeypatch.setattr(os, "_exit", sys.exit)
    spy(monkeypatch, script, "ppo_loss", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as ended:
        script.main(tiny(script, "--total-timesteps", 6400))
    assert ended.value.code == 130 and not glob.glob("runs/*/*.pt")


@slow
def test_ctrl_c_in_a_terminal_reaches_every_process_and_the_logs_are_whole():
    flags = tiny(ppo_lstm_minigrid, *["--total-timesteps=10000000", "--track", "--capture-video", "--eval-every=1"],
                 *["--wandb-project-name=my-project", "--wandb-entity=my-team"])  # fmt: skip
    env = {**os.environ, "WANDB_MODE": "offline"}
    process = started(command(ppo_lstm_minigrid, *flags), env=env, start_new_session=True)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and "log failed" not in err, err
    log = Path(one("runs/*/wandb/offline-run-*/run-*.wandb")).read_bytes()
    assert all(word in log for word in (b"charts/SPS", b"eval/success_rate", b"my-project", b"my-team"))
    assert glob.glob("runs/*/wandb/offline-run-*/files/media/videos/**/*.mp4", recursive=True)
    assert ppo_lstm_minigrid.load_checkpoint(one("runs/*/agent.pt"))["global_step"] > 0


@pytest.mark.parametrize("fault", ["NanReward", "NanObservation", "Raises"])
def test_an_environment_that_fails_ends_the_run_and_leaves_a_whole_checkpoint(fault):
    script = ppo_lstm_cartpole_novel
    with pytest.raises(ZeroDivisionError if fault == "Raises" else FloatingPointError):
        script.main(tiny(script, "--env-id", f"My/{fault}-v0", "--total-timesteps", 6400, "--save-every", 1))
    assert not glob.glob("runs/*/results.json") and len(glob.glob("runs/*/agent*.pt")) > 2
    for path in glob.glob("runs/*/agent*.pt"):
        checkpoint = script.load_checkpoint(path)
        assert checkpoint["global_step"] >= 64 and all(w.isfinite().all() for w in checkpoint["agent"].values())


def full_disk(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("what", "function"), [("agent.pt", "replace"), ("results.json", "fsync")])
def test_a_file_that_cannot_be_written_ends_the_run_and_the_old_one_stands(script, monkeypatch, what, function):
    real = os.replace
    def replace(source, target):
        if os.path.basename(target) == ("agent_256.pt" if what == "agent.pt" else "agent.pt"):
            patch.setattr(os, function, full_disk)  # from now on
        return real(source, target)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "replace", replace)
        script.main(tiny(script, "--save-every", 4))
    path = one("runs/*/agent.pt")
    assert script.load_checkpoint(path)["global_step"] == 64 and not glob.glob("runs/*/results.json")
    assert script.main(["--resume", path]) == 0 and one("runs/*/results.json")


def test_logs_that_fail_do_not_end_the_run(script, monkeypatch):
    import tqdm
    import wandb
    from torch.utils.tensorboard import SummaryWriter
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="No space left"):
        for owner, names in {SummaryWriter: "add_scalar add_text flush close", wandb: "init log define_metric finish",
                             task_envs: "record_videos", tqdm.tqdm: "write", sys.stdout: "write flush"}.items():
            for name in names.split():
                patch.setattr(owner, name, full_disk)
        assert script.main(tiny(script, "--total-timesteps", 128, "--track")) == 0
    assert results_of(one("runs/*"))["global_step"] == 128 and one("runs/*/agent.pt")


CONSOLES = {
    "full": "PYTHONUNBUFFERED= {} >/dev/full 2>/dev/full", "ascii": "PYTHONIOENCODING=ascii {} --exp-name größe",
    "reader gone": "PYTHONUNBUFFERED=1 {} | true; exit ${{PIPESTATUS[0]}}", "no stderr": "{} 2>&-",
    "reader gone late": "PYTHONUNBUFFERED= {} | true; exit ${{PIPESTATUS[0]}}", "neither": "{} >&- 2>&-"}  # fmt: skip


@cartpole_slowly
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=slow if kind != "full" else ()) for kind in CONSOLES])
def test_no_console_ends_a_run(script, kind):
    line = CONSOLES[kind].format(" ".join(command(script, *tiny(script, "--total-timesteps", 64))))
    assert subprocess.run(["bash", "-c", line]).returncode == 0 and one("runs/*/results.json")
    assert kind != "ascii" or "größe" in one("runs/*")
