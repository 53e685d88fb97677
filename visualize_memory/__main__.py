"""Show what a recurrent agent remembers: a page to send, pictures, a raw trace, and an analysis of the memory.

    python visualize_memory benchmark/checkpoints/MiniGrid-MemoryS13-v0.pt --analysis
    python visualize_memory CHECKPOINT --env-id MiniGrid-MemoryS17Random-v0 --frames --video --npz

The checkpoint is one of `ppo_lstm_minigrid.py`, `ppo_lstm_cartpole_novel.py`, or of a copy that lies beside them or is
named by --script; that script's own `load_agent`, `make_envs`, `make_env` and `Agent` are used.

`episodes.py` loads the agent and plays, `page.py` draws and writes, `page.html` and the scripts that it names are the
page, and `analysis.py` finds out what is remembered, where, and for how long. `live.py` and the folder `live` let the
agent live in the page.
"""

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import torch
import tyro
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project, whose folder this is and not a package
from visualize_memory import page
from visualize_memory.analysis import analyse
from visualize_memory.episodes import load_subject, one_line, play_episodes, require_variables
from visualize_memory.live import live_data

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # frames are pictures, no window opens


@dataclass
class Args:
    checkpoint: tyro.conf.Positional[str]  # an agent.pt, or an exported checkpoint
    env_id: str | None = None  # environment to show the agent on; None is the one that it was trained on
    script: str | None = None  # the script that made the checkpoint, where it does not lie in the project's folder
    episodes: int = 5  # episodes to show
    seed: int = 1  # selects the episodes
    sampled: bool = False  # draw the shown episodes' actions from the policy, not its most probable ones
    out: str | None = None  # folder to write to, files of the same name are replaced; None is memory/ENV_ID
    frames: bool = False  # also write each step's frame and memory, as PNG and JSON
    video: bool = False  # also write an mp4 of each episode, frame and memory side by side
    npz: bool = False  # also write the raw trace, trace.npz
    analysis: bool = False  # also ask what is remembered, where and for how long: analysis.png and analysis.json
    analysis_episodes: int = 400  # episodes for each part of the analysis


def check(args: Args) -> None:
    """Raises ValueError with one line that names the flag."""
    for name, least, most in (("episodes", 1, 10**4), ("seed", 0, 2**31 - 1), ("analysis_episodes", 20, 10**6)):
        if not least <= getattr(args, name) <= most:
            raise ValueError(f"--{name.replace('_', '-')} must be from {least} to {most}, got {getattr(args, name)}")


def writable(out: Path) -> Path:
    """The folder `out`, made if need be. Raises ValueError where nothing can be written to it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return out
    except OSError as error:
        raise ValueError(f"--out: cannot write to {str(out)!r}: {error.strerror}; take another folder") from error


def run(args: Args) -> None:
    check(args)
    subject = load_subject(args.checkpoint, args.env_id, args.script, args.seed)
    if args.analysis:
        require_variables(subject)
    if args.video:
        try:
            imageio_ffmpeg.get_ffmpeg_exe()
        except RuntimeError as error:
            raise ValueError(f"--video: {one_line(error)}") from error
    out, analysis = writable(Path(args.out or Path("memory", subject.args.env_id))), None
    episodes = play_episodes(subject, args.episodes, args.seed, args.sampled)
    if args.frames:
        page.write_frames(out / "frames", episodes)
    for n, episode in enumerate(tqdm(episodes, "videos", leave=False, disable=None) if args.video else ()):
        page.write_video(out / f"episode_{n}.mp4", episode, subject.about["fps"])
    if args.npz:
        page.write_trace(out / "trace.npz", episodes)
    if args.analysis:
        analysis = analyse(subject, args.analysis_episodes, args.seed, out / "analysis.png")
        (out / "analysis.json").write_text(json.dumps(analysis, indent=1), encoding="utf-8")
    live = live_data(subject, args.seed, analysis)
    page.write_page(out / "memory.html", subject.about, episodes, analysis, out / "analysis.png", live)
    size, solved = (out / "memory.html").stat().st_size / 1e6, sum(e.outcome == "success" for e in episodes)
    done = f"{out / 'memory.html'}: {len(episodes)} episodes, {solved} a success, {size:.1f} MB; open it in a browser"
    print("\n".join([*(analysis["summary"] if analysis else ()), done]))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a bad flag or file."""
    torch.set_num_threads(1)  # small networks are slower on many, and much slower where other processes run
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # a console may be closed (then it is None), or lack letters
        stream.reconfigure(errors="replace")
    try:
        run(tyro.cli(Args, args=argv, prog="visualize_memory"))
    except SystemExit as error:  # tyro has said what is wrong, or has shown --help
        return error.code or 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
