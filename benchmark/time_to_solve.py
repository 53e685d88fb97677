"""Minutes of training until the exact success rate is 0.97: this project's script beside sb3-contrib's RecurrentPPO.

    python benchmark/time_to_solve.py --seeds 1-3 -o benchmark/results/time_to_solve.json       # up to an hour a run

Sides: ours; sb3-same, with our flags as far as it has them; sb3-own, its own defaults on eight environments. All are
evaluated by the script's `evaluate`, as often in steps as our flags say, on one thread, one run after another. The
minutes leave out start-up and evaluation. Flags of the script follow "--".
"""

import argparse
import json
import signal
import sys
import time
import types
from pathlib import Path

from run import commit, parse_seeds, split_argv
from throughput import call, log_to, machine, parse_flags, train_sb3

SIDES = ("ours", "sb3-same", "sb3-own")


def solve(side: str, flags: list[str], target: float, most: float) -> dict:
    """-> "minutes" and "steps" until the target was reached, and the "best" success rate; `most` minutes are tried."""
    script, args = parse_flags(flags)
    result = {"minutes": None, "best": 0.0}

    def evaluated(success: float, steps: int, seconds: float) -> bool:
        """-> whether it ends here."""
        result["best"] = max(result["best"], success)
        if success >= target - 1e-6 and not result["minutes"]:  # a log holds 32-bit numbers
            result.update(minutes=seconds / 60, steps=steps)
        return bool(result["minutes"]) or seconds > 60 * most

    if side != "ours":
        solve_with_sb3(script, args, side == "sb3-same", evaluated)
        return result
    stop, logged = [], {}

    def add_scalar(name, value, step):
        logged[name] = value
        if name == "eval/success_rate" and evaluated(value, step, step / logged["charts/SPS"]):
            stop.append(signal.SIGTERM)

    log_to(add_scalar)
    script.train(args, run_dir="run", stop=stop)
    return result


def solve_with_sb3(script, args, same_flags: bool, evaluated) -> None:
    import numpy as np
    import torch

    clock, last = [time.perf_counter()], [0]

    def enough(steps, model, one_hot):
        def act(x, state, done, generator=None):
            views = np.stack([one_hot(view) for view in x.numpy()])
            actions, state = model.predict(views, state, done.bool().numpy(), deterministic=generator is None)
            return torch.from_numpy(actions), state

        now, success = time.perf_counter(), 0.0
        if steps - last[0] >= args.eval_every * args.num_envs * args.num_steps:
            last[0] = steps
            player = types.SimpleNamespace(initial_state=lambda number: None, act=act)  # what `evaluate` needs
            success = script.evaluate(player, args, args.env_id, "cpu")["argmax"]["success_rate"]
        over = evaluated(success, steps, now - clock[0])
        clock[0] = clock[0] + time.perf_counter() - now if steps else time.perf_counter()  # evaluations do not count
        return over

    train_sb3(args, args.num_envs if same_flags else 8, same_flags, enough)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--seeds", type=parse_seeds, default=[1, 2, 3], help="1-3")
    parser.add_argument("--target", type=float, default=0.97, help="the exact success rate to reach (0.97)")
    parser.add_argument("--limit", type=float, default=60.0, help="minutes of training at most (60)")
    parser.add_argument("-o", "--out", type=Path, help="JSON file for the results")
    argv, flags = split_argv(argv)
    options, rows = parser.parse_args(argv), []
    about = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "machine": machine(), "flags": flags,
             "target": options.target, "limit": options.limit}  # fmt: skip
    for seed, side in ((seed, side) for seed in options.seeds for side in options.sides):
        row = call("time_to_solve", "solve", 120 * options.limit + 120, side=side, flags=[*flags, "--seed", str(seed)],
                   target=options.target, most=options.limit)  # fmt: skip
        text = f"not in {options.limit:g} minutes or its budget (best {row.get('best')})"
        text = f"{row['minutes']:.2f} minutes, {row['steps']:,} steps" if row.get("minutes") else row.get("error", text)
        print(f"{side:<9} seed {seed}: {text}", flush=True)
        rows.append({"side": side, "seed": seed, **row})
        if options.out:
            options.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
