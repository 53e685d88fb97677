"""Does training work on this GPU, how fast is it, and does it beat one core? gpu.sh runs this.

Prints a table and writes it to the folder -o (benchmark/results/gpu) as gpu.md, with gpu.json beside it:
  checks    recurrence, GAE and environments against the CPU's; a run stopped and resumed against one that was not
  waits     operations of a rollout that make the program wait for the GPU
  torchrun  a run under torchrun with one process, and what an all-reduce takes there
  speed     training steps/s of the works below: eager, on one core of this machine, compiled
  solve     seconds of training until the exact success rate is 0.97, two seeds each
Each part is a process with its own time limit; one that fails or hangs is told and the others go on. What would begin
after MINUTES is left out. Without a GPU all of it runs small on the CPU, to try the script (default folder: runs/gpu).
"""

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path

import torch
from run import ROOT, commit
from throughput import WORK, call, log_to, machine, measure, parse_flags

MINUTES = 8
SMALL = ["--num-envs", "8", "--num-steps", "16", "--seq-len", "8", "--num-minibatches", "2", "--update-epochs", "2",
         "--hidden-size", "8"]  # fmt: skip
WORKS = {
    "defaults": [],
    "64 envs x 128 steps, 64 units": WORK,
    "4,096 envs x 64 steps, 128 units": ["--num-envs", "4096", "--num-steps", "64", "--hidden-size", "128",
                                         "--update-epochs", "4", "--num-minibatches", "4"],
}  # fmt: skip
SOLVE = ["--num-envs", "512", "--total-timesteps", "20000000", "--eval-every", "4"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# ---- In a process of their own: -> [(what, result)]
def distance(a, b) -> str:
    """What tells the tensors of b from those of a."""
    most = max((x.double().cpu() - y.double().cpu()).abs().max().item() for x, y in zip(a, b, strict=True))
    return "bit for bit" if most == 0 else f"largest difference {most:.2g}"


def same_steps(ours, theirs, steps: int) -> str:
    """Two batched environments from the same state on; after its first episode each draws its own."""
    ours.reset(seed=1)
    theirs.reset(seed=1)
    theirs.load_state_dict({**ours.state_dict(), "generator": theirs.state_dict()["generator"]})
    same, running, compared = True, torch.ones(ours.num_envs, dtype=torch.bool), 0
    for _ in range(steps):
        actions = torch.randint(0, 3, (ours.num_envs,))
        a, b = ours.step(actions)[:4], [tensor.cpu() for tensor in theirs.step(actions.to(DEVICE))[:4]]
        same &= all(torch.equal(p[running], q[running]) for p, q in zip(a[1:], b[1:], strict=True))
        running &= ~(a[2] | a[3])
        same &= torch.equal(a[0][running], b[0][running])
        compared += int(running.sum())
    return f"{compared:,} steps " + ("equal" if same else "NOT EQUAL")


def checks(small: bool) -> list:
    script, args = parse_flags([*SMALL, "--total-timesteps", "512", "--eval-every", "0"])
    envs = script.make_envs(args, args.env_id, 8, "cpu")
    agents = [script.Agent(envs.single_observation_space, int(envs.single_action_space.n), args) for _ in range(2)]
    agents[1].load_state_dict(agents[0].state_dict())
    T, N, rows, found = 64, 8, [], []
    x, dones = torch.randint(0, 4, (T, N, *envs.single_observation_space.shape), dtype=torch.uint8), torch.rand(T, N) < 0.1
    for agent, device in zip(agents, ("cpu", DEVICE), strict=True):
        agent, x, dones = agent.to(device), x.to(device), dones.float().to(device)
        whole, _ = agent.get_states(x.flatten(0, 1), agent.initial_state(N), dones.flatten())
        state, steps = agent.initial_state(N), []
        for t in range(T):
            hidden, state = agent.get_states(x[t], state, dones[t])
            steps.append(hidden)
        whole.square().sum().backward()
        found.append([whole, *(p.grad for p in agent.parameters() if p.grad is not None)])
    rows.append(("recurrence, all steps at once against one by one", distance([whole], [torch.cat(steps)])))
    rows.append(("recurrence, outputs and gradients against the CPU's", distance(*found)))
    inputs = [torch.rand(T, N), torch.rand(T, N), dones, torch.rand(N), torch.zeros(N)]
    both = [script.gae(*(tensor.to(device) for tensor in inputs), 0.99, 0.95) for device in ("cpu", DEVICE)]
    rows.append(("GAE against the CPU's", distance(*both)))
    for env_id in ("MiniGrid-MemoryS13-v0", "MiniGrid-MemoryS17Random-v0", "MiniGrid-CustomMaze-S13-v0"):
        pair = (script.make_envs(args, env_id, 64, device) for device in ("cpu", DEVICE))
        rows.append((f"{env_id} against the CPU's", same_steps(*pair, 100 if small else 300)))
    log_to(lambda *_: None)
    os.makedirs("a")
    os.makedirs("b")
    straight, _ = script.train(args, None, "a")
    script.train(args, None, "b", [15])  # a signal has come: it ends after the first iteration
    resumed, _ = script.train(args, script.load_checkpoint("b/agent.pt"), "b")
    return [*rows, ("a resumed run against one that was not", distance(straight.parameters(), resumed.parameters()))]


def waits(small: bool) -> list:
    """From the first to the last environment step of the second rollout of a run."""
    script, args = parse_flags(SMALL if small else [])
    T, calls = args.num_steps, []
    args.total_timesteps, args.eval_every = 3 * args.num_envs * T, 0

    def make_envs(*inputs, make=script.make_envs):
        envs = make(*inputs)

        def step(actions, step=envs.step):
            calls.append(actions)
            if DEVICE == "cuda" and len(calls) == T + 1:
                torch.cuda.set_sync_debug_mode("warn")
            result = step(actions)
            if DEVICE == "cuda" and len(calls) == 2 * T:
                torch.cuda.set_sync_debug_mode("default")
            return result

        envs.step = step
        return envs

    script.make_envs = make_envs
    log_to(lambda *_: None)
    os.makedirs("run")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        script.train(args, None, "run")
    places = [f"{Path(w.filename).name}:{w.lineno}" for w in seen if "synchronizing CUDA" in str(w.message)]
    text = f"{len(places)}, at {', '.join(sorted(set(places)))}" if places else "none"
    return [(f"waits in the {T} steps of a rollout", text if DEVICE == "cuda" else "no GPU to wait for")]


def torchrun(small: bool) -> list:
    import torch.distributed as dist

    script, backend = parse_flags([])[0], "nccl" if DEVICE == "cuda" else "gloo"
    log_to(lambda *_: None)
    code = script.main([*SMALL, "--total-timesteps", "512"])
    if not dist.is_initialized():
        dist.init_process_group(backend)
    gradients = torch.ones(100_000, device=DEVICE)
    for step in range(110):
        if step == 10:
            gradients.sum().item()
            begin = time.perf_counter()
        dist.all_reduce(gradients)
    gradients.sum().item()
    took = (time.perf_counter() - begin) * 1e4
    dist.destroy_process_group()
    return [("a run, one process", "done" if code == 0 else f"FAILED: exit code {code}"),
            (f"{backend}, all-reduce of 400 KB", f"{took:.0f} us")]  # fmt: skip


# ---- Parts: (limit in seconds, small, ...) -> [(what, result)]
def part(limit: float, small: bool, name: str) -> list:
    start = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "--no-python")
    start = (*(start if name == "torchrun" else ()), sys.executable)
    rows = call("gpu", name, limit, start, small=small)
    return [(name, f"FAILED: {rows['error']}")] if "error" in rows else rows


def speed(limit: float, small: bool, work: str, how: str) -> list:
    flags = WORKS[work] + (SMALL if small else []) + {"compiled": ["--compile"], "one core": ["--no-cuda"]}.get(how, [])
    row = measure(f"{work}, {how}", flags, seconds=0.3 if small else 6, limit=limit)
    memory = f", {row['gpu_memory_mb']:,.0f} MB of the GPU" if "gpu_memory_mb" in row else ""
    return [(f"{work}, {how}", f"FAILED: {row['error']}" if "error" in row else f"{row['SPS']:,.0f} steps/s{memory}")]


def solve(limit: float, small: bool, env_id: str, seed: int) -> list:
    flags = [*SMALL, "--total-timesteps", "1280", "--eval-every", "5"] if small else SOLVE
    row = call("time_to_solve", "solve", limit, side="ours", flags=["--env-id", env_id, "--seed", str(seed), *flags],
               target=0 if small else 0.97, most=1)  # fmt: skip
    text = f"FAILED: {row['error']}" if "error" in row else f"not in a minute (best {row['best']:.3f})"
    text = f"{60 * row['minutes']:.1f} s of training, {row['steps']:,} steps" if row.get("minutes") else text
    return [(f"{env_id}, seed {seed}", text)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, help="folder for the table")
    parser.add_argument("--small", action="store_true", help="the small version; without a GPU it is the only one")
    options = parser.parse_args(argv)
    small = options.small or DEVICE == "cpu"
    works, seeds = (list(WORKS)[:1], (1,)) if small else (list(WORKS), (1, 2))
    tasks = ("MiniGrid-MemoryS7-v0",) if small else ("MiniGrid-MemoryS13-v0", "MiniGrid-MemoryS17Random-v0")
    # what tells most comes first: a slow machine leaves out the parts at the end
    plan = [(part, 60, (name,)) for name in ("checks", "waits", "torchrun")]
    plan += [(speed, 45, (work, "eager")) for work in WORKS]
    plan += [(solve, 75, (task, seed)) for task in tasks for seed in seeds]
    plan += [(speed, 45, (work, "one core")) for work in works[:2]]
    plan += [(speed, 90, (work, "compiled")) for work in works]
    out = options.out or (Path("runs/gpu") if small else ROOT / "benchmark" / "results" / "gpu")
    out.mkdir(parents=True, exist_ok=True)
    begin, rows = time.time(), []
    about = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "small": small, "machine": machine(),
             "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"}  # fmt: skip
    for function, limit, inputs in plan:
        left, kind = 60 * MINUTES - (time.time() - begin), inputs[0] if function is part else function.__name__
        try:
            found = function(min(limit, left + 30), small, *inputs) if left > 0 else [(str(inputs), "left out: too late")]
        except Exception as error:
            found = [(str(inputs), f"FAILED: {type(error).__name__}: {error}")]
        for what, result in found:
            rows.append({"part": kind, "what": what, "result": result})
            print(f"{kind:<9} {what}: {result}", flush=True)
        about["seconds"] = round(time.time() - begin)
        (out / "gpu.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
        head = [" | ".join(f"{name} {value}" for name, value in {**about, **about["machine"]}.items() if name != "machine"),
                "", "| part | what | result |", "| --- | --- | --- |"]  # fmt: skip
        lines = [f"| {row['part']} | {row['what']} | {row['result']} |".replace("\n", " ") for row in rows]
        (out / "gpu.md").write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
    print(f"-> {out}/gpu.md and gpu.json, {about['seconds']} s")
    return int(any(word in row["result"] for row in rows for word in ("FAILED", "NOT EQUAL")))


if __name__ == "__main__":
    sys.exit(main())
