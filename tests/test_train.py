"""`train` and `main` end to end, on runs of seconds: what a run writes, evaluates, resumes, and what each flag does."""

import copy
import dataclasses
import glob
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import cartpole_slowly, one, results_of, same, saved, scalars, spy, tiny

import envs as task_envs
import ppo_lstm_cartpole_novel
import ppo_lstm_minigrid


def test_what_a_run_leaves(script, capsys):
    assert script.main(tiny(script, "--total-timesteps", 1024, "--seed", 7, "--save-every", 8)) == 0
    run_dir, shown = one("runs/*"), capsys.readouterr().out
    assert run_dir in shown and "argmax" in shown and "sampled" in shown
    results, begun = results_of(run_dir), json.loads(Path(run_dir, "args.json").read_text())
    assert results.keys() >= {"script", "env_id", "seed", "args", "global_step", "wall_seconds", "SPS", "eval"}
    assert results["script"] == begun["script"] == os.path.basename(script.__file__)
    assert results["args"] == begun["args"] and results["seed"] == 7 and results["global_step"] == 1024
    for result in results["eval"][results["env_id"]].values():
        assert result.keys() == {"success_rate", "episodic_return", "episodic_length", "episodes", "exact"}
    tags = """losses/value_loss losses/policy_loss losses/entropy losses/old_approx_kl losses/approx_kl losses/clipfrac
        losses/explained_variance losses/grad_norm charts/episodic_return charts/episodic_length charts/success_rate
        charts/SPS charts/learning_rate eval/success_rate eval_sampled/episodic_return"""
    assert set(tags.split()) <= scalars(run_dir).keys()
    assert {path.name for path in Path(run_dir).glob("*.pt")} == {"agent.pt", "agent_512.pt", "agent_1024.pt"}


def test_stopped_by_a_signal_and_resumed_a_run_equals_the_uninterrupted_one(script, exact, monkeypatch):
    """Bit for bit: checkpoints, curves, results. So does one that is resumed from before what it logged last."""
    number = signal.SIGINT if script is ppo_lstm_minigrid else signal.SIGTERM
    flags = tiny(script, "--eval-every", 2, "--desired-kl", 0.005, "--rand-move-eps", 0.1, "--ema-decay", 0.5,
                 "--total-timesteps", 448, "--save-every", 3, "--anneal-lr",
                 *["--novelty-coef=0.1"] * (script is ppo_lstm_minigrid), "--exp-name")  # fmt: skip
    assert script.main([*flags, "whole"]) == 0
    calls = []
    with monkeypatch.context() as patch:  # in the middle of an update
        spy(patch, script, "ppo_loss", lambda *_: calls.append(1) or (len(calls) == 10 and signal.raise_signal(number)))
        assert script.main([*flags, "parts"]) == 128 + number
    assert len(calls) < 28 and not glob.glob("runs/*parts*/results.json")
    whole = saved(one("runs/*whole*"))
    assert len(whole[0]) == 3 and len(whole[1]["eval/success_rate"]) == 4
    for name in ("agent.pt", "agent_192.pt"):
        time.sleep(1)  # TensorBoard orders event files by the second in their names
        assert script.main(["--resume", one(f"runs/*parts*/{name}")]) == 0
        assert same(whole, saved(one("runs/*parts*")))
        os.remove(one("runs/*parts*/results.json"))


def test_resume_of_gymnasiums_vector_environment_goes_on_with_new_episodes():
    """And missions that vary can be ignored."""
    flags = "--env-id=MiniGrid-GoToDoor-5x5-v0", "--ignore-mission", "--no-anneal-lr", "--total-timesteps=64"
    assert ppo_lstm_minigrid.main(tiny(ppo_lstm_minigrid, *flags)) == 0
    assert ppo_lstm_minigrid.main(["--resume", one("runs/*/agent.pt"), "--total-timesteps", "128"]) == 0
    assert results_of(one("runs/*"))["global_step"] == 128


def test_evaluation_of_memory_is_exact():
    """As if played in MiniGrid's own environment from every start."""
    script = ppo_lstm_minigrid
    args = script.Args(env_id="MiniGrid-MemoryS7-v0", hidden_size=8, num_envs=32, num_steps=32, num_minibatches=4,
                       total_timesteps=10 * 1024, eval_every=0, learning_rate=5e-3, cuda=False)  # fmt: skip
    agent, results = script.train(args)
    result = results["eval"][args.env_id]["argmax"]
    assert result["exact"] and result["episodes"] == 16
    env, outcomes = task_envs.make_single(args.env_id, 3), {}
    for seed in range(500):
        obs, real = env.reset(seed=seed)[0], env.unwrapped
        start = real.grid.get(1, 2).type, real.agent_pos[0], *real.success_pos
        state, done, over = agent.initial_state(1), torch.ones(1), start in outcomes
        while not over:
            action, state = agent.act(torch.as_tensor(obs)[None], state, done)
            obs, reward, terminated, truncated, _ = env.step(int(action))
            done, over = torch.zeros(1), terminated or truncated
            outcomes[start] = reward > 0, real.step_count
    assert len(outcomes) == 16  # equally likely
    expected = torch.tensor(list(outcomes.values()), dtype=torch.double).mean(0).tolist()
    assert [result["success_rate"], result["episodic_length"]] == pytest.approx(expected)


def test_evaluation_leaves_training_alone_and_has_its_own_seeds(script, small, monkeypatch):
    seeds = []
    def note(_, envs):
        real = envs.reset
        envs.reset = lambda seed=None, options=None: (seeds.append(seed), real(seed=seed, options=options))[1]
    spy(monkeypatch, script, "make_envs", note)
    often, _ = script.train(small(eval_every=1), run_dir="a")
    after_often = torch.rand(1)
    never, _ = script.train(small(), run_dir="b")
    assert same(often.state_dict(), never.state_dict()) and torch.equal(after_often, torch.rand(1))
    training = [seed for reset in seeds if isinstance(reset, list) for seed in reset]
    assert len(training) == 8 and len(set(training)) == 4 and max(training) < 2**31
    assert all(2**31 <= seed < 2**32 for seed in seeds if isinstance(seed, int))


@pytest.mark.parametrize("decay", [0.0, 0.6])
def test_the_moving_average_of_the_weights_is_evaluated_and_kept(script, monkeypatch, decay):
    """By hand, from the weights after each iteration. Buffers are copied."""
    seen, mean = [], {}
    spy(monkeypatch, script.Agent, "__init__", lambda given, _: given[0].register_buffer("mask", -torch.ones(1) / 0))
    spy(monkeypatch, script, "evaluate", lambda given, _: seen.append(copy.deepcopy(given[0].state_dict())))
    assert script.main(tiny(script, "--save-every=1", "--eval-every=1", f"--ema-decay={decay}")) == 0
    for i, evaluated in enumerate(seen, 1):
        file, share = torch.load(one(f"runs/*/agent_{64 * i}.pt"), weights_only=True), max(1 - decay, 1 / i)
        mean = {k: share * w + (1 - share) * mean.get(k, 0.0) if "." in k else w for k, w in file["weights"].items()}
        torch.testing.assert_close(file["agent"], mean)
        assert same(evaluated, file["agent"]) and same(evaluated, file["weights"]) == (i == 1 or decay == 0.0)


def test_eval_only_exported_checkpoints_and_load_agent(script, capsys):
    assert script.main(tiny(script, "--total-timesteps", 64)) == 0
    path, expected = one("runs/*/agent.pt"), results_of(one("runs/*"))["eval"]
    whole = torch.load(path, weights_only=True)
    torch.save({name: whole[name] for name in ("script", "args", "agent", "global_step")}, "exported.pt")
    before = sorted(Path().rglob("*"))
    assert script.main(["--resume", "exported.pt"]) == 2 and capsys.readouterr().err.count("\n") == 1
    for resumed in (path, "exported.pt"):
        assert script.main(["--resume", resumed, "--eval-only"]) == 0
        assert json.loads(capsys.readouterr().out) == expected
    assert before == sorted(Path().rglob("*"))
    agent, args = script.load_agent(path)
    assert args.hidden_size == 8 and isinstance(agent, script.Agent) and same(agent.state_dict(), whole["agent"])


def test_evaluation_on_other_ids_and_views(capsys):
    flags = tiny(ppo_lstm_minigrid, "--total-timesteps", 64, "--view-size", 5)
    others = ["--eval-env-id", "MiniGrid-MemoryS9-v0", "MiniGrid-CustomMaze-S5-v0"]
    assert ppo_lstm_minigrid.main([*flags, *others]) == 0
    results = results_of(one("runs/*"))["eval"]
    assert list(results) == ["MiniGrid-MemoryS7-v0", *others[1:]] and results[others[2]]["argmax"]["episodes"] == 4
    assert "eval/success_rate/MiniGrid-MemoryS9-v0" in scalars(one("runs/*"))
    assert ppo_lstm_minigrid.main([*flags, "--view-size", "0", *others[:2]]) == 2  # other grids, other observations
    assert "--eval-env-id" in capsys.readouterr().err


def test_an_environment_of_ones_own(monkeypatch):
    """Actions from 1, other dtypes, a slash in its id, a RandomState; ten rewards of 0.7 reach a threshold of 7."""
    script, flags = ppo_lstm_cartpole_novel, ["--env-id=My/Unusual-v0", "--total-timesteps=64", "--capture-video"]
    monkeypatch.setattr(script.Agent, "act", lambda self, x, state, *_: (torch.ones(len(x), dtype=torch.long), state))
    assert script.main(tiny(script, *flags)) == 0
    result, videos = results_of(one("runs/*"))["eval"]["My/Unusual-v0"]["argmax"], glob.glob("runs/*/videos/*.mp4")
    assert result["success_rate"] == 1 and result["episodic_return"] == pytest.approx(7) and not result["exact"]
    assert len(videos) == 3 and all(os.path.getsize(video) > 500 for video in videos)


def test_a_run_that_is_resumed_twice_at_once_is_resumed_once(script, monkeypatch, capsys):
    assert script.main(tiny(script, "--save-every", 1)) == 0
    resume, codes = ["--resume", one("runs/*/agent_64.pt")], []
    def resume_again(*_):
        if not codes:
            codes.append(0)
            codes[0] = script.main(resume)
    spy(monkeypatch, script, "ppo_loss", resume_again)
    assert script.main(resume) == 0 and codes[0] == 2 and capsys.readouterr().err.count("error:") == 1


LEARNING = {"learning_rate": 1e-4, "num_envs": 8, "num_steps": 32, "anneal_lr": None, "gamma": 0.5, "gae_lambda": 0.5,
    "num_minibatches": 4, "update_epochs": 3, "norm_adv": None, "clip_coef": 1e-3, "clip_vloss": None, "vf_coef": 0.1,
    "max_grad_norm": 1e-3, "norm_value": None, "desired_kl": 1e-6, "rand_move_eps": 0.5, "seq_len": 16, "seed": 3,
    "ent_coef": 0.5, "encoder_size": 5, "hidden_size": 9, "hidden_layer_size": 5, "memoryless": None,
    "adam_betas": (0.5, 0.5), "anneal_moves": None, "total_timesteps": 128, "ema_decay": 0.5}  # fmt: skip
# what these do, other tests show
RUNNING = {"exp_name", "torch_deterministic", "cuda", "num_threads", "compile", "track", "wandb_project_name", "resume",
           "wandb_entity", "capture_video", "save_every", "env_id", "view_size", "ignore_mission", "eval_every",
           "eval_env_id", "eval_episodes", "eval_only", "novelty_coef"}  # fmt: skip


@cartpole_slowly
def test_every_learning_flag_changes_what_is_learned_and_the_same_flags_do_not(script, small, monkeypatch):
    """None stands for the opposite of the default."""
    monkeypatch.setattr(script, "evaluate", lambda *_: {"argmax": {}, "sampled": {}})
    def weights(**flags):
        flags = {"max_grad_norm": 0.1, "learning_rate": 0.01, "clip_coef": 0.01, **flags}
        return script.train(small(**flags), run_dir="run")[0].state_dict()
    expected = weights()
    assert same(expected, weights())
    for name, value in LEARNING.items():
        assert not same(expected, weights(**{name: not getattr(small(), name) if value is None else value})), name
    fields = {field.name for field in dataclasses.fields(ppo_lstm_minigrid.Args)}
    assert fields == LEARNING.keys() | RUNNING and not LEARNING.keys() & RUNNING


@cartpole_slowly
def test_every_running_flag_does_something(script, small, monkeypatch):
    """torch.compile here with its eager backend: the traced graph gives the same weights."""
    plain, _ = script.train(small(), run_dir="a")
    assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1
    script.train(small(torch_deterministic=False, num_threads=2, save_every=2, eval_every=1, exp_name="named"))
    assert not torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 2
    run_dir, real, compiled = one("runs/*__named__*"), torch.compile, []
    assert len(glob.glob(f"{run_dir}/agent_*.pt")) == 2 and len(scalars(run_dir)["eval/success_rate"]) == 4
    monkeypatch.setattr(torch, "compile", lambda f, **k: (compiled.append(1), real(f, backend="aot_eager", **k))[1])
    fast, _ = script.train(small(compile=True), run_dir="compiled")
    assert compiled
    torch.testing.assert_close(dict(fast.state_dict()), dict(plain.state_dict()), rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(Exception, match=r"(?i)cuda"):
        script.train(small(cuda=True), run_dir="b")
