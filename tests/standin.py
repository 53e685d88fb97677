"""Stands in for a training script: a run folder in an instant, which ends as --do says."""

import json
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro


@dataclass
class Args:
    exp_name: str = "standin"
    seed: int = 1
    env_id: str = "E"
    eval_env_id: tuple[str, ...] = ()
    num_threads: int = 1
    resume: str | None = None
    memoryless: bool = False
    size: float = 1.0
    do: str = "finish"


if __name__ == "__main__":
    args = tyro.cli(Args)
    run = Path(args.resume or f"runs/{args.exp_name}__{args.seed}__{time.time_ns()}/agent.pt").parent
    note, final = {"script": "standin.py", "args": asdict(args), "SPS": 10.0}, {"argmax": {"success_rate": args.size}}
    run.mkdir(exist_ok=True)
    (run / "args.json").write_text(json.dumps(note))
    if args.do == "crash":
        raise ValueError("no gradient: größe")
    if args.do == "wait" and not args.resume:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Path("waiting").touch()
        signal.sigwait({signal.SIGTERM})
        (run / "agent.pt").touch()
        raise SystemExit(143)
    if args.do != "nothing":
        (run / "results.json").write_text(json.dumps({**note, "eval": {"E": final}}))
