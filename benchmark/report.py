"""Run folders -> a small JSON file per run -> tables and learning curves.

    python benchmark/report.py runs              # read the finished runs under runs/, then draw
    python benchmark/report.py                   # draw again from the JSON files alone

Everything goes to benchmark/results/ (-o): raw/{row}__{seed}.json, README.md with the tables, curves_steps.png and
curves_minutes.png. A row is an --exp-name of the launchers, its memoryless control is {row}-memoryless.

IQM: the mean of the middle half of the seeds (scipy's trim_mean, which cuts int(n / 4) values at each end: one of 5,
two of 10, none of 3). Intervals: 95 % percentile bootstrap of the IQM over seeds, within each task where tasks are
pooled. Steps to a mark: environment steps to the first evaluation that reaches it and from which none is below it to the
end of the run. Minutes: training steps / SPS, which leaves out start-up, evaluation, saving and, in a resumed run, the pause.
"""

import argparse
import fnmatch
import glob
import importlib
import json
import math
import os
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np
from scipy.stats import trim_mean

ROOT = Path(__file__).resolve().parent.parent
METRICS = ("success_rate", "episodic_return", "episodic_length")
# what a task is measured by, and its marks; the first is the table's. The first pattern that fits an id counts
MARKS = {
    "CartPole*": ("episodic_return", (475.0, 500.0)),
    "MiniGrid-CustomMaze*": ("success_rate", (0.95, 0.98)),
    "MiniGrid-ObstructedMaze*": ("success_rate", (0.9, 0.98)),
    "*": ("success_rate", (0.97, 0.99, 1.0)),
}
POOLED = {  # results over several rows at once
    "Memory, four tasks": ("memory-s7", "memory-s9", "memory-s13", "memory-s17random"),
    "mazes, two tasks": ("maze-s13", "mazerandom-s15"),
}
# arguments that do not change what is learned, or that differ between a row's runs by design
INCIDENTAL = {"seed", "exp_name", "num_threads", "track", "wandb_project_name", "wandb_entity", "capture_video", "save_every",
              "resume", "eval_only"}  # fmt: skip
KINDS = (("LSTM", "#0072b2", "-"), ("memoryless", "#d55e00", "--"))  # told apart by colour-blind readers, and in grey


# ----------------------------------------------------------------------------------------------------------------------
# Statistics
# ----------------------------------------------------------------------------------------------------------------------
def iqm(values, axis=-1):
    """Interquartile mean."""
    return trim_mean(values, 0.25, axis=axis)


def interval(tasks: list, resamples: int = 10_000) -> tuple[float, float] | None:
    """95 % bootstrap interval of the IQM of all values; seeds are drawn anew within each task. None for single runs.

    tasks: for each one its seeds' values, (seeds,) or (seeds, points); then there is an interval at each point.
    """
    tasks = [np.asarray(values, dtype=float) for values in tasks]
    if max(map(len, tasks)) < 2:
        return None
    rng = np.random.default_rng(0)
    drawn = [values[rng.integers(len(values), size=(resamples, len(values)))] for values in tasks]
    low, high = np.quantile(iqm(np.concatenate(drawn, axis=1), axis=1), (0.025, 0.975), axis=0)
    return low, high


def steps_to_mark(steps, values, mark: float) -> float:
    """The first of `steps` from which no value is below `mark` to the end; infinity if the last one is below."""
    below = [not value >= mark - 1e-6 * max(1.0, abs(mark)) for value in values]  # event files hold 32-bit numbers
    first = len(below) - below[::-1].index(True) if True in below else 0
    return steps[first] if first < len(steps) else math.inf


# ----------------------------------------------------------------------------------------------------------------------
# Run folder -> record
# ----------------------------------------------------------------------------------------------------------------------
def read_run(folder: str) -> dict | None:
    """The record of a finished run; None for one that is not, or that only evaluated."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = os.path.join(folder, "results.json")
    if not os.path.isfile(path):
        return None
    with open(path) as file:
        results = json.load(file)
    args = results["args"]
    if args["eval_only"]:
        return None
    script = "ppo_lstm_minigrid.py" if "view_size" in args else "ppo_lstm_cartpole_novel.py"

    events = EventAccumulator(folder, size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    speed = [(e.step, e.step / e.value) for e in events.Scalars("charts/SPS")]  # steps, training seconds until then
    curves = {}
    for env_id in results["eval"]:
        suffix = "" if env_id == results["env_id"] else f"/{env_id}"
        if f"eval/success_rate{suffix}" not in tags:
            continue
        steps = [e.step for e in events.Scalars(f"eval/success_rate{suffix}")]
        curve = {"step": steps, "seconds": [round(float(s), 1) for s in np.interp(steps, *zip(*speed, strict=True))]}
        for mode, prefix in (("argmax", "eval"), ("sampled", "eval_sampled")):
            for metric in METRICS:
                values = [round(e.value, 6) for e in events.Scalars(f"{prefix}/{metric}{suffix}")]
                curve[f"{mode}/{metric}"] = values
        curves[env_id] = curve
    final = {env_id: {mode: {k: round(v, 6) if isinstance(v, float) else v for k, v in result.items()}
                      for mode, result in modes.items()} for env_id, modes in results["eval"].items()}  # fmt: skip
    record = {
        "row": args["exp_name"], "env_id": results["env_id"], "seed": results["seed"], "script": script,
        "args": {k: v for k, v in args.items() if k not in INCIDENTAL - {"num_threads"}},  # all: defaults may change
        "commits": [], "global_step": results["global_step"], "SPS": round(results["SPS"], 1),
        "training_seconds": round(results["global_step"] / results["SPS"], 1), "final": final,
        "curves": curves}  # fmt: skip
    record["steps_to_mark"] = marks_reached(record)
    commands = os.path.join(folder, "command.txt")
    if os.path.isfile(commands):  # the launcher's, a line for each time that it was started or resumed
        with open(commands) as file:
            record["commits"] = list(dict.fromkeys(line.split(":")[0] for line in file))
    return record


def load_script(name: str):
    """A script of the repository as a module."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(name.removesuffix(".py"))


def changed(script: str, args: dict) -> dict:
    """The arguments that differ from the script's defaults."""
    defaults = {f.name: f.default for f in fields(load_script(script).Args)}
    return {k: v for k, v in args.items() if (tuple(v) if isinstance(v, list) else v) != defaults.get(k, MISSING)}


def measure(env_id: str) -> tuple[str, tuple[float, ...]]:
    """The metric and the marks of a task."""
    return next(value for pattern, value in MARKS.items() if fnmatch.fnmatch(env_id, pattern))


def marks_reached(record: dict) -> dict[str, int | None]:
    """{mark: steps to it}, None where it was not held to the end."""
    metric, marks = measure(record["env_id"])
    curve = record["curves"][record["env_id"]]
    steps = {f"{mark:g}": steps_to_mark(curve["step"], curve[f"argmax/{metric}"], mark) for mark in marks}
    return {mark: None if value == math.inf else value for mark, value in steps.items()}


def write_record(record: dict, path: Path) -> None:
    """JSON with a line for each top-level key, and for each curve."""
    def line(key, value):
        return f"{json.dumps(key)}: {json.dumps(value)}"
    lines = [line(k, v) for k, v in record.items() if k != "curves"]
    curves = ",\n".join(f"{json.dumps(env_id)}: {{\n" + ",\n".join(line(*item) for item in curve.items()) + "\n}"
                        for env_id, curve in record["curves"].items())  # fmt: skip
    path.write_text("{\n" + ",\n".join([*lines, f'"curves": {{\n{curves}\n}}']) + "\n}\n")


def collect(folders: list[str], out: Path) -> None:
    """Write a record for every finished run that lies in `folders`, at any depth."""
    paths = sorted({os.path.dirname(p) for f in folders for p in glob.glob(f"{f}/**/results.json", recursive=True)},
                   key=lambda p: p.rpartition("__")[2])  # fmt: skip
    (out / "raw").mkdir(parents=True, exist_ok=True)
    written = {}
    for folder in paths:
        record = read_run(folder)
        if record is None:
            continue
        path = out / "raw" / f"{record['row']}__{record['seed']}.json"
        if path in written:
            print(f"{record['row']} seed {record['seed']} is there twice: {folder} replaces {written[path]}", file=sys.stderr)
        write_record(record, path)
        written[path] = folder
    print(f"{len(written)} runs -> {out / 'raw'}")


# ----------------------------------------------------------------------------------------------------------------------
# Records -> tables and curves
# ----------------------------------------------------------------------------------------------------------------------
def load_rows(out: Path, patterns: list[str]) -> dict[str, list[dict]]:
    """{row: its records by seed}. Raises SystemExit where the runs of a row were not made by the same command."""
    rows = {}
    for path in sorted(out.glob("raw/*.json")):
        record = json.loads(path.read_text())
        record["metric"], record["steps_to_mark"] = measure(record["env_id"])[0], marks_reached(record)
        if any(fnmatch.fnmatch(record["row"].removesuffix("-memoryless"), pattern) for pattern in patterns):
            rows.setdefault(record["row"], []).append(record)
    for row, records in rows.items():
        records.sort(key=lambda record: record["seed"])
        differing = [f"--{name.replace('_', '-')}" for name in records[0]["args"].keys() - INCIDENTAL
                     if any(r["args"].get(name) != records[0]["args"][name] for r in records)]  # fmt: skip
        if differing:
            raise SystemExit(f"error: the runs of {row} differ in more than the seed: {', '.join(sorted(differing))}")
        control = rows.get(f"{row}-memoryless")
        if control and any(records[0]["args"][name] != control[0]["args"].get(name)
                           for name in records[0]["args"].keys() - INCIDENTAL - {"memoryless"}):  # fmt: skip
            raise SystemExit(f"error: {row}-memoryless differs from {row} in more than --memoryless")
    order = [row for rows in POOLED.values() for row in rows]
    return dict(sorted(rows.items(), key=lambda item: (order.index(item[0]) if item[0] in order else len(order), item[0])))


def command(record: dict, without=frozenset({"seed"})) -> str:
    """What to type for a run of this row, but for the seed."""
    words = ["python", record["script"]]
    for name, value in changed(record["script"], record["args"]).items():
        if name in without:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, (list, tuple)):
            words += [f"--{flag}", *map(str, value)]
        else:
            words += [f"--{flag}", str(value)]
    return " ".join(words)


def final(records: list[dict], mode: str, env_id: str | None = None) -> list[float]:
    return [r["final"][env_id or r["env_id"]][mode][r["metric"]] for r in records]


def number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}"


def with_interval(tasks: list, digits: int) -> str:
    bounds = interval(tasks)
    text = number(iqm(np.concatenate(tasks)), digits)
    return text if bounds is None else f"{text} [{number(bounds[0], digits)}, {number(bounds[1], digits)}]"


def steps_text(records: list[dict], mark: str) -> list[str]:
    """Solved n/N, median, fastest and slowest that solved (M steps), median minutes. Never is infinity to the median."""
    steps = [r["steps_to_mark"][mark] or math.inf for r in records]
    seconds = [np.interp(s, r["curves"][r["env_id"]]["step"], r["curves"][r["env_id"]]["seconds"]) if s < math.inf else s
               for s, r in zip(steps, records, strict=True)]  # fmt: skip
    solved = [s / 1e6 for s in steps if s < math.inf]
    with np.errstate(invalid="ignore"):
        middle, minutes = np.median(steps) / 1e6, np.median(seconds) / 60
    spread = f"{min(solved):.3g} to {max(solved):.3g}" if solved else "-"
    return [f"{len(solved)}/{len(steps)}", f"{middle:.3g}" if middle < math.inf else "never", spread,
            f"{minutes:.1f}" if minutes < math.inf else "never"]  # fmt: skip


def markdown(header: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines)) + "\n"


def tables(rows: dict[str, list[dict]]) -> str:
    main, speed, pooled, held_out = [], [], [], []
    for row, records in rows.items():
        first = records[0]
        metric, digits = first["metric"], 3 if first["metric"] == "success_rate" else 1
        is_control = first["args"].get("memoryless", False)
        mark = next(iter(first["steps_to_mark"]))
        if not is_control or any(r["steps_to_mark"][mark] for r in records):
            speed += [[row, m, *steps_text(records, m)] for m in first["steps_to_mark"]]
        for env_id in first["final"]:
            if env_id != first["env_id"]:
                held_out.append([row, env_id, str(len(records)), with_interval([final(records, "argmax", env_id)], digits),
                                 number(min(final(records, "argmax", env_id)), digits),
                                 with_interval([final(records, "sampled", env_id)], digits)])  # fmt: skip
        if is_control and row.removesuffix("-memoryless") in rows:
            continue
        control = rows.get(f"{row}-memoryless")
        solved, middle, spread, _ = steps_text(records, mark)
        minutes = np.median([r["training_seconds"] for r in records]) / 60
        main.append([
            row, f"`{command(first)}`", str(len(records)), "success" if metric == "success_rate" else "return",
            with_interval([final(records, "argmax")], digits), number(min(final(records, "argmax")), digits),
            with_interval([final(records, "sampled")], digits),
            f"{middle} ({spread}), {solved} at {mark}", number(first["global_step"] / 1e6, 2), f"{minutes:.1f}",
            number(np.median([r["SPS"] for r in records]), 0),
            f"{with_interval([final(control, 'argmax')], digits)} (n = {len(control)})" if control else "-"])  # fmt: skip
    for name, members in POOLED.items():
        for suffix, kind in (("", "LSTM"), ("-memoryless", "memoryless")):
            tasks = [rows[row + suffix] for row in members if row + suffix in rows]
            if len(tasks) > 1:
                runs = sum(map(len, tasks))
                title = name if len(tasks) == len(members) else f"{name}: {len(tasks)} of them"
                both = [with_interval([final(task, mode) for task in tasks], 3) for mode in ("argmax", "sampled")]
                pooled.append([title, kind, str(runs), *both])
    commits = sorted({c for records in rows.values() for r in records for c in r["commits"]})
    text = f"""# Results

Made by `python benchmark/report.py` from the files in `raw/`, one for each run; commit {", ".join(commits) or "unknown"}.

Brackets hold 95 % bootstrap intervals over seeds of the interquartile mean (IQM). *argmax* is the most probable action,
*sampled* draws from the policy. *Steps to mark* counts environment steps, in millions, to the first evaluation that reaches
the mark and from which none is below it to the end of the budget: median over all seeds (one that never holds the mark
counts as infinite), fastest and slowest of those that do, how many do. *Minutes* of training leave out start-up, evaluation
and saving. Each command is run with `--seed 1`, `2`, ...; the control is the same command with `--memoryless`.

"""
    text += markdown(["task", "command", "seeds", "measure", "argmax: IQM", "min", "sampled: IQM", "M steps to mark", "M steps",
                      "minutes", "steps/s", "control, argmax"], main)  # fmt: skip
    if pooled:
        text += "\n## Tasks pooled\n\nSeeds are drawn anew within each task.\n\n"
        text += markdown(["tasks", "agent", "runs", "argmax: IQM", "sampled: IQM"], pooled)
    if held_out:
        text += "\n## On environments never trained on\n\n"
        text += markdown(["agents", "tested on", "seeds", "argmax: IQM", "min", "sampled: IQM"], held_out)
    text += "\n## Steps to each mark\n\nControls that are not listed never held the first mark.\n\n"
    text += markdown(["task", "mark", "solved", "median, M steps", "fastest to slowest", "median, minutes"], speed)
    text += "\n## Learning curves\n\n"
    text += "Lines: IQM over seeds; bands: 95 % bootstrap intervals at each point; thin lines: the seeds.\n"
    return text + "\n![over steps](curves_steps.png)\n\n![over minutes of training](curves_minutes.png)\n"


def curves(rows: dict[str, list[dict]], axis: str, path: Path) -> None:
    """A panel for each task, LSTM and memoryless control in it. axis: "step" or "seconds"."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row.removesuffix("-memoryless") for row in rows))
    columns = min(3, len(names))
    height = math.ceil(len(names) / columns)
    figure, axes = plt.subplots(height, columns, figsize=(4 * columns + 0.4, 2.9 * height), squeeze=False)
    unit, label = (1e6, "million steps") if axis == "step" else (60, "minutes of training")
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    for name, ax in zip(names, axes.flat, strict=False):
        seeds = []
        for row, kind, colour, style in ((name, *KINDS[0]), (f"{name}-memoryless", *KINDS[1])):
            records = rows.get(row, [])
            seeds += [f"{len(records)} {kind}"] if records else []
            if not records:
                continue
            metric = records[0]["metric"]
            runs = [(np.array(c[axis]) / unit, np.array(c[f"argmax/{metric}"]))
                    for c in (r["curves"][r["env_id"]] for r in records)]  # fmt: skip
            # common points: where all seeds have been evaluated
            low, high = max(x[0] for x, _ in runs), min(x[-1] for x, _ in runs)
            points = np.unique(np.concatenate([x for x, _ in runs])) if axis == "step" else np.linspace(low, high, 100)
            points = points[(points >= low) & (points <= high)]
            values = np.stack([np.interp(points, x, y) for x, y in runs])
            for x, y in runs:
                ax.plot(x, y, style, color=colour, linewidth=0.6, alpha=0.3)
            ax.plot(points, iqm(values, axis=0), style, color=colour, linewidth=2)
            bounds = interval([values], 2000)
            if bounds is not None:
                ax.fill_between(points, *bounds, color=colour, alpha=0.2, linewidth=0)
            ax.set_ylabel("success rate, argmax" if metric == "success_rate" else "return, argmax")
            ax.set_ylim((-0.03, 1.03) if metric == "success_rate" else (0, 515))
        ax.set_title(f"{name} (seeds: {', '.join(seeds)})", fontsize=9)
        ax.set_xlim(left=0)
        ax.grid(alpha=0.3)
        ax.set_xlabel(label)
    handles = [plt.Line2D([], [], color=colour, linestyle=style, linewidth=2, label=kind) for kind, colour, style in KINDS]
    figure.legend(handles=handles, loc="upper center", ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()))
    figure.savefig(path, dpi=80 if len(names) > 4 else 120, metadata={"Software": None})
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", help="folders with run folders in them; without any, the JSON files are enough")
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmark" / "results")
    parser.add_argument("--rows", nargs="+", default=["*"], help="only these rows, patterns work; their controls come along")
    args = parser.parse_args(argv)
    if args.folders:
        collect(args.folders, args.out)
    rows = load_rows(args.out, args.rows)
    if not rows:
        raise SystemExit(f"error: no finished run in {args.out / 'raw'}")
    (args.out / "README.md").write_text(tables(rows))
    for axis, name in (("step", "curves_steps.png"), ("seconds", "curves_minutes.png")):
        curves(rows, axis, args.out / name)
    print(f"tables and curves of {len(rows)} rows -> {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
