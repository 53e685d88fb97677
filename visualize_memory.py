"""Show what a recurrent agent remembers: a page to send, pictures, a raw trace, and an analysis of the memory.

    python visualize_memory.py benchmark/checkpoints/MiniGrid-MemoryS13-v0.pt --analysis
    python visualize_memory.py CHECKPOINT --env-id MiniGrid-MemoryS17Random-v0 --frames --video --npz

The checkpoint is one of `ppo_lstm_minigrid.py`, `ppo_lstm_cartpole_novel.py`, or of a copy of them that lies beside this
file or is named by --script; that script's own `Args`, `make_envs`, `make_env` and `Agent` are used.

Read it top to bottom: Args, loading, episodes, pictures, the page, main. `visualize_memory.html` is the page, a template
with one hole for the data. `visualize_memory_analysis.py` finds out what is remembered, where, and for how long.

Shapes: T steps of an episode, D = observation size, H = hidden_size, A = actions. A step's state is the one that has read
its observation and gives its action.
"""

import base64
import contextlib
import importlib.util
import io
import json
import math
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from minigrid.minigrid_env import MiniGridEnv
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from envs import EVAL_SEED, UsageError, check_env_id, success_return
from ppo_lstm_minigrid import load_checkpoint
from visualize_memory_analysis import analyse, at_fork, heatmap_shape, in_view, kind_of, on_grid

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # frames are pictures, no window opens
HERE = Path(__file__).resolve().parent
PAGE_LIMIT = 10e6  # bytes, for five episodes


@dataclass
class Args:
    checkpoint: tyro.conf.Positional[str]
    """an agent.pt, or an exported checkpoint"""
    env_id: str | None = None
    """environment to show the agent on; None is the one that it was trained on"""
    script: str | None = None
    """the script that made the checkpoint, where it does not lie beside this file"""
    episodes: int = 5
    """episodes to show"""
    seed: int = 1
    """selects the episodes"""
    sampled: bool = False
    """draw the shown episodes' actions from the policy, in place of the most probable ones"""
    out: str | None = None
    """folder to write to, files of the same name are replaced; None is memory/ENV_ID"""
    frames: bool = False
    """also write each step's frame and memory, as PNG and JSON"""
    video: bool = False
    """also write an mp4 of each episode, frame and memory side by side"""
    npz: bool = False
    """also write the raw trace, trace.npz"""
    analysis: bool = False
    """also ask what is remembered, where and for how long: analysis.png and analysis.json"""
    analysis_episodes: int = 400
    """episodes for each part of the analysis"""

    def __post_init__(self):
        for flag, holds, remedy in (
            ("--episodes", self.episodes >= 1, "must be at least 1"),
            ("--seed", 0 <= self.seed < 2**31, "must be between 0 and 2**31 - 1"),
            ("--analysis-episodes", self.analysis_episodes >= 20, "must be at least 20"),
        ):
            if not holds:
                raise UsageError(f"{flag} {remedy}, got {getattr(self, flag[2:].replace('-', '_'))}")


# ----------------------------------------------------------------------------------------------------------------------
# Loading
# ----------------------------------------------------------------------------------------------------------------------
def one_line(error) -> str:
    return (str(error).splitlines() or [""])[0]


def load_script(name: str, path: str | None):
    """The module of the script `name`, looked up beside this file and nowhere else, or of the file `path`.

    Raises UsageError. A checkpoint may name any file; only one that the user put here, or names, is run.
    """
    if path is None:
        if os.path.basename(name) != name or not name.endswith(".py") or not (HERE / name).is_file():
            raise UsageError(f"the checkpoint was written by {name!r}, which is not beside {Path(__file__).name}; "
                             "name that script with --script")  # fmt: skip
        path = HERE / name
    elif not Path(path).is_file():
        raise UsageError(f"--script: no file {path!r}")
    path = Path(path).resolve()
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # what it imports may lie beside it
    try:
        spec = importlib.util.spec_from_file_location("visualized_" + path.stem, path)
        script = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
    except (Exception, SystemExit) as error:  # whatever a foreign file raises, the user gets one line
        raise UsageError(f"--script: {str(path)!r} cannot be imported: {type(error).__name__}: {one_line(error)}") from error
    if missing := [part for part in ("Args", "make_envs", "make_env", "Agent") if not hasattr(script, part)]:
        raise UsageError(f"--script: {str(path)!r} has no {', '.join(missing)}")
    return script


@dataclass
class Subject:
    """The agent under study and where it plays."""

    script: object  # module
    args: object  # the script's Args, with env_id set to the environment to show
    agent: torch.nn.Module
    untrained: torch.nn.Module  # a network of the same shape, not trained
    about: dict  # for the page and analysis.json


def load_subject(args: Args) -> Subject:
    """Raises UsageError with one line where the checkpoint, the script and the environment do not fit together."""
    checkpoint = load_checkpoint(args.checkpoint)
    saved, weights = checkpoint["args"], checkpoint["agent"]
    if not isinstance(saved, dict) or not isinstance(weights, dict):
        raise UsageError(f"{args.checkpoint!r} is not a checkpoint")
    script = load_script(str(checkpoint["script"]), args.script)
    try:
        trained = script.Args(**saved)
    except TypeError as error:
        raise UsageError(f"{args.checkpoint!r} has other arguments than {script.__file__}: {one_line(error)}") from error
    if args.env_id is not None:
        check_env_id(args.env_id)
    run_args = replace(trained, env_id=args.env_id or trained.env_id)  # checks the id as the script does
    spaces = []
    for each in (trained, run_args):
        envs = script.make_envs(each, each.env_id, 1, "cpu")
        spaces.append((envs.single_observation_space, int(envs.single_action_space.n)))
        envs.close()
    if spaces[0] != spaces[1]:
        raise UsageError(f"--env-id: {run_args.env_id} has another observation or action space than {trained.env_id}")
    torch.manual_seed(args.seed)
    agent, untrained = (script.Agent(*spaces[0], run_args).eval() for _ in range(2))
    shapes = {name: value.shape for name, value in agent.state_dict().items()}
    if shapes != {name: getattr(value, "shape", None) for name, value in weights.items()}:
        raise UsageError(f"{args.checkpoint!r} holds other shapes than its arguments say; take another file")
    if not all(value.isfinite().all() for value in weights.values()):
        raise UsageError(f"{args.checkpoint!r} holds weights that are not finite; take an older file")
    agent.load_state_dict(weights)
    about = {"env_id": run_args.env_id, "trained_on": trained.env_id, "checkpoint": Path(args.checkpoint).name,
             "global_step": checkpoint.get("global_step"), "memoryless": bool(getattr(run_args, "memoryless", False)),
             "hidden_size": agent.initial_state(1)[0].shape[-1], "seed": args.seed}  # fmt: skip
    return Subject(script, run_args, agent, untrained, about)


# ----------------------------------------------------------------------------------------------------------------------
# Episodes
# ----------------------------------------------------------------------------------------------------------------------
@dataclass
class Episode:
    """One episode of T steps."""

    seed: int
    observations: np.ndarray = None  # (T, D)
    states: np.ndarray = None  # (T, 2, H) float32, hidden and cell, after reading observations[t]
    logits: np.ndarray = None  # (T, A), without random moves
    values: np.ndarray = None  # (T,)
    actions: np.ndarray = None  # (T,)
    rewards: np.ndarray = None  # (T,)
    dones: np.ndarray = None  # (T,) 1 where observations[t] is an episode's first, and the state was zeroed before it
    ends: np.ndarray = None  # (T, 2) bool, terminated and truncated, with step t
    frames: list[bytes] = field(default_factory=list)  # T + 1 WebP images; the last shows how it ended
    seen: list[bool] | None = None  # T, whether what has to be remembered is in view
    fork: int | None = None  # the first step at Memory's fork
    cue: str | None = None
    outcome: str = ""


def cue_of(world) -> str:
    return world.grid.get(1, world.height // 2 - 1).type


def choose_seeds(env: gym.Env, env_id: str, episodes: int, seed: int) -> list[int]:
    """Seeds for `env.reset`. On Memory: each cue and each side in turn, from different starts that have the cue behind."""
    first, world = EVAL_SEED + 1_000_000 * seed, env.unwrapped  # training cannot reach these
    if kind_of(env_id) != "Memory":
        return [first + n for n in range(episodes)]
    seeds, starts = [], set()
    for n in range(episodes):
        for attempt in range(200):
            candidate = first + 200 * n + attempt
            env.reset(seed=candidate)
            x, ball, below = int(world.agent_pos[0]), cue_of(world) == "ball", world.success_pos[1] > world.height // 2
            if (ball, below) == (n % 2 == 1, n // 2 % 2 == 1) and x > 1 and (x not in starts or attempt > 100):
                break
        starts.add(x)
        seeds.append(candidate)
    return seeds


def webp(frame: np.ndarray) -> bytes:
    """Lossless, and a quarter of PNG's size on such pictures."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "WEBP", lossless=True, quality=40, method=1)
    return file.getvalue()


@torch.no_grad()
def play(subject: Subject, env: gym.Env, seed: int, generator=None) -> Episode:
    """Play one episode and note everything: the most probable actions, or ones drawn with a `generator`."""
    episode, world, env_id, agent = Episode(seed), env.unwrapped, subject.args.env_id, subject.agent
    state, done, over, steps, seen = agent.initial_state(1), torch.ones(1), False, [], []
    obs, _ = env.reset(seed=seed)
    if kind_of(env_id) == "Memory":
        episode.cue = cue_of(world)
    while not over:
        episode.frames.append(webp(env.render()))
        if kind_of(env_id):
            (x, y), success_x = world.agent_pos, getattr(world, "success_pos", (None,))[0]
            variables = {"x": x, "y": y, "direction": world.agent_dir, "success_x": success_x}
            seen.append(bool(in_view(env_id, obs, variables)))
            if episode.fork is None and at_fork(env_id, variables):
                episode.fork = len(steps)
        read = torch.as_tensor(obs)[None]
        value = agent.get_value(read, state, done)
        logits, state = agent.get_logits(read, state, done)
        probs = logits.softmax(-1)
        action = int(probs.argmax() if generator is None else torch.multinomial(probs, 1, generator=generator))
        before, (obs, reward, *ends, _) = np.array(obs), env.step(action)
        over = any(ends)
        steps.append((before, torch.cat(state)[:, 0].numpy(), logits[0].numpy(), value.item(), action, float(reward),
                      done.item(), ends))  # fmt: skip
        done = torch.zeros(1)
    episode.frames.append(webp(env.render()))
    (episode.observations, episode.states, episode.logits, episode.values, episode.actions, episode.rewards,
     episode.dones, episode.ends) = (np.array(column) for column in zip(*steps, strict=True))  # fmt: skip
    episode.seen = seen or None
    solved = episode.rewards.sum() >= success_return(env_id)
    episode.outcome = "success" if solved else "failure" if ends[0] else "time limit"
    return episode


def action_names(env: gym.Env, actions: int) -> list[str]:
    if isinstance(env.unwrapped, MiniGridEnv):
        return [action.name for action in env.unwrapped.actions][:actions]
    return ["left", "right"] if isinstance(env.unwrapped, CartPoleEnv) else [str(a) for a in range(actions)]


# ----------------------------------------------------------------------------------------------------------------------
# Pictures, traces, the page
# ----------------------------------------------------------------------------------------------------------------------
def scales(episode: Episode) -> np.ndarray:
    """(2,) the largest magnitude of hidden and of cell state: colours run from minus to plus it, over the episode."""
    return np.abs(episode.states).max((0, 2)).clip(1e-6)


def paint(values: np.ndarray, scale: float) -> np.ndarray:
    """values (...) -> (..., 3) uint8: blue below zero, orange above, pale at zero; grey where NaN. The page's colours."""
    stops = np.array([(26, 74, 143), (91, 146, 205), (245, 244, 240), (236, 146, 83), (163, 61, 11)])
    at = np.linspace(-1, 1, len(stops))
    rgb = np.stack([np.interp(np.nan_to_num(values / scale), at, stops[:, c]) for c in range(3)], -1)
    return np.where(np.isnan(values)[..., None], 128, rgb).round().astype(np.uint8)


def memory_picture(state: np.ndarray, scale: np.ndarray, cell: int = 32) -> Image.Image:
    """state (2, H) -> the heatmap of the hidden state above that of the cell state, each unit `cell` pixels wide."""
    tiles = [np.kron(paint(on_grid(s), v), np.ones((cell, cell, 1), np.uint8)) for s, v in zip(state, scale, strict=True)]
    height, width, _ = tiles[0].shape
    font, line = ImageFont.load_default(14), 22
    picture = Image.new("RGB", (width, 2 * (height + line)), "white")
    for n, (name, tile) in enumerate(zip(("hidden", "cell"), tiles, strict=True)):
        top = n * (height + line)
        ImageDraw.Draw(picture).text((2, top + 3), f"{name}  ±{scale[n]:.2f}", "black", font)
        picture.paste(Image.fromarray(tile), (0, top + line))
    return picture


def write_frames(folder: Path, episode: Episode) -> None:
    """env_0000.png, memory_0000.png and memory_0000.json for each step. JSON: step, width, height, and row by row the hidden
    state (values) and the cell state (cell_values), null where there is no unit."""
    folder.mkdir(parents=True)
    scale, (rows, columns) = scales(episode), heatmap_shape(episode.states.shape[-1])
    for t, state in enumerate(tqdm(episode.states, f"{folder.name} frames", leave=False, disable=None)):
        Image.open(io.BytesIO(episode.frames[t])).save(folder / f"env_{t:04}.png")
        memory_picture(state, scale).save(folder / f"memory_{t:04}.png")
        hidden, cell = ([None if np.isnan(v) else round(float(v), 6) for v in on_grid(s).flat] for s in state)
        content = {"step": t, "width": columns, "height": rows, "values": hidden, "cell_values": cell}
        (folder / f"memory_{t:04}.json").write_text(json.dumps(content))


def write_video(path: Path, episode: Episode, fps: float) -> None:
    from moviepy import ImageSequenceClip  # slow to import, and only videos need it

    scale, pictures = scales(episode), []
    for t in range(len(episode.frames)):
        frame = Image.open(io.BytesIO(episode.frames[t])).convert("RGB")
        memory = memory_picture(episode.states[min(t, len(episode.states) - 1)], scale)
        memory = memory.resize((round(memory.width * frame.height / memory.height), frame.height), Image.Resampling.LANCZOS)
        size = (frame.width + 16 + memory.width + 1) // 2 * 2, (frame.height + 1) // 2 * 2  # H.264 wants even sides
        picture = Image.new("RGB", size, "white")
        picture.paste(frame, (0, 0))
        picture.paste(memory, (frame.width + 16, 0))
        pictures.append(np.asarray(picture))
    ImageSequenceClip([*pictures, *pictures[-1:] * math.ceil(fps)], fps=fps).write_videofile(str(path), logger=None)


def write_trace(path: Path, episodes: list[Episode]) -> None:
    """All episodes one after the other: arrays whose first axis is the step; see `Episode`, and `episode` (T,) counts them.
    dones is 1 where an observation is an episode's first: `agent.get_logits(observations, zero state, dones)` replays it."""
    names = ("observations", "states", "logits", "values", "actions", "rewards", "dones")
    columns = {name: np.concatenate([getattr(e, name) for e in episodes]) for name in names}
    terminated, truncated = np.concatenate([e.ends for e in episodes]).T
    number = np.repeat(np.arange(len(episodes)), [len(e.actions) for e in episodes])
    np.savez_compressed(path, **columns, terminated=terminated, truncated=truncated, episode=number)


def write_page(path: Path, subject: Subject, args: Args, episodes: list[Episode], names: list[str], fps: float,
               analysis: dict | None, figure: Path | None) -> None:  # fmt: skip
    """Fill the template. Equal frames are kept once; states are integers of 16 bits (8 where there are very many)."""
    frames, shown = {}, []
    dtype = np.int16 if sum(e.states.size for e in episodes) < 2e6 else np.int8
    for e in episodes:
        scale = scales(e)
        probs = torch.as_tensor(e.logits).softmax(-1)
        entropy = torch.special.entr(probs).sum(-1)
        coded = (e.states / scale[:, None] * np.iinfo(dtype).max).round().astype(dtype)
        shown.append({
            "frames": [frames.setdefault(frame, len(frames)) for frame in e.frames], "scale": scale.tolist(),
            "states": base64.b64encode(coded.tobytes()).decode(), "values": e.values.round(4).tolist(),
            "probs": probs.numpy().astype(float).round(4).tolist(), "entropy": entropy.numpy().astype(float).round(4).tolist(),
            "actions": e.actions.tolist(), "rewards": e.rewards.round(4).tolist(), "cue": e.cue, "outcome": e.outcome,
            "seen": e.seen and [int(s) for s in e.seen], "fork": e.fork, "seed": e.seed})  # fmt: skip
    rows, columns = heatmap_shape(episodes[0].states.shape[-1])
    data = subject.about | {
        "sampled": args.sampled, "fps": fps, "actions": names, "rows": rows, "columns": columns,
        "bits": 8 * np.dtype(dtype).itemsize, "episodes": shown, "what": "cue" if episodes[0].cue else "goal",
        "frames": [base64.b64encode(frame).decode() for frame in frames],
        "analysis": analysis and {"figure": base64.b64encode(figure.read_bytes()).decode(), "text": analysis["summary"],
                                  "top": analysis["units"]["ranking"][: analysis["units"]["top"]]}}  # fmt: skip
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # nothing in it may close the script element
    template = (HERE / "visualize_memory.html").read_text()
    path.write_text(template.replace("{{DATA}}", text))
    if path.stat().st_size > PAGE_LIMIT:
        print(f"the page has {path.stat().st_size / 1e6:.1f} MB; fewer --episodes make it smaller", file=sys.stderr)


# ----------------------------------------------------------------------------------------------------------------------
# Main
# ----------------------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def whole_or_nothing(out: Path):
    """A temporary folder whose content moves into `out` at the end; after an error neither it nor a new `out` is left."""
    near = next(p for p in (out, *out.parents) if p.exists())  # the same file system, so that moving is renaming
    try:
        folder = Path(tempfile.mkdtemp(prefix=".visualize_memory_", dir=near))
    except OSError as error:
        raise UsageError(f"--out: cannot write to {str(out)!r}: {error.strerror}; take another folder") from error
    try:
        yield folder
        out.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(out / path.name, ignore_errors=True)
            os.replace(path, out / path.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(args: Args) -> None:
    subject = load_subject(args)
    script, env_id = subject.script, subject.args.env_id
    if args.analysis:
        envs = script.make_envs(subject.args, env_id, 1, "cpu")
        envs.reset(seed=EVAL_SEED)
        try:
            envs.task_variables()
        except AttributeError:
            raise UsageError(f"--analysis: {env_id} has no task_variables(), which say what there is to remember") from None
    out = Path(args.out or Path("memory", env_id))
    with whole_or_nothing(out) as folder:
        env = script.make_env(subject.args, env_id)
        generator = torch.Generator().manual_seed(EVAL_SEED + args.seed) if args.sampled else None
        seeds = choose_seeds(env, env_id, args.episodes, args.seed)
        episodes = [play(subject, env, seed, generator) for seed in tqdm(seeds, "playing", leave=False, disable=None)]
        fps = 5 if isinstance(env.unwrapped, MiniGridEnv) else env.metadata.get("render_fps", 10)
        names = action_names(env, episodes[0].logits.shape[-1])
        env.close()
        for n, episode in enumerate(tqdm(episodes, "writing", leave=False, disable=None)):
            if args.frames:
                write_frames(folder / "frames" / f"episode_{n}", episode)
            if args.video:
                write_video(folder / f"episode_{n}.mp4", episode, fps)
        if args.npz:
            write_trace(folder / "trace.npz", episodes)
        analysis = None
        if args.analysis:
            analysis = analyse(subject, args.analysis_episodes, args.seed, folder / "analysis.png")
            (folder / "analysis.json").write_text(json.dumps(analysis, indent=1))
            print("\n".join(analysis["summary"]))
        write_page(folder / "memory.html", subject, args, episodes, names, fps, analysis, folder / "analysis.png")
    size = (out / "memory.html").stat().st_size / 1e6
    print(f"{out / 'memory.html'}: {len(episodes)} episodes, {sum(e.outcome == 'success' for e in episodes)} a success, "
          f"{size:.1f} MB; open it in a browser")  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a bad flag or file."""
    torch.set_num_threads(1)  # small networks are slower on many, and much slower where other processes run
    try:
        run(tyro.cli(Args, args=argv))
    except SystemExit as error:  # tyro has said what is wrong, or has shown --help
        return error.code or 0
    except (UsageError, OSError) as error:
        print(f"error: {str(error).removeprefix('--resume: ')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
