"""Run folders -> tables, learning curves and performance profiles; report.md says what they show.

    python benchmark/report.py runs               # your runs -> runs/report/ (or -o DIR)
    python benchmark/report.py runs --publish     # into benchmark/results/raw/, then all that follows from these files
    python benchmark/report.py --publish          # the published tables and pictures again, from raw/ alone

A row is what runs of the same script and flags share, whatever they are called; its control has --memoryless, too. A
run that is not finished or cannot be read is named and left out; the exit code is 1 then. All is computed before any
is written. --publish also fills the README's table between <!-- results: ROW ROW ... --> and <!-- /results -->.
"""

import argparse
import collections
import contextlib
import fnmatch
import io
import json
import math
import os
import re
import shlex
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from run import INCIDENTAL, LATER, ROOT, load_script, words
from scipy.stats import trim_mean

MARKS = {  # what a task is measured by, and its marks, the table's first. The first pattern that fits an id counts
    "CartPole*": ("episodic_return", (475.0, 500.0)),
    "MiniGrid-CustomMaze*": ("success_rate", (0.95, 0.98)),
    "MiniGrid-ObstructedMaze*": ("success_rate", (0.9, 0.98)),
    "*": ("success_rate", (0.97, 0.99, 1.0)),
}
KINDS = (("LSTM", "#0072b2", "-"), ("memoryless", "#d55e00", "--"))  # colours for the colour-blind too
PICTURES = {"step": "curves.png", "final": "profiles.png"}


# ---- Statistics
def iqm(samples):
    """[(..., seeds)] -> (...): the interquartile mean."""
    return trim_mean(samples[0], 0.25, axis=-1)


def improvement(samples):
    """[(..., n), (..., m)] -> (...): the probability that a run of the first is better than one of the second."""
    a, b = samples[0][..., :, None], samples[1][..., None, :]
    return ((a > b) + 0.5 * (a == b)).mean((-2, -1))


def interval(samples: list, statistic, resamples: int = 5_000) -> tuple | None:
    """95 % bootstrap interval of statistic(samples), each of them (..., seeds). None where one is of a single run."""
    samples = [np.asarray(values, dtype=float) for values in samples]
    draw, sizes = np.random.default_rng(0).integers, [values.shape[-1] for values in samples]
    if min(sizes) < 2:
        return None
    drawn = [values[..., draw(n, size=(resamples, n))] for values, n in zip(samples, sizes, strict=True)]
    return tuple(np.quantile(statistic(drawn), (0.025, 0.975), axis=-1))


def with_interval(samples: list, statistic, digits: int) -> str:
    bounds = interval(samples, statistic)
    numbers = [f"{value:,.{digits}f}" for value in (statistic([np.asarray(v) for v in samples]), *(bounds or ()))]
    return "{} [{}, {}]".format(*numbers) if bounds else numbers[0]


def steps_to_mark(steps, values, mark: float) -> float:
    """The first of `steps` from which no value is below `mark` to the end; infinity if the last one is below."""
    below = [not value >= mark - 1e-6 * max(1.0, abs(mark)) for value in values]  # event files hold 32-bit numbers
    first = len(below) - below[::-1].index(True) if True in below else 0
    return steps[first] if first < len(steps) else math.inf


# ---- Run folders -> records -> rows
def read_run(folder: str) -> dict | None:
    """The record of a finished run; None for one that only evaluated. Raises where something is missing."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    results = json.loads(Path(folder, "results.json").read_text(encoding="utf-8"))
    args, note = results["args"], Path(folder, "command.txt")  # the runner's, a line for each time that it was started
    if args["eval_only"]:
        return None
    events = EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
    if "charts/SPS" not in events.Tags()["scalars"]:
        raise ValueError("it has no event file, or one without charts/SPS")
    speed = [(e.step, e.step / e.value) for e in events.Scalars("charts/SPS")]  # steps, training seconds until then
    curves = {}
    for env_id in results["eval"]:
        suffix = "" if env_id == args["env_id"] else f"/{env_id}"
        steps = [e.step for e in events.Scalars(f"eval/success_rate{suffix}")]
        seconds = [round(float(s), 1) for s in np.interp(steps, *zip(*speed, strict=True))]
        curves[env_id] = {"step": steps, "seconds": seconds} | {
            f"{mode}/{metric}": [round(e.value, 6) for e in events.Scalars(f"{prefix}/{metric}{suffix}")]
            for mode, prefix in (("argmax", "eval"), ("sampled", "eval_sampled"))
            for metric in ("success_rate", "episodic_return", "episodic_length")}
    commits = [line.split(":")[0] for line in note.read_text(encoding="utf-8").splitlines()] if note.is_file() else []
    return {
        "row": args["exp_name"], "env_id": args["env_id"], "seed": args["seed"], "commits": [*dict.fromkeys(commits)],
        "script": results["script"], "global_step": results["global_step"], "SPS": results["SPS"],
        "args": {k: v for k, v in args.items() if k not in (INCIDENTAL | {"seed", "exp_name"}) - {"num_threads"}},
        "training_seconds": results["global_step"] / results["SPS"], "final": results["eval"], "curves": curves}


def identity(record: dict) -> str:
    """What the runs of a row share."""
    args = {k: v for k, v in (LATER | record["args"]).items() if k not in INCIDENTAL}
    return json.dumps([record["script"], args], sort_keys=True)


def collect(folders: list[str]) -> tuple[list[dict], int]:
    """The records of all finished runs in `folders`, at any depth, older ones first, and the number of the others."""
    walk = (found for folder in folders for found in os.walk(folder))
    found = {Path(path).resolve() for path, _, files in walk if {"args.json", "results.json"} & {*files}}
    records, bad = [], 0
    for path in sorted(found, key=lambda path: max(os.path.getmtime(file) for file in path.glob("*.json"))):
        try:
            records += filter(None, [read_run(str(path))])
        except Exception as error:  # whatever is wrong with one run, the others are reported
            print(f"left out: {path}: {type(error).__name__}: {error}", file=sys.stderr)
            bad += 1
    return records, bad


class Row:
    """Runs of the same flags, by seed."""

    def __init__(self, name: str, records: list[dict]):
        self.name, self.records, self.control = name, sorted(records, key=lambda r: r["seed"]), None
        self.first, self.n = self.records[0], len(records)
        self.env_id, self.is_control = self.first["env_id"], self.first["args"].get("memoryless", False)
        self.metric, self.marks = next(m for pattern, m in MARKS.items() if fnmatch.fnmatch(self.env_id, pattern))
        self.digits = 3 if self.metric == "success_rate" else 1

    def final(self, mode: str = "argmax", env_id: str | None = None) -> list[float]:
        return [r["final"][env_id or self.env_id][mode][self.metric] for r in self.records]

    def iqm(self, mode: str = "argmax", env_id: str | None = None) -> str:
        return with_interval([self.final(mode, env_id)], iqm, self.digits)

    def worst(self, env_id: str | None = None) -> str:
        value, seed = min((v, r["seed"]) for v, r in zip(self.final("argmax", env_id), self.records, strict=True))
        return f"{value:,.{self.digits}f} (seed {seed})"

    def curves(self) -> list[dict]:
        return [r["curves"][self.env_id] for r in self.records]

    def held(self, mark: float) -> list[str]:
        """Solved n/N, median, fastest and slowest that solved (M steps), median minutes. Never is infinity."""
        steps = [steps_to_mark(c["step"], c[f"argmax/{self.metric}"], mark) for c in self.curves()]
        solved = sorted(s / 1e6 for s in steps if s < math.inf)
        both = [[s / 1e6 for s in steps], [np.interp(s, c["step"], c["seconds"]) / 60 if s < math.inf else s
                                           for s, c in zip(steps, self.curves(), strict=True)]]  # fmt: skip
        with np.errstate(invalid="ignore"):
            middle, minutes = (f"{value:.3g}" if value < math.inf else "never" for value in np.median(both, axis=1))
        return [f"{len(solved)}/{self.n}", middle, f"{solved[0]:.3g} to {solved[-1]:.3g}" if solved else "-", minutes]

    def command(self) -> str:
        """What to type for a run of this row, except for the seed, as the run itself has noted it."""
        script, name = None, self.first["script"]
        with contextlib.suppress(Exception):  # of a copy elsewhere the defaults are not known: all flags are shown
            script = load_script(ROOT / name)
        return shlex.join(["python", name, *words(script, self.first["args"], ("num_threads",))])


def make_rows(records: list[dict]) -> list[Row]:
    """Rows with their controls; of runs with the same flags and seed the last counts."""
    groups, rows, names = {}, {}, collections.Counter()
    for record in records:
        groups.setdefault(identity(record), {})[record["seed"]] = record
    for key, group in groups.items():
        name = next(iter(group.values()))["row"]
        names[name] += 1
        rows[key] = Row(name if names[name] == 1 else f"{name} ({names[name]})", list(group.values()))
    for row in rows.values():
        if not row.is_control:
            row.control = rows.get(identity({**row.first, "args": {**row.first["args"], "memoryless": True}}))
    return sorted(rows.values(), key=lambda row: row.name)


# ---- Rows -> text and pictures
def markdown(header: str, lines: list[list[str]]) -> str:
    lines = [header.split(" | "), ["---"] * len(header.split(" | ")), *lines]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def tables(rows: list[Row], points: list[Row], notes: Path) -> str:
    main, marks, elsewhere, controls = [], [], [], [row.control for row in rows]
    for row in rows:
        (solved, middle, spread, _), control = row.held(row.marks[0]), row.control
        if not row.is_control or solved[0] != "0":
            marks += [[row.name, f"{mark:g}", *row.held(mark)] for mark in row.marks]
        for env_id in [env_id for env_id in row.first["final"] if env_id != row.env_id]:
            both = row.iqm("argmax", env_id), row.worst(env_id), row.iqm("sampled", env_id)
            elsewhere.append([row.name, env_id, str(row.n), *both])
        if row in controls:
            continue
        main.append([
            row.name, f"`{row.command()}`".replace("|", "\\|"), str(row.n), row.metric, row.iqm(), row.worst(),
            row.iqm("sampled"), f"{middle} ({spread}), {solved} at {row.marks[0]:g}",
            *(f"{np.median([r[name] / unit for r in row.records]):,.{digits}f}" for name, unit, digits in
              (("global_step", 1e6, 2), ("training_seconds", 60, 1), ("SPS", 1, 0))),
            f"{control.iqm()} (n = {control.n})" if control else "-",
            with_interval([row.final(), control.final()], improvement, 2) if control else "-"])
    commits = sorted({commit for row in rows + points for record in row.records for commit in record["commits"]})
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "benchmark" / "report.md", notes) if path.is_file()]
    text = "\n".join([*texts, f"Commits of the runs: {', '.join(commits) or 'unknown'}.\n\n"])
    text += markdown("task | command | seeds | measure | argmax: IQM | worst | sampled: IQM | M steps to mark | "
                     "M steps | minutes | steps/s | control, argmax | better", main)  # fmt: skip
    text += "\n## Steps to each mark\n\n"
    text += markdown("task | mark | solved | median, M steps | fastest to slowest | median, minutes", marks)
    text += "\n## On environments never trained on\n\n"
    text += markdown("agents | tested on | seeds | argmax: IQM | worst | sampled: IQM", elsewhere)
    if points:
        solved = sum(row.held(1.0)[0] == f"{row.n}/{row.n}" for row in points)
        text += f"\n## One flag at a time\n\nMemoryS13: all seeds solve {solved} of {len(points)} points (blue).\n\n"
        text += markdown("flag | at 1.0 to the end | median, M steps | fastest to slowest | median, minutes",
                         [[row.name, *row.held(1.0)] for row in points]) + "\n![](sensitivity.png)\n"  # fmt: skip
    return text + "\n## Pictures\n" + "".join(f"\n![{axis}]({name})\n" for axis, name in PICTURES.items())


def png(figure, dpi: int) -> bytes:
    figure.savefig(buffer := io.BytesIO(), dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def picture(rows: list[Row], axis: str) -> bytes:
    """A panel for each task, LSTM and memoryless control in it. axis: "step" or "final", the profile."""
    shown = [row for row in rows if row not in [row.control for row in rows]]
    columns, height = min(3, len(shown)), math.ceil(len(shown) / 3)
    figure = Figure((4 * columns + 0.4, 2.9 * height), layout="constrained")
    axes = figure.subplots(height, columns, squeeze=False)
    for ax in axes.flat[len(shown) :]:
        ax.axis("off")
    for row, ax in zip(shown, axes.flat, strict=False):
        measure, top = ("success rate", 1.0) if row.metric == "success_rate" else ("return", max(row.final()))
        for one in (row, row.control) if row.control else (row,):
            _, colour, style = KINDS[one.is_control]
            if axis == "final":
                points = np.linspace(0, top, 201)
                values = (np.array(one.final()) >= points[:, None] - 1e-9).astype(float)  # (points, seeds)
                middle, bounds = values.mean(-1), interval([values], lambda drawn: drawn[0].mean(-1), 500)
            else:
                runs = [(np.array(c["step"]) / 1e6, np.array(c[f"argmax/{one.metric}"])) for c in one.curves()]
                for x, y in runs:
                    ax.plot(x, y, style, color=colour, linewidth=0.6, alpha=0.3)
                low, high = max(x[0] for x, _ in runs), min(x[-1] for x, _ in runs)  # where all have been evaluated
                points = np.linspace(low, high, 100)
                values = np.stack([np.interp(points, x, y) for x, y in runs], axis=-1)
                middle, bounds = iqm([values]), interval([values], iqm, 500)
            ax.plot(points, middle, style, color=colour, linewidth=2)
            if bounds is not None:
                ax.fill_between(points, *bounds, color=colour, alpha=0.2, linewidth=0)
        score = f"{measure}, argmax"
        if axis == "final":
            ax.set(xlabel=score, ylabel="share of runs", xlim=(0, None), ylim=(-0.03, 1.03))
        else:
            ax.set(xlabel="million steps", ylabel=score, xlim=(0, None), ylim=(-0.03, 1.03 * top))
        ax.set_title(f"{row.name}, {row.n} seeds{f', control {row.control.n}' if row.control else ''}", fontsize=9)
        ax.grid(alpha=0.3)
    handles = [axes[0, 0].plot([], [], style, color=colour, label=kind)[0] for kind, colour, style in KINDS]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    return png(figure, 80 if len(shown) > 4 else 120)


def sensitivity(rows: list[Row], tasks: list[Row]) -> bytes:
    """The rows FLAG=VALUE on each side of memory-s13, whose flags are the defaults."""
    middle, points = next((row for row in tasks if row.name == "memory-s13"), None), {}
    for row in rows:
        flag, value = row.name.replace("-", "_").split("=")
        points.setdefault(flag, {middle.first["args"][flag]: middle} if middle else {})[float(value)] = row
    figure = Figure((2 * len(points), 3), layout="constrained")
    axes = figure.subplots(1, len(points), sharey=True, squeeze=False)
    top = max(row.first["global_step"] for row in rows) / 1e6
    for (flag, by_value), ax in zip(points.items(), axes[0], strict=True):
        for at, (_, row) in enumerate(sorted(by_value.items())):
            held = np.array([steps_to_mark(c["step"], c["argmax/success_rate"], 1.0) for c in row.curves()]) / 1e6
            colour = KINDS[not all(held < math.inf)][1]
            ax.plot(np.full(row.n, at), held.clip(None, 1.1 * top), "o", color=colour, alpha=0.4, markersize=4)
        ax.axhline(top, color="grey", linewidth=0.6)
        ax.set(xlabel=flag, xticks=range(len(by_value)), ylim=(0, 1.15 * top))
        ax.set_xticklabels([f"{value:g}" for value in sorted(by_value)], rotation=90, fontsize=8)
    axes[0, 0].set_ylabel("1.0 held from, M steps\n(top: not at the end)")
    return png(figure, 80)


def readme_table(text: str, rows: list[Row]) -> str:
    """The README with the table between its marks made again."""
    found, lines = re.search(r"(<!-- results: (.*?) -->\n).*?(<!-- /results -->)", text, re.DOTALL), []
    for name in found[2].split() if found else ():
        row = {row.name: row for row in rows}.get(name)
        if row is None:
            raise SystemExit(f"error: the README asks for the row {name}, which is not there")
        mark = next((mark for mark in reversed(row.marks) if row.held(mark)[1] != "never"), row.marks[0])
        solved, middle, spread, minutes = row.held(mark)
        lines.append([name, str(row.n), row.iqm(), row.worst(), f"{mark:g}: {middle} ({spread}), {solved}", minutes,
                      row.control.iqm() if row.control else "-"])  # fmt: skip
    table = markdown("row | seeds | at the end: IQM | worst | held from, M steps | minutes | memoryless", lines)
    return f"{text[: found.end(1)]}\n{table}\n{text[found.start(3) :]}" if found else text


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", help="folders with run folders in them")
    parser.add_argument("-o", "--out", type=Path, help="where to write: default report/ in the first folder")
    parser.add_argument("--publish", action="store_true", help="add the runs to benchmark/results, and make it again")
    args = parser.parse_args(argv)
    if not all(map(os.path.isdir, args.folders)) or not (args.folders or args.publish):
        parser.error("name folders of runs, or --publish to make the published tables again")
    out = args.out or (ROOT / "benchmark" / "results" if args.publish else Path(args.folders[0], "report"))
    if (out / "raw").is_dir() and not args.publish:
        parser.error(f"-o {out} holds published results; add --publish if they are to change")

    records, bad = collect(args.folders)
    files = {}  # all that will be written
    if args.publish:
        known = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / "raw").glob("*.json"))}
        for record in records:
            path = out / "raw" / f"{record['row']}__{record['seed']}.json"
            if path in known and identity(known[path]) != identity(record):
                raise SystemExit(f"error: {path} is of other flags; remove it, or give one another --exp-name")
            known[path], lines = record, (f"{json.dumps(k)}: {json.dumps(v)}" for k, v in record.items())
            files[path] = "{\n" + ",\n".join(lines) + "\n}\n"
        records = list(known.values())
    rows = make_rows(records)
    points = [row for row in rows if re.fullmatch(r"[a-z-]+=[\d.]+", row.name)]
    tasks = [row for row in rows if row not in points]
    if not tasks:
        raise SystemExit(f"error: no finished run in {' '.join(args.folders) or out}")
    files[out / "README.md"] = tables(tasks, points, out / "notes.md")
    files |= {out / name: picture(tasks, axis) for axis, name in PICTURES.items()}
    files |= {out / "sensitivity.png": sensitivity(points, tasks)} if points else {}
    if args.publish and not args.out:
        files[ROOT / "README.md"] = readme_table((ROOT / "README.md").read_text(encoding="utf-8"), rows)
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    print(f"{len(rows)} rows, {sum(row.n for row in rows)} runs -> {out}" + (f"; {bad} left out" if bad else ""))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
