"""A finished run -> a small checkpoint with weights, arguments, results, the command and the commit that made them.

    python benchmark/export.py runs/RUN/agent.pt benchmark/checkpoints/MiniGrid-MemoryS13-v0.pt

It evaluates and can be looked at, but does not train on. A test evaluates what benchmark/checkpoints holds.
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch
from run import INCIDENTAL, ROOT, load_script, read, words


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="agent.pt of a finished run")
    parser.add_argument("target", help="the file to write")
    parser.add_argument("--commit", help="the commit that trained it; default: what the runner noted")
    given = parser.parse_args(argv)
    checkpoint = torch.load(given.source, map_location="cpu", weights_only=True)
    script, seed = load_script(ROOT / checkpoint["script"]), checkpoint["args"]["seed"]
    results, noted = read(given.source.parent / "results.json"), given.source.parent / "command.txt"
    if results is None or results["global_step"] != checkpoint["global_step"]:
        parser.error(f"no results.json of step {checkpoint['global_step']} beside {given.source}")
    if given.commit is None and not noted.is_file():
        parser.error("--commit is missing, no runner noted it")
    commit = given.commit or noted.read_text(encoding="utf-8").splitlines()[-1].split(":")[0]

    defaults = vars(script.Args())
    args = checkpoint["args"] | {name: defaults[name] for name in (INCIDENTAL | {"exp_name"}) - {"num_threads"}}
    command = ["python", checkpoint["script"], *words(script, args, without=("seed",)), "--seed", str(seed)]
    kept = {name: checkpoint[name] for name in ("format", "script", "agent", "global_step") if name in checkpoint}
    torch.save(kept | {"args": args, "results": results["eval"], "command": shlex.join(command), "commit": commit},
               given.target)  # fmt: skip
    script.load_agent(given.target)
    print(f"{given.target}: {shlex.join(command)}, commit {commit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
