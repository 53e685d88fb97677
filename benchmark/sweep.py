"""Random search over a W&B sweep file, on this machine and with no account.

    python benchmark/sweep.py benchmark/sweep_minigrid.yaml -n 20 -w 2
    python benchmark/sweep.py benchmark/sweep_minigrid.yaml -n 20 -o DIR -- --total-timesteps 500000

Draws n settings and runs each as {file name}-000, -001, ... under runs/ of the folder -o; draw i is the same whatever n is.
Start it again to go on: finished runs are skipped, interrupted ones resumed, and a larger -n adds draws. Ctrl-C or TERM lets
the runs save. At the end there is a table, best first, by the file's metric in the final evaluation (argmax).
The runs go through run.sh, the engine of the launchers; only --track is left out of the file's command.
"""

import argparse
import glob
import json
import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def draw(config: dict, index: int, seed: int = 0) -> dict:
    """Draw number `index`: {parameter: value}. Raises SystemExit for a distribution that is not known here."""
    rng = random.Random(f"{seed} {index}")
    return {name: draw_one(rng, name, spec) for name, spec in config["parameters"].items()}


def draw_one(rng: random.Random, name: str, spec: dict):
    if "value" in spec:
        return spec["value"]
    if "values" in spec:
        return rng.choices(spec["values"], spec.get("probabilities"))[0]
    low, high = spec.get("min"), spec.get("max")
    if any(isinstance(bound, bool) or not isinstance(bound, (int, float)) for bound in (low, high)):
        raise SystemExit(f"error: {name} needs value, values, or numbers as min and max (YAML takes 1e-3 for a word)")
    whole = isinstance(low, int) and isinstance(high, int)
    distribution = spec.get("distribution", "int_uniform" if whole else "uniform")  # W&B's defaults
    if distribution == "int_uniform":
        return rng.randint(low, high)
    if distribution == "uniform":
        return float(f"{rng.uniform(low, high):.4g}")
    if distribution == "log_uniform_values":
        return float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.4g}")
    raise SystemExit(f"error: {name} has the distribution {distribution!r}; here there are int_uniform, uniform, "
                     "log_uniform_values")  # fmt: skip


def flags(drawn: dict) -> list[str]:
    """The words of the command line. A true boolean is a flag, a false one nothing, as W&B writes them."""
    words = []
    for name, value in drawn.items():
        flag = "--" + name.replace("_", "-")
        words += ([flag] if value else []) if isinstance(value, bool) else [flag, str(value)]
    return words


def load(path: str) -> dict:
    with open(path) as file:
        config = yaml.safe_load(file)
    missing = {"program", "method", "metric", "parameters"} - config.keys()
    if missing or "env_id" not in config["parameters"]:
        raise SystemExit(f"error: {path} lacks {', '.join(sorted(missing)) or 'the parameter env_id'}")
    if config["method"] != "random":
        raise SystemExit(f"error: {path} asks for method {config['method']!r}; here there is random only")
    return config


def score(config: dict, results: dict) -> float:
    """The metric, as the script logs it, in the final evaluation."""
    prefix, _, rest = config["metric"]["name"].partition("/")
    metric, _, env_id = rest.partition("/")
    mode = {"eval": "argmax", "eval_sampled": "sampled"}[prefix]
    return results["eval"][env_id or results["env_id"]][mode][metric]


def table(config: dict, name: str, number: int, seed: int) -> str:
    """The finished draws, best first; what all of them share is left out."""
    varying = [parameter for parameter, spec in config["parameters"].items() if "value" not in spec]
    finished = []
    for index in range(number):
        for path in glob.glob(f"runs/*__{name}-{index:03d}__*/results.json"):
            results = json.loads(Path(path).read_text())
            if not results["args"]["eval_only"]:
                finished.append((score(config, results), index, results["SPS"]))
    finished.sort(key=lambda entry: entry[0], reverse=config["metric"].get("goal", "minimize") == "maximize")
    lines = [["draw", config["metric"]["name"], "steps/s", *varying]]
    for value, index, speed in finished:
        drawn = draw(config, index, seed)
        lines.append([f"{index:03d}", f"{value:.4g}", f"{speed:,.0f}", *(str(drawn[parameter]) for parameter in varying)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return f"{text}\n{len(finished)} of {number} draws have finished"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="a sweep file, benchmark/sweep_*.yaml")
    parser.add_argument("-n", type=int, default=20, help="draws (20)")
    parser.add_argument("-w", default="1", help="runs at a time (1)")
    parser.add_argument("-o", default=".", help="folder to work in (.)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    parser.add_argument("--list", action="store_true", help="list the commands, run nothing")
    parser.epilog = "What follows -- are further flags for every run."
    argv = sys.argv[1:] if argv is None else argv
    border = argv.index("--") if "--" in argv else len(argv)
    args, further = parser.parse_args(argv[:border]), argv[border + 1 :]

    config = load(args.file)
    name = Path(args.file).stem + (f"-s{args.seed}" if args.seed else "")
    rows = []
    for index in range(args.n):
        drawn = draw(config, index, args.seed)
        env_id, seed = drawn.pop("env_id"), drawn.pop("seed", 1)
        drawn.pop("num_threads", None)  # run.sh's, by -t
        rows.append(f"{name}-{index:03d} | {env_id} | {' '.join(flags(drawn))} | {seed} |")
    threads = str(draw(config, 0, args.seed).get("num_threads", 1))
    engine = ["bash", "-c", 'script=$1 rows=$2; shift 2; . "$0"', str(ROOT / "benchmark" / "run.sh"), config["program"],
              "\n".join(rows), "-w", args.w, "-o", args.o, "-t", threads, *(["-l"] if args.list else []),
              "--", *further]  # fmt: skip
    process = subprocess.Popen(engine, env={"PYTHON": sys.executable, **os.environ})
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal's Ctrl-C reaches run.sh by itself; it heeds the first alone
        signal.signal(number, lambda *_: process.send_signal(signal.SIGTERM))
    status = process.wait()
    if not args.list and os.path.isdir(args.o):
        os.chdir(args.o)
        print(table(config, name, args.n, args.seed))
    return status


if __name__ == "__main__":
    sys.exit(main())
