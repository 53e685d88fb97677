"""Random search over a W&B sweep file, on this machine and with no account.

    python benchmark/sweep.py benchmark/sweep_minigrid.yaml -n 20 -w 2 -- --total-timesteps 500000

Draws n settings and runs each as {file name}-000, -001, ... (see run.py); draw i is the same whatever n is. Prints a
table, best first, by the file's metric in the final evaluation. Each value is passed on as it is, false and lists too.
"""

import argparse
import contextlib
import math
import random
import re
import sys
from pathlib import Path

import yaml
from run import LATER, ROOT, Job, front, read

METRIC = "(eval|eval_sampled)/(success_rate|episodic_return|episodic_length)(?:/(.+))?"


def draw(rng: random.Random, name: str, spec: dict):
    """A value of one parameter. Raises ValueError for what is not known here."""
    if "value" in spec:
        return spec["value"]
    if spec.get("values"):
        return rng.choices(spec["values"], spec.get("probabilities"))[0]
    low, high = spec.get("min"), spec.get("max")
    if any(isinstance(bound, bool) or not isinstance(bound, (int, float)) for bound in (low, high)):
        raise ValueError(f"{name} needs value, values, or numbers as min and max (YAML takes 1e-3 for a word)")
    kind = spec.get("distribution", "int_uniform" if isinstance(low + high, int) else "uniform")  # W&B's defaults
    if kind not in ("int_uniform", "uniform", "log_uniform_values"):
        raise ValueError(f"{name} has the distribution {kind!r}; here: int_uniform, uniform, log_uniform_values")
    if kind == "int_uniform":
        return rng.randint(low, high)
    value = rng.uniform(low, high) if kind == "uniform" else math.exp(rng.uniform(math.log(low), math.log(high)))
    return float(f"{value:.4g}")


def flags(name: str, value) -> list[str]:
    """The words of the command line."""
    name = name.replace("_", "-")
    if isinstance(value, bool):  # W&B's files have to say no_x: true for x: false
        yes = name.removeprefix("no-")
        return [f"--{yes}" if value == (name == yes) else f"--no-{yes}"]
    return [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]


def make_jobs(path: Path, number: int, seed: int, further: list[str]) -> list[Job]:
    """The draws. Raises ValueError for what cannot be run, or ranked, here."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    missing = {"program", "method", "metric", "parameters"} - config.keys()
    if missing or config["method"] != "random":
        raise ValueError(f"{path} {f'lacks {min(missing)}' if missing else 'needs method: random'}")
    metric = re.fullmatch(METRIC, config["metric"]["name"])
    if not metric:
        raise ValueError(f"{path}: the metric {config['metric']['name']} is not of the form {METRIC}")
    jobs, name = [], path.stem + (f"-s{seed}" if seed else "")
    for index in range(number):
        rng = random.Random(f"{seed} {index}")
        words = [word for item in config["parameters"].items() for word in flags(item[0], draw(rng, *item))]
        jobs.append(Job.parse(ROOT / config["program"], ["--exp-name", f"{name}-{index:03d}", *words, *further]))
        if metric[3] and metric[3] not in (jobs[-1].args["env_id"], *jobs[-1].args["eval_env_id"]):
            raise ValueError(f"{path}: the metric asks for {metric[3]}, but draw {index} is not evaluated on it")
    return jobs


def table(path: Path, jobs: list[Job]) -> str:
    """The finished draws, best first, with the arguments that differ, as the runs have noted them."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    prefix, metric, env_id = re.fullmatch(METRIC, config["metric"]["name"]).groups()
    mode, finished = {"eval": "argmax", "eval_sampled": "sampled"}[prefix], []
    for job in jobs:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # not finished, or its results are cut
            r = read(job.runs()[0] / "results.json")
            finished.append((r["eval"][env_id or r["args"]["env_id"]][mode][metric], r["SPS"], LATER | r["args"]))
    finished.sort(key=lambda entry: entry[0], reverse=config["metric"].get("goal", "minimize") == "maximize")
    differing = [name for name in jobs[0].args if len({str(args[name]) for _, _, args in finished}) > 1]
    lines = [[config["metric"]["name"], "steps/s", *differing]]
    lines += [[f"{score:.4g}", f"{SPS:,.0f}", *(str(args[n]) for n in differing)] for score, SPS, args in finished]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "".join("  ".join(map(str.rjust, line, widths)) + "\n" for line in lines)
    return f"{text}{len(finished)} of {len(jobs)} draws have finished"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=lambda path: Path(path).resolve(), help="a sweep file, benchmark/sweep_*.yaml")
    parser.add_argument("-n", type=int, default=20, help="draws (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    return front(parser, argv, lambda o, further: make_jobs(o.file, o.n, o.seed, further),
                 lambda o, jobs: print(table(o.file, jobs)))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
