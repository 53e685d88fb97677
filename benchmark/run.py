"""Rows of commands x seeds, several at a time: the one runner behind the launchers, sweep.py and slurm.sh.

    python benchmark/run.py --rows "tmaze | ppo_lstm_tmaze.py --total-timesteps 500000 | 1-5 | 1-3" -w 2

A row is: name | script and flags | seeds | seeds of the memoryless control, which has the same flags and --memoryless.
Further flags for every run follow "--". Runs go to runs/, what they print to runs/logs/{name}__{seed}.log. Start it
again to go on: a run that finished with the same flags is skipped, one that was stopped is resumed. Ctrl-C or TERM lets
the runs save, a second one ends them at once. Several may share a list, each with its own CUDA_VISIBLE_DEVICES, say.
"""

import argparse
import collections
import fnmatch
import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parent.parent
# arguments that do not change what is learned, or that name a machine, a person or a path
INCIDENTAL = {"num_threads", "track", "wandb_project_name", "wandb_entity", "capture_video", "save_every", "resume",
              "eval_only"}  # fmt: skip
LATER = {"novelty_coef": 0.0, "ema_decay": 0.0}  # what finished runs did that lack these flags


def load_script(path: Path):
    """The module at `path`. Raises ValueError where there is none."""
    if not path.is_file():
        raise ValueError(f"there is no script {path}")
    sys.path[:0] = [folder for folder in (str(path.parent), str(ROOT)) if folder not in sys.path]
    return importlib.import_module(path.stem)


def words(script, args: dict, without: tuple = ()) -> list[str]:
    """The flags that differ from the script's defaults, each of them once; all flags where there is no script."""
    line, defaults = [], {field.name: field.default for field in fields(script.Args)} if script else {}
    for name, value in args.items():
        flag, value = name.replace("_", "-"), tuple(value) if isinstance(value, list) else value
        if name in without or value == defaults.get(name, MISSING):
            continue
        if isinstance(value, bool):
            line.append(f"--{flag}" if value else f"--no-{flag}")
        else:  # a text that begins with "-" would be taken for a flag
            values = value if isinstance(value, tuple) else (value,)
            line += [f"--{flag}={value}"] if str(value).startswith("-") else [f"--{flag}", *map(str, values)]
    return line


def read(path: Path):
    """What a JSON file holds; None if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def split_argv(argv: list[str] | None) -> tuple[list[str], list[str]]:
    """What stands before "--" and behind it."""
    argv = [*(sys.argv[1:] if argv is None else argv), "--"]
    return argv[: argv.index("--")], argv[argv.index("--") + 1 : -1]


def commit() -> str:
    git = f"git -C {shlex.quote(str(ROOT))} describe --always --dirty --exclude '*' 2>/dev/null"
    return subprocess.getoutput(git) or "unknown"


@dataclass
class Job:
    path: Path  # of the script
    args: dict  # all arguments, as JSON has them

    @classmethod
    def parse(cls, path: Path, flags: list[str]):
        """Raises ValueError where the script does not take the flags; tyro has said then what is wrong."""
        try:
            args = tyro.cli(load_script(path).Args, args=flags)
        except SystemExit:
            raise ValueError(f"{path.name} does not take {shlex.join(flags)}") from None
        return cls(path, json.loads(json.dumps(asdict(args))))

    def __str__(self):
        return f"{self.args['exp_name']} seed {self.args['seed']}"

    def command(self) -> list[str]:
        return [self.path.name, *words(load_script(self.path), self.args, without=("num_threads",))]

    def is_of(self, note, later=LATER) -> bool:
        """Whether an args.json or results.json is of this job, and not of an evaluation alone."""
        args = note.get("args") if isinstance(note, dict) and note.get("script") == self.path.name else None
        if not isinstance(args, dict) or args.get("eval_only"):
            return False
        own, args = later | self.args, later | args
        return all(own.get(k, MISSING) == args.get(k, MISSING) for k in (own.keys() | args.keys()) - INCIDENTAL)

    def runs(self) -> tuple[Path | None, Path | None]:
        """Its run folder that is finished and the newest that was stopped. ValueError where results cannot be read."""
        finished, stopped = None, None
        for path in sorted(Path("runs").glob("*/args.json"), key=os.path.getmtime):
            run, result, note = path.parent, path.parent / "results.json", read(path)
            if not self.is_of(note):
                continue
            if result.is_file() and read(result) is None:
                raise ValueError(f"{result} is cut or damaged: move its folder away")
            finished = run if self.is_of(read(result)) else finished
            stopped = run if not result.is_file() and self.is_of(note, {}) and (run / "agent.pt").is_file() else stopped
        return finished, stopped


def parse_seeds(text: str) -> list[int]:
    """"1-3 05" -> [1, 2, 3, 5]"""
    pairs = [re.fullmatch(r"(\d+)(?:-(\d+))?", word) for word in text.replace(",", " ").split()]
    if not all(pairs):
        raise ValueError(f"seeds are numbers and ranges such as 1-3, got {text!r}")
    return [seed for pair in pairs for seed in range(int(pair[1]), int(pair[2] or pair[1]) + 1)]


def make_jobs(rows: str, patterns: str, seeds: str, further: list[str]) -> list[Job]:
    """The list of jobs, each of them once. Raises ValueError with one line for the user."""
    jobs, names = [], []
    for line in filter(str.strip, rows.splitlines()):
        cells = [cell.strip() for cell in line.split("|")]
        if not 2 <= len(cells) <= 4 or not all(cells[:2]):
            raise ValueError(f"a row is: name | script and flags | seeds | seeds of the control; got {line!r}")
        name, command, own, controls = [*cells, "", ""][:4]
        script, *flags = shlex.split(command)
        path = (Path(script) if Path(script).is_file() else ROOT / script).resolve()
        for kind, more, numbers in ((name, [], own or "1"), (f"{name}-memoryless", ["--memoryless"], controls)):
            names += [kind] if numbers else []
            if numbers and any(fnmatch.fnmatchcase(kind, pattern) for pattern in patterns.split()):
                for seed in parse_seeds(seeds or numbers):
                    job = Job.parse(path, ["--exp-name", kind, "--seed", str(seed), *flags, *more, *further])
                    jobs += [job] if job not in jobs else []  # a --seed in the flags makes all seeds one
    for pattern in patterns.split():
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"-g {pattern} matches no row of: {' '.join(names)}")
    return jobs


def say(what: str, job: Job, text) -> str:
    print(f"{time.strftime('%H:%M:%S')} {what:<9} {job}: {text}", flush=True)
    return what


def run_job(job: Job, threads: int, signals: list[int]) -> str | None:
    """Make, continue or skip one run -> what became of it. Signals are passed on as TERM; none starts after one."""
    import fcntl

    path = Path("runs/logs") / f"{job.args['exp_name']}__{job.args['seed']}.log"
    with open(path, "a", encoding="utf-8") as log:
        try:  # the log is the lock too: the process holds it as long as it lives, also when this runner does not
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return say("elsewhere", job, "another runner has it")
        finished, stopped = job.runs()
        if finished:
            return say("finished", job, finished)
        if signals:
            return None
        note = f"{commit()}: python {shlex.join(job.command())}\n"
        print("$", note, file=log, flush=True)
        say("resumed" if stopped else "started", job, path)
        command = [sys.executable, str(job.path), *job.command()[1:], "--num-threads", str(threads)]
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        process = subprocess.Popen([*command, *(["--resume", str(stopped / "agent.pt")] if stopped else [])], env=env,
                                   stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        passed_on = 0
        while process.poll() is None:
            if len(signals) > passed_on:
                passed_on = len(signals)
                process.terminate()
            time.sleep(0.05)

    (finished, stopped), lines = job.runs(), path.read_text(encoding="utf-8", errors="replace").splitlines()
    if finished or stopped:
        with open((finished or stopped) / "command.txt", "a", encoding="utf-8") as file:
            file.write(note)
    if finished and (process.returncode == 0 or passed_on):
        return say("done", job, lines[-1])
    if passed_on:
        return say("stopped", job, path)
    why = f"exit code {process.returncode}" if process.returncode else "exit code 0, but no results.json of these flags"
    return say("FAILED", job, "\n    ".join([f"{why}; the end of {path}:", *lines[-8:]]))


def front(parser, argv: list[str] | None, make, after=lambda options, jobs: None) -> int:
    """The command line of all that start jobs: make(options, flags behind "--") -> jobs, after(options, jobs) when they
    have run. -> exit code: 0, 1 if one failed, 2 for a bad flag, 128 + n after signal n."""
    parser.add_argument("-w", "--workers", type=int, default=1, help="runs at a time (1)")
    parser.add_argument("-t", "--threads", type=int, default=1, help="CPU threads of each run (1)")
    parser.add_argument("-o", "--out", default=".", help="folder to work in (.)")
    parser.add_argument("-j", "--job", type=int, help="only this job of the list, counted from 1")
    parser.add_argument("-l", "--list", action="store_true", help="list the jobs, run nothing")
    argv, further = split_argv(argv)
    options, signals = parser.parse_args(argv), []
    for stream in (sys.stdout, sys.stderr):  # a console that cannot show a name does not end the runner
        stream.reconfigure(errors="backslashreplace")

    def try_job(job):
        try:
            return run_job(job, options.threads, signals)
        except (OSError, ValueError) as error:
            return say("FAILED", job, error)

    try:
        jobs = make(options, further)
        chosen = [(n, job) for n, job in enumerate(jobs, 1) if options.job in (None, n)]
        if min(options.workers, options.threads, len(chosen)) < 1:
            raise ValueError(f"-w and -t are at least 1, -j is one of the {len(jobs)} jobs")
        if len(set(map(str, jobs))) < len(jobs):
            raise ValueError("two jobs have the same name and seed, and other flags; give rows different names")
        if options.list:
            print("\n".join(f"{n} {job}: {shlex.join(job.command())}" for n, job in chosen))
            return 0
        os.makedirs(Path(options.out, "runs/logs"), exist_ok=True)
        os.chdir(options.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: signals.append(number))
    with ThreadPoolExecutor(options.workers) as pool:
        count = collections.Counter(pool.map(try_job, [job for _, job in chosen]))
    print(f"{len(chosen)} jobs: {count['finished'] + count['done']} finished, {count['FAILED']} failed, "
          f"{count['stopped']} stopped, {count['elsewhere']} in other runners")  # fmt: skip
    after(options, [job for _, job in chosen])
    return 128 + signals[0] if signals else int(count["FAILED"] > 0)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", required=True, help="the table, a row a line; the launchers give theirs")
    parser.add_argument("-g", "--only", default="*", help='only these rows, patterns work: "memory-s7 maze-*"')
    parser.add_argument("-s", "--seeds", default="", help='these seeds in place of the table\'s: "1-3 5"')
    return front(parser, argv, lambda o, further: make_jobs(o.rows, o.only, o.seeds, further))


if __name__ == "__main__":
    sys.exit(main())
