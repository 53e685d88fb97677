"""Does training work on this GPU, how fast is it, and does it beat one core? In nine minutes and one table.

Prints a table and writes it to the folder -o (benchmark/results/gpu) as gpu.md, with gpu.json beside it: whether
recurrence, GAE, environments and resuming are as on the CPU; what in a rollout waits for the GPU; a run under torchrun;
training steps/s, eager, compiled and on one core of the same machine; seconds of training until the exact success rate
is 0.97. Each part is a process with its own time limit; one that fails or hangs is told and the others go on. What
would begin after MINUTES is left out. Without a GPU all runs small on the CPU, to try the script (-o runs/gpu).
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import torch
from run import ROOT, commit
from throughput import WORK, call, log_to, machine, measure, parse_flags, wrap_steps

MINUTES = 8
SMALL = ["--num-envs=8", "--num-steps=16", "--seq-len=8", "--num-minibatches=2", "--update-epochs=2", "--hidden-size=8"]
LARGE = ["--num-steps=64", "--hidden-size=128", "--update-epochs=4", "--num-minibatches=4", "--desired-kl=0"]
WORKS = {"64 envs x 128 steps, 64 units": WORK, "defaults": [],
         "4,096 envs x 64 steps, 128 units": [*LARGE, "--num-envs", "4096"],
         "16,384 envs x 64 steps, 128 units": [*LARGE, "--num-envs", "16384"]}  # fmt: skip
SOLVE = ["--num-envs", "512", "--total-timesteps", "20000000", "--eval-every", "4"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRIAL, SIZES = (SMALL, ["S7"]) if DEVICE == "cpu" else ([], ["S13", "S17Random"])


# ---- In a process of their own: -> [(what, result)]
def distance(a, b) -> str:
    """What tells the tensors of b from those of a."""
    most = max((x.double().cpu() - y.double().cpu()).abs().max().item() for x, y in zip(a, b, strict=True))
    return "bit for bit" if most == 0 else f"largest difference {most:.2g}"


def same_steps(ours, theirs) -> str:
    """Two batched environments from the same state on; after its first episode each draws its own."""
    ours.reset(seed=1)
    theirs.reset(seed=1)
    theirs.load_state_dict({**ours.state_dict(), "generator": theirs.state_dict()["generator"]})
    same, running = True, torch.ones(ours.num_envs, dtype=torch.bool)
    for _ in range(300):
        actions = torch.randint(0, 3, (ours.num_envs,))
        a, b = ours.step(actions)[:4], [tensor.cpu() for tensor in theirs.step(actions.to(DEVICE))[:4]]
        same &= all(torch.equal(p[running], q[running]) for p, q in zip(a[1:], b[1:], strict=True))
        running &= ~(a[2] | a[3])
        same &= torch.equal(a[0][running], b[0][running])
    return "equal" if same else "NOT EQUAL"


def checks() -> list:
    script, args = parse_flags([*SMALL, "--total-timesteps", "512", "--eval-every", "0"])
    envs, T, N, found = script.make_envs(args, args.env_id, 8, "cpu"), 64, 8, []
    agents = [script.Agent(envs.single_observation_space, int(envs.single_action_space.n), args) for _ in range(2)]
    agents[1].load_state_dict(agents[0].state_dict())
    x = torch.randint(0, 4, (T, N, *envs.single_observation_space.shape), dtype=torch.uint8)
    dones = (torch.rand(T, N) < 0.1).float()
    for agent, device in zip(agents, ("cpu", DEVICE), strict=True):
        agent, x, dones = agent.to(device), x.to(device), dones.to(device)
        whole, _ = agent.get_states(x.flatten(0, 1), agent.initial_state(N), dones.flatten())
        state, steps = agent.initial_state(N), []
        for t in range(T):
            hidden, state = agent.get_states(x[t], state, dones[t])
            steps.append(hidden)
        whole.square().sum().backward()
        found.append([whole, *(p.grad for p in agent.parameters() if p.grad is not None)])
    inputs = [torch.rand(T, N), torch.rand(T, N), dones, torch.rand(N), torch.zeros(N)]
    both = [script.gae(*(tensor.to(device) for tensor in inputs), 0.99, 0.95) for device in ("cpu", DEVICE)]
    rows = [("recurrence, all steps at once against one by one", distance([whole], [torch.cat(steps)])),
            ("recurrence, outputs and gradients against the CPU's", distance(*found)),
            ("GAE against the CPU's", distance(*both))]  # fmt: skip
    for env_id in ("MiniGrid-MemoryS13-v0", "MiniGrid-MemoryS17Random-v0", "MiniGrid-CustomMaze-S13-v0"):
        pair = (script.make_envs(args, env_id, 64, device) for device in ("cpu", DEVICE))
        rows.append((f"{env_id} against the CPU's", same_steps(*pair)))
    log_to(lambda *_: None)
    straight, _ = script.train(args, None, "a")
    script.train(args, None, "b", [15])  # a signal has come: it ends after the first iteration
    resumed, _ = script.train(args, script.load_checkpoint("b/agent.pt"), "b")
    return [*rows, ("a resumed run against one that was not", distance(straight.parameters(), resumed.parameters()))]


def waits() -> list:
    """From the first to the last environment step of the second rollout of a run."""
    script, args = parse_flags(TRIAL)
    T, calls = args.num_steps, []
    args.total_timesteps, args.eval_every = 3 * args.num_envs * T, 0

    def watched(step):
        def call(actions):
            calls.append(actions)
            if DEVICE == "cuda" and len(calls) in (T + 1, 2 * T):
                torch.cuda.set_sync_debug_mode("warn" if len(calls) == T + 1 else "default")
            return step(actions)

        return call

    wrap_steps(script, watched)
    log_to(lambda *_: None)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        script.train(args, None, "run")
    places = [f"{Path(w.filename).name}:{w.lineno}" for w in seen if "synchronizing CUDA" in str(w.message)]
    text = f"{len(places)}, at {', '.join(sorted(set(places)))}" if places else "none"
    return [(f"waits in the {T} steps of a rollout", text if DEVICE == "cuda" else "no GPU to wait for")]


def torchrun() -> list:
    log_to(lambda *_: None)
    code = parse_flags([])[0].main([*SMALL, "--total-timesteps", "512"])
    return [("a run, one process", f"FAILED: exit code {code}" if code else "done")]


# ---- Parts: (limit in seconds, ...) -> [(what, result)]
def part(limit: float, name: str) -> list:
    start = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "--no-python")
    rows = call("gpu", name, limit, (*(start if name == "torchrun" else ()), sys.executable))
    return [(name, f"FAILED: {rows['error']}")] if isinstance(rows, dict) else rows


def speed(limit: float, work: str, how: str) -> list:
    flags = WORKS[work] + TRIAL + {"compiled": ["--compile"], "one core": ["--no-cuda"]}.get(how, [])
    row = measure(f"{work}, {how}", flags, seconds=0.3 if TRIAL else 6, limit=limit)
    return [(f"{work}, {how}", f"FAILED: {row['error']}" if "error" in row else f"{row['SPS']:,.0f} steps/s")]


def solve(limit: float, env_id: str, seed: int) -> list:
    flags = [*TRIAL, "--total-timesteps", "1280", "--eval-every", "5"] if TRIAL else SOLVE
    flags = ["--env-id", env_id, "--seed", str(seed), *flags]
    row = call("time_to_solve", "solve", limit, side="ours", flags=flags, target=0 if TRIAL else 0.97, most=1)
    text = f"FAILED: {row['error']}" if "error" in row else f"not in a minute (best {row['best']:.3f})"
    text = f"{60 * row['minutes']:.1f} s of training, {row['steps']:,} steps" if row.get("minutes") else text
    return [(f"{env_id}, seed {seed}", text)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, help="folder for the table",
                        default=Path("runs/gpu") if TRIAL else ROOT / "benchmark" / "results" / "gpu")  # fmt: skip
    out, begin, rows = parser.parse_args(argv).out, time.time(), []
    # what tells most comes first: a slow machine leaves out the parts at the end
    plan = [(part, 60, (name,)) for name in ("checks", "waits", "torchrun")]
    plan += [(speed, 45, (work, "eager")) for work in WORKS]
    plan += [(solve, 75, (f"MiniGrid-Memory{size}-v0", seed)) for size in SIZES for seed in (1, 2)[: len(SIZES)]]
    for how, limit in (("one core", 45), ("compiled", 90)):
        plan += [(speed, limit, (work, how)) for work in list(WORKS)[1 : 1 + len(SIZES)]]
    out.mkdir(parents=True, exist_ok=True)
    about = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), **machine(),
             "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu, a trial"}  # fmt: skip
    for function, limit, inputs in plan:
        left, kind = 60 * MINUTES - (time.time() - begin), inputs[0] if function is part else function.__name__
        try:
            found = function(min(limit, left + 30), *inputs) if left > 0 else [(str(inputs), "left out: too late")]
        except Exception as error:
            found = [(str(inputs), f"FAILED: {type(error).__name__}: {error}")]
        for what, result in found:
            rows.append({"part": kind, "what": what, "result": result})
            print(f"{kind:<9} {what}: {result}", flush=True)
        about["seconds"] = round(time.time() - begin)
        (out / "gpu.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
        lines = [", ".join(f"{name} {value}" for name, value in about.items()), "", "| part | what | result |"]
        lines += ["| --- | --- | --- |", *(f"| {' | '.join(row.values())} |".replace("\n", " ") for row in rows)]
        (out / "gpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"-> {out}/gpu.md and gpu.json, {about['seconds']} s")
    return int(any(word in row["result"] for row in rows for word in ("FAILED", "NOT EQUAL")))


if __name__ == "__main__":
    sys.exit(main())
