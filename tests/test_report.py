"""What benchmark/ makes of finished runs: statistics by hand, report.py, export.py, the published checkpoints."""

import importlib
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

BENCH = Path(__file__).parent.parent / "benchmark"
sys.path.append(str(BENCH))
export, report = importlib.import_module("export"), importlib.import_module("report")


def test_statistics_by_hand():
    steps = [10, 20, 30, 40, 50]
    for values, mark, held in (([0.1, 0.98, 0.5, 0.97, 1], 0.97, 40), ([0.97] * 5, 0.97, 10), ([], 1, math.inf),
                               ([1, 1, 1, 1, 0.9], 1, math.inf), ([1, math.nan, 1, 1, 1], 1, 30)):  # fmt: skip
        assert report.steps_to_mark(steps[: len(values)], values, mark) == held
    assert report.iqm([np.array([0, 1, 2, 3, 4, 5, 6, 100])]) == 3.5 and report.iqm([np.array([1, 2, 9])]) == 4
    assert report.improvement([np.array([1.0, 2.0]), np.array([1.0, 0.0, 3.0])]) == pytest.approx(3.5 / 6)
    samples = np.random.default_rng(3).normal(5.0, 1.0, size=(300, 10))
    covered = [low <= 5.0 <= high for low, high in (report.interval([sample], report.iqm, 400) for sample in samples)]
    assert 0.85 < np.mean(covered) < 0.97  # a percentile bootstrap of ten is somewhat narrow
    assert report.interval([[0.3]], report.iqm) is None and report.interval([[1, 1], [0]], report.improvement) == (1, 1)


def make_run(name, seed, curve, script="ppo_lstm_minigrid", **changes):
    """A run folder as the scripts write it, with an evaluation each 1,000 steps."""
    args = {**vars(importlib.import_module(script).Args()), "exp_name": name, "seed": seed, **changes}
    folder, metrics = Path(f"runs[1]/{time.time_ns()}"), ("success_rate", "episodic_return", "episodic_length")
    with SummaryWriter(folder) as writer:
        for step, value in enumerate(curve, 1):
            for key in (f"{prefix}/{metric}" for prefix in ("eval", "eval_sampled") for metric in metrics):
                writer.add_scalar(key, value, 1000 * step)
            writer.add_scalar("charts/SPS", 100.0, 1000 * step)
    evaluation = {args["env_id"]: dict.fromkeys(("argmax", "sampled"), dict.fromkeys(metrics, curve[-1]))}
    (folder / "results.json").write_text(json.dumps({
        "script": f"{script}.py", "args": args, "global_step": 1000 * len(curve), "SPS": 100.0, "eval": evaluation}))
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*.*") if path.is_file()}


def test_report_of_runs(capsys):
    for seed, curve in ((1, [0.5, 0.98, 0.5, 1.0]), (2, [0.5, 0.99, 1.0, 1.0]), (3, [0.5, 0.5, 0.5, 0.6])):
        make_run("mine", seed, curve, num_envs=64, norm_adv=False)
    make_run("control", 1, [0.5, 0.5], num_envs=64, norm_adv=False, memoryless=True)
    make_run("mine", 1, [0.25, 0.25], num_envs=32)  # other flags under the same name: another row
    make_run("pole", 1, [100.0, 480.0, 470.0, 490.0], script="ppo_lstm_cartpole_novel")
    make_run("evaluated", 1, [1.0], eval_only=True)
    logless, cut = make_run("logless", 1, [1.0]), make_run("cut", 1, [1.0])
    next(logless.glob("events*")).unlink()
    (cut / "results.json").write_text('{"args": {')
    published = contents(BENCH / "results")
    assert report.main(["runs[1]"]) == 1 and published == contents(BENCH / "results")
    told = capsys.readouterr()
    assert f"{logless}: ValueError: it has no event file" in told.err and str(cut) in told.err
    text = Path("runs[1]/report/README.md").read_text()
    (row,) = (line for line in text.splitlines() if line.startswith("| mine | `"))
    assert "`python ppo_lstm_minigrid.py --num-envs 64 --no-norm-adv` | 3 " in row
    assert "| 0.867 [0.600, 1.000] | 0.600 (seed 3) |" in row and "| 0.004 (0.002 to 0.004), 2/3 at 0.97 |" in row
    assert row.endswith("| 0.500 (n = 1) | 1.00 [1.00, 1.00] |") and "evaluated |" not in text
    assert "| mine (2) | `python ppo_lstm_minigrid.py --num-envs 32` | 1 |" in text
    assert "| pole | 475 | 1/1 | 0.004 | 0.004 to 0.004 | 0.667 |" in text and "| pole | 500 | 0/1 | never |" in text
    assert all(1000 < Path("runs[1]/report", name).stat().st_size < 300_000 for name in report.PICTURES.values())


def test_report_publishes_only_when_told_and_all_or_nothing(monkeypatch):
    monkeypatch.setattr(report, "ROOT", Path().resolve())
    os.makedirs("benchmark/results/raw")
    for path in (BENCH / "results" / "raw").glob("memory-s13_*"):
        shutil.copy(path, "benchmark/results/raw")
    shutil.copy(BENCH / "report.md", "benchmark")
    marks = "<!-- results: memory-s13 memory-s13:MiniGrid-MemoryS17Random-v0 mine -->\nold\n<!-- /results -->"
    Path("README.md").write_text(f"a\n{marks}\nz\n")
    make_run("mine", 1, [0.5, 1.0])
    for arguments in (["runs[1]", "-o", "benchmark/results"], ["nosuch"], []):
        with pytest.raises(SystemExit):
            report.main(arguments)
    assert report.main(["runs[1]", "--publish"]) == 0
    first, text = contents("."), Path("README.md").read_text()
    assert "old" not in text and text.endswith("\n<!-- /results -->\nz\n")
    assert text.index("| memory-s13 | 10 | 1.000 [1.000, 1.000] |") < text.index("| mine | 1 | 1.000 |")
    assert "| memory-s13 on MiniGrid-MemoryS17Random-v0 | 10 | 0.995 [0.985, 0.999] | 0.966 (seed 3) |" in text
    assert report.main(["--publish"]) == 0 and first == contents(".")  # the same from the files in raw/ alone
    make_run("new", 1, [0.5, 0.5])
    make_run("mine", 1, [0.5, 0.5], num_envs=32)
    first = contents(".")
    with pytest.raises(SystemExit, match=r"mine__1\.json"):
        report.main(["runs[1]", "--publish"])
    assert first == contents(".")


def test_exported_checkpoint_evaluates_and_says_how_it_was_made():
    script = importlib.import_module("ppo_lstm_minigrid")
    tiny = ["--num-envs=4", "--num-steps=16", "--seq-len=8", "--num-minibatches=2", "--total-timesteps=128"]
    assert script.main([*tiny, "--env-id=MiniGrid-MemoryS7-v0", "--seed=3", "--exp-name=a", "--no-cuda"]) == 0
    (source,) = map(str, Path().glob("runs/*/agent.pt"))
    with pytest.raises(SystemExit):
        export.main([source, "x.pt"])
    assert export.main([source, "x.pt", "--commit", "abc1234"]) == 0
    exported = torch.load("x.pt", weights_only=True)
    assert exported["commit"] == "abc1234" and not {"optimizer", "ranks"} & exported.keys()
    again, _ = script.parse(exported["command"].split()[2:])
    assert again.seed == 3 and vars(again) == vars(script.load_agent("x.pt")[1]) and again.exp_name != "a"
    assert script.main(["--resume", "x.pt", "--eval-only"]) == 0


@pytest.mark.parametrize("path", [
    pytest.param(path, id=path.stem, marks=[] if "Memory" in path.stem else [pytest.mark.slow])
    for path in sorted((BENCH / "checkpoints").glob("*.pt"))
])  # fmt: skip
def test_a_published_checkpoint_does_what_it_says(path):
    checkpoint = torch.load(path, weights_only=True)
    script = importlib.import_module(checkpoint["script"].removesuffix(".py"))
    agent, args = script.load_agent(str(path))
    assert path.stat().st_size < 1e6 and checkpoint["command"].endswith(f"--seed {args.seed}")
    for env_id, said in checkpoint["results"].items():
        found, said = script.evaluate(agent, args, env_id, "cpu")["argmax"], said["argmax"]
        assert abs(found["success_rate"] - said["success_rate"]) < 0.01
