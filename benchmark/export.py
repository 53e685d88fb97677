"""A finished run -> a small checkpoint that evaluates and can be looked at, but does not train on.

    python benchmark/export.py runs/RUN/agent.pt benchmark/checkpoints/MiniGrid-MemoryS13-v0.pt

It keeps the weights, the arguments and the results, with the command and the commit that made them; optimizer, storage and
generators stay behind. The new file is loaded and evaluated before it is called done.
"""

import argparse
import json
import os
import sys

import torch
from report import ROOT, changed, command, load_script

# what says nothing of the agent, and may name a path or a person: as the script has it
FORGOTTEN = ("exp_name", "track", "wandb_project_name", "wandb_entity", "capture_video", "save_every", "resume", "eval_only")


def export(source: str, target: str, commit: str | None = None) -> dict:
    """Write `target` from a run's agent.pt; -> what it holds. Raises SystemExit with one line where that cannot be."""
    folder = os.path.dirname(source)
    checkpoint = torch.load(source, map_location="cpu", weights_only=True)
    script = load_script(checkpoint["script"])
    try:
        with open(os.path.join(folder, "results.json")) as file:
            results = json.load(file)
    except FileNotFoundError:
        raise SystemExit(f"error: {folder} has no results.json; let the run finish first") from None
    if results["global_step"] != checkpoint["global_step"]:
        raise SystemExit(f"error: results.json is of step {results['global_step']}, {source} of {checkpoint['global_step']}")
    if commit is None and os.path.isfile(os.path.join(folder, "command.txt")):  # the launcher's
        with open(os.path.join(folder, "command.txt")) as file:
            commit = file.read().splitlines()[-1].split(":")[0]
    if commit is None:
        raise SystemExit("error: --commit is missing, no launcher noted it")

    defaults = script.Args()
    args = {**checkpoint["args"], **{name: getattr(defaults, name) for name in FORGOTTEN}}
    made_by = command({"script": checkpoint["script"], "args": changed(checkpoint["script"], args)})
    exported = {"format": checkpoint["format"], "script": checkpoint["script"], "args": args, "agent": checkpoint["agent"],
                "global_step": checkpoint["global_step"], "results": results["eval"],
                "command": f"{made_by} --seed {args['seed']}", "commit": commit}  # fmt: skip
    script.save_checkpoint(target, exported)

    agent, loaded = script.load_agent(target)
    for env_id, result in results["eval"].items():
        was, now = (r["argmax"]["success_rate"] for r in (result, script.evaluate(agent, loaded, env_id, "cpu")))
        print(f"{env_id}: argmax success {now:.4f}")
        if abs(was - now) > 0.01:
            raise SystemExit(f"error: results.json says {was:.4f}, but {target} has {now:.4f} on {env_id}")
    print(f"{target}: {os.path.getsize(target):,} bytes, {exported['command']}, commit {commit}")
    return exported


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="agent.pt of a finished run")
    parser.add_argument("target", nargs="?", help="default: benchmark/checkpoints/{env_id}.pt")
    parser.add_argument("--commit", help="the commit that trained it; default: what the launcher noted")
    args = parser.parse_args(argv)
    if args.target is None:
        env_id = torch.load(args.source, map_location="cpu", weights_only=True)["args"]["env_id"]
        args.target = str(ROOT / "benchmark" / "checkpoints" / f"{env_id}.pt")
    export(args.source, args.target, args.commit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
