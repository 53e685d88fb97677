"""`train` and `main` end to end, on runs of seconds: resume, evaluation, videos, logs, signals, files."""

import glob
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from conftest import cartpole_slowly
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import envs as task_envs

ROOT = Path(__file__).parent.parent
TINY = ["--num-envs", "4", "--num-steps", "16", "--seq-len", "8", "--num-minibatches", "2", "--update-epochs", "2",
        "--hidden-size", "8", "--num-threads", "1", "--eval-episodes", "4", "--eval-every", "0"]  # fmt: skip


def env_flags(script):
    return ["--env-id", "MiniGrid-MemoryS7-v0"] if "minigrid" in script.__file__ else []


def scalars(run_dir):
    events = EventAccumulator(run_dir)
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def same(a, b):
    """Equal bit for bit, through dicts and lists."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


BASELINE = {}  # weights of each script's small run, trained once
TIMED = ("train_seconds", "wandb_run_id", "args")


@cartpole_slowly
def test_resume_equals_the_uninterrupted_run_bit_for_bit(script):
    """Seven iterations at once, and three then four: the files agree, and so do the curves."""
    flags = [*env_flags(script), *TINY, "--eval-every", "2", "--target-kl", "0.02", "--rand-move-eps", "0.1", "--anneal-lr",
             "--total-timesteps", "448", "--save-every", "3"]  # fmt: skip
    assert script.main([*flags, "--exp-name", "whole"]) == 0
    assert script.main([*flags, "--exp-name", "parts"]) == 0
    whole, parts = (glob.glob(f"runs/*{name}*")[0] for name in ("whole", "parts"))
    for path in glob.glob(f"{parts}/*"):  # as if killed after the third iteration
        if os.path.basename(path) not in ("agent_192.pt",) and "tfevents" not in path:
            os.remove(path)
    assert script.main(["--resume", f"{parts}/agent_192.pt"]) == 0
    a, b = (torch.load(f"{run}/agent.pt", weights_only=True) for run in (whole, parts))
    assert a.keys() == b.keys()
    for name in a.keys() - set(TIMED):
        assert same(a[name], b[name]), name
    a, b = scalars(whole), scalars(parts)
    assert a.keys() == b.keys()
    for tag in a.keys() - {"charts/SPS"}:
        assert a[tag] == b[tag], tag
    a, b = (json.loads(Path(run, "results.json").read_text()) for run in (whole, parts))
    assert a["eval"] == b["eval"] and a["global_step"] == b["global_step"] == 448


def test_a_run_killed_before_its_last_evaluation_gets_its_results(script):
    flags = [*env_flags(script), *TINY, "--total-timesteps", "128"]
    assert script.main(flags) == 0
    (run,) = map(Path, glob.glob("runs/*"))
    before = json.loads((run / "results.json").read_text())["eval"]
    (run / "results.json").unlink()
    assert script.main(["--resume", str(run / "agent.pt")]) == 0
    assert json.loads((run / "results.json").read_text())["eval"] == before


def test_resume_of_gymnasiums_vector_environment_starts_episodes_anew(capsys):
    import ppo_lstm_minigrid as script

    flags = ["--env-id", "MiniGrid-ObstructedMaze-1Dl-v0", *TINY, "--no-anneal-lr", "--total-timesteps", "64"]
    assert script.main(flags) == 0
    path = glob.glob("runs/*/agent.pt")[0]
    assert script.main(["--resume", path, "--total-timesteps", "128"]) == 0
    assert "start anew" in capsys.readouterr().out


def test_results_and_last_line(script, capsys):
    flags = [*env_flags(script), *TINY, "--total-timesteps", "128"]
    assert script.main(flags) == 0
    printed = capsys.readouterr().out.strip().splitlines()
    assert "argmax success" in printed[-1] and "sampled success" in printed[-1]
    (run_dir,) = glob.glob("runs/*")
    results = json.loads(Path(run_dir, "results.json").read_text())
    assert {"env_id", "seed", "args", "global_step", "wall_seconds", "SPS", "eval"} == results.keys()
    for mode in ("argmax", "sampled"):
        result = results["eval"][results["env_id"]][mode]
        assert result.keys() == {"success_rate", "episodic_return", "episodic_length", "episodes", "exact"}
    tags = scalars(run_dir).keys()
    losses = "value_loss policy_loss entropy old_approx_kl approx_kl clipfrac explained_variance grad_norm"
    assert {f"losses/{name}" for name in losses.split()} <= tags
    charts = "episodic_return episodic_return_ema episodic_length success_rate SPS learning_rate"
    assert {f"charts/{name}" for name in charts.split()} <= tags
    assert {f"eval/{name}" for name in ("success_rate", "episodic_return", "episodic_length")} <= tags


def test_evaluation_of_memory_is_exact():
    """The same number as playing MiniGrid's own environment from every start, weighted by the start's probability."""
    import ppo_lstm_minigrid as script

    args = script.Args(env_id="MiniGrid-MemoryS7-v0", hidden_size=8, num_envs=32, num_steps=32, cuda=False, num_threads=1,
                       total_timesteps=10 * 1024, eval_every=0, num_minibatches=4, learning_rate=5e-3)  # fmt: skip
    agent, results = script.train(args)
    result = results["eval"][args.env_id]["argmax"]
    assert result["exact"] and result["episodes"] == 16
    table = task_envs.memory_table(7, False, 3)
    env, total, lengths = task_envs.make_single(args.env_id, 3), 0.0, 0.0
    for start, probability in zip(table.starts.tolist(), table.start_probs.tolist(), strict=True):
        wanted = {name: int(values[start]) for name, values in table.variables.items()}
        for seed in range(10_000):
            obs, _ = env.reset(seed=seed)
            real = env.unwrapped
            cue = int(real.grid.get(1, 2).type == "ball")
            if (cue, real.agent_pos[0], *real.success_pos) == (wanted["cue"], wanted["x"], wanted["success_x"],
                                                                wanted["success_y"]):  # fmt: skip
                break
        state, done, over = agent.initial_state(1), torch.ones(1), False
        while not over:
            with torch.no_grad():
                action, state = agent.act(torch.as_tensor(obs)[None], state, done)
            obs, reward, terminated, truncated, _ = env.step(int(action))
            done, over = torch.zeros(1), terminated or truncated
        total += probability * (reward > 0)
        lengths += probability * real.step_count
    assert result["success_rate"] == pytest.approx(total)
    assert result["episodic_length"] == pytest.approx(lengths)


def test_evaluation_leaves_training_alone(script, small):
    """With evaluations in between or without: the same weights, and the same random numbers afterwards."""
    often, _ = script.train(small(eval_every=1), run_dir="a")
    after_often = torch.rand(1)
    never, _ = script.train(small(), run_dir="b")
    assert same(often.state_dict(), never.state_dict())
    assert torch.equal(after_often, torch.rand(1))


def test_eval_only_and_load_agent(script, capsys):
    flags = [*env_flags(script), *TINY, "--total-timesteps", "64"]
    assert script.main(flags) == 0
    (path,) = glob.glob("runs/*/agent.pt")
    before = Path(path).read_bytes()
    first = json.loads(Path(os.path.dirname(path), "results.json").read_text())
    assert script.main(["--resume", path, "--eval-only"]) == 0
    assert Path(path).read_bytes() == before
    (second,) = set(glob.glob("runs/*/results.json")) - {os.path.join(os.path.dirname(path), "results.json")}
    assert json.loads(Path(second).read_text())["eval"] == first["eval"]
    agent, args = script.load_agent(path)
    assert args.hidden_size == 8 and isinstance(agent, script.Agent)


def test_generalisation_to_other_ids(capsys):
    import ppo_lstm_minigrid as script

    flags = ["--env-id", "MiniGrid-MemoryS7-v0", *TINY, "--total-timesteps", "64"]
    assert script.main([*flags, "--eval-env-id", "MiniGrid-MemoryS9-v0", "MiniGrid-MemoryS13Random-v0"]) == 0
    (path,) = glob.glob("runs/*/results.json")
    results = json.loads(Path(path).read_text())["eval"]
    assert list(results) == ["MiniGrid-MemoryS7-v0", "MiniGrid-MemoryS9-v0", "MiniGrid-MemoryS13Random-v0"]
    assert "eval/success_rate/MiniGrid-MemoryS9-v0" in scalars(os.path.dirname(path))
    assert script.main([*flags, "--view-size", "0", "--eval-env-id", "MiniGrid-MemoryS9-v0"]) == 2
    assert "--eval-env-id" in capsys.readouterr().err


def test_exported_checkpoint_evaluates_but_does_not_train(script, capsys):
    assert script.main([*env_flags(script), *TINY, "--total-timesteps", "64"]) == 0
    (path,) = glob.glob("runs/*/agent.pt")
    whole = torch.load(path, weights_only=True)
    torch.save({name: whole[name] for name in ("format", "script", "args", "agent", "global_step")}, "exported.pt")
    assert script.main(["--resume", "exported.pt", "--eval-only"]) == 0
    assert script.main(["--resume", "exported.pt", "--total-timesteps", "640"]) == 2
    assert "--eval-only" in capsys.readouterr().err


def test_videos_of_evaluation_episodes(script):
    flags = [*env_flags(script), *TINY, "--total-timesteps", "64", "--capture-video"]
    assert script.main(flags) == 0
    videos = glob.glob("runs/*/videos/*.mp4")
    assert len(videos) == 3 and all(os.path.getsize(video) > 500 for video in videos)


@pytest.mark.slow
def test_wandb_offline_with_the_real_library(monkeypatch):
    import ppo_lstm_minigrid as script

    monkeypatch.setenv("WANDB_MODE", "offline")
    flags = [*env_flags(script), *TINY, "--total-timesteps", "128", "--track", "--capture-video"]
    flags += ["--wandb-project-name", "my-project", "--wandb-entity", "my-team"]
    command = [sys.executable, ROOT / os.path.basename(script.__file__), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    (log,) = glob.glob("runs/*/wandb/offline-run-*/run-*.wandb")
    content = Path(log).read_bytes()
    for logged in (b"charts/SPS", b"eval/success_rate", b"my-project", b"my-team"):
        assert logged in content
    assert glob.glob("runs/*/wandb/offline-run-*/files/media/videos/**/*.mp4", recursive=True)
    (path,) = glob.glob("runs/*/agent.pt")
    assert torch.load(path, weights_only=True)["wandb_run_id"] in log


@cartpole_slowly
def test_signal_saves_and_ends_cleanly(script):
    number = signal.SIGINT if "minigrid" in script.__file__ else signal.SIGTERM
    flags = [*env_flags(script), *TINY, "--total-timesteps", "100000000"]
    command = [sys.executable, "-u", ROOT / os.path.basename(script.__file__), *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("first step"):
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number, err
    assert "--resume" in out and "Traceback" not in err
    (path,) = glob.glob("runs/*/agent.pt")
    assert script.load_checkpoint(path)["global_step"] > 0


@cartpole_slowly
def test_compiled_update_is_the_same(script, small, monkeypatch):
    """The eager backend of torch.compile: the traced graph gives the same weights; and no compiler means a warning."""
    plain, _ = script.train(small(), run_dir="plain")
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, backend, **k: real(f, backend="aot_eager", dynamic=False))
    fast, _ = script.train(small(compile=True), run_dir="compiled")
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[name], value, rtol=1e-3, atol=1e-4)

    def broken(f, **k):
        def call(*inputs):
            raise RuntimeError("no compiler")
        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match="--compile"):
        without, _ = script.train(small(compile=True), run_dir="broken")
    assert same(without.state_dict(), plain.state_dict())


@cartpole_slowly
@pytest.mark.parametrize("flags", [
    {"learning_rate": 1e-4}, {"num_envs": 8}, {"num_steps": 32}, {"anneal_lr": None}, {"gamma": 0.5}, {"gae_lambda": 0.5},
    {"num_minibatches": 4}, {"update_epochs": 3}, {"norm_adv": None}, {"reward_scale": 3.0}, {"clip_coef": 1e-3},
    {"clip_vloss": None}, {"ent_coef": 0.5}, {"vf_coef": 0.1}, {"max_grad_norm": 1e-3}, {"target_kl": 1e-9},
    {"rand_move_eps": 0.5}, {"seq_len": 16}, {"encoder_size": 5}, {"hidden_size": 9}, {"hidden_layer_size": 5},
    {"memoryless": None}, {"seed": 3}, {"total_timesteps": 128},
], ids=lambda flags: next(iter(flags)))  # fmt: skip
def test_every_learning_flag_changes_what_is_learned(script, small, flags):
    """None stands for the opposite of the default."""
    base = {"max_grad_norm": 0.1, "learning_rate": 0.01, "clip_coef": 0.01}
    default = small()
    flags = {name: not getattr(default, name) if value is None else value for name, value in flags.items()}
    if script not in BASELINE:
        BASELINE[script] = script.train(small(**base), run_dir="a")[0].state_dict()
    changed, _ = script.train(small(**{**base, **flags}), run_dir="b")
    assert not same(BASELINE[script], changed.state_dict())


def test_every_running_flag_does_something(script, small, monkeypatch):
    assert not torch.are_deterministic_algorithms_enabled()
    script.train(small(num_threads=1, torch_deterministic=True), run_dir="a")
    assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1
    script.train(small(torch_deterministic=False, num_threads=2, save_every=2, eval_every=1, exp_name="named"))
    assert not torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 2
    (run_dir,) = glob.glob("runs/*__named__*")
    assert len(glob.glob(f"{run_dir}/agent_*.pt")) == 2 and len(scalars(run_dir)["eval/success_rate"]) == 4
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(Exception, match=r"(?i)cuda"):
        script.train(small(cuda=True), run_dir="b")


def test_task_flags():
    import ppo_lstm_minigrid as script

    for view, size in ((3, 28), (5, 76), (0, 148)):
        args = script.Args(env_id="MiniGrid-MemoryS7-v0", view_size=view)
        assert script.make_envs(args, args.env_id, 2, "cpu").single_observation_space.shape == (size,)
    episodes = script.Args(env_id="MiniGrid-CustomMaze-S5-v0", eval_episodes=7, hidden_size=4)
    envs = script.make_envs(episodes, episodes.env_id, 1, "cpu")
    agent = script.Agent(envs.single_observation_space, 3, episodes)
    assert script.evaluate(agent, episodes, episodes.env_id, "cpu")["argmax"]["episodes"] == 7


def test_log_failures_do_not_end_the_run(script, small, monkeypatch, capsys):
    from torch.utils.tensorboard import SummaryWriter

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    assert script.train(small())[1] is not None
    assert "No space left" in capsys.readouterr().err


def test_checkpoint_survives_a_crash_while_writing(script, monkeypatch):
    script.save_checkpoint("agent.pt", {"format": 1, "script": "x", "args": {}, "agent": {}})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        script.save_checkpoint("agent.pt", {"format": 1, "script": "y", "args": {}, "agent": {}})
    assert script.load_checkpoint("agent.pt")["script"] == "x"


def test_gym_make_vec_after_import_envs():
    vec = gym.make_vec("MiniGrid-MemoryS13-v0", num_envs=512)
    assert vec.reset(seed=1)[0].shape == (512, 7 * 7 * 3 + 1)
