"""Pictures, videos, traces, and the page: everything that is drawn and written of the episodes.

The page is `page.html` with the scripts that it names, and the data, put into the one file.
"""

import base64
import io
import json
import math
import re
import shutil
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
PAGE_LIMIT = 10e6  # bytes, for five episodes


# ---- Pictures
def webp(frame: np.ndarray) -> bytes:
    """Lossless, and a quarter of PNG's size on such pictures."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "WEBP", lossless=True, quality=40, method=1)
    return file.getvalue()


def heatmap_shape(hidden_size: int) -> tuple[int, int]:
    """Rows and columns, roughly square: exact where H allows it with at most twice as many columns as rows."""
    rows = max(r for r in range(1, math.isqrt(hidden_size) + 1) if hidden_size % r == 0)
    if hidden_size > 2 * rows * rows:
        rows = math.isqrt(hidden_size)
    return rows, math.ceil(hidden_size / rows)


def on_grid(values: np.ndarray) -> np.ndarray:
    """values (H,) -> (rows, columns), row by row, NaN where there is no unit."""
    rows, columns = heatmap_shape(len(values))
    return np.append(values, np.full(rows * columns - len(values), np.nan)).reshape(rows, columns)


def scales(episode) -> np.ndarray:
    """(2,) the largest magnitude of hidden and of cell state: colours run from minus to plus it, over the episode."""
    return np.abs(episode.states).max((0, 2)).clip(1e-6)


def paint(values: np.ndarray, scale: float) -> np.ndarray:
    """values (...) -> (..., 3) uint8: blue below zero, orange above, pale at zero; grey where NaN, as on the page."""
    stops = np.array([(26, 74, 143), (91, 146, 205), (245, 244, 240), (236, 146, 83), (163, 61, 11)])
    at = np.linspace(-1, 1, len(stops))
    rgb = np.stack([np.interp(np.nan_to_num(values / scale), at, stops[:, c]) for c in range(3)], -1)
    return np.where(np.isnan(values)[..., None], 128, rgb).round().astype(np.uint8)


def memory_picture(state: np.ndarray, scale: np.ndarray, cell: int = 32) -> Image.Image:
    """state (2, H) -> the heatmap of the hidden state above that of the cell state, each unit `cell` pixels wide."""
    square = np.ones((cell, cell, 1), np.uint8)
    tiles = [np.kron(paint(on_grid(s), v), square) for s, v in zip(state, scale, strict=True)]
    height, width, _ = tiles[0].shape
    font, line = ImageFont.load_default(14), 22
    picture = Image.new("RGB", (width, 2 * (height + line)), "white")
    for n, (name, tile) in enumerate(zip(("hidden", "cell"), tiles, strict=True)):
        top = n * (height + line)
        ImageDraw.Draw(picture).text((2, top + 3), f"{name}  ±{scale[n]:.2f}", "black", font)
        picture.paste(Image.fromarray(tile), (0, top + line))
    return picture


def observation_picture(obs, space) -> np.ndarray:
    """What is shown where an environment draws no pictures, (height, width, 3) uint8: a bar for each number of the
    observation, or from 33 numbers on a square for each. Bounded numbers fill their half at the bound."""
    bound = np.maximum(np.abs(space.low), np.abs(space.high)).astype(float).ravel()
    known = np.isfinite(bound) & (bound > 0) & (bound < 1e6)
    values = np.nan_to_num(np.asarray(obs, float).ravel())
    share = np.where(known, values / np.where(known, bound, 1), values / (1 + np.abs(values))).clip(-1, 1)
    if len(values) > 32:
        return np.kron(paint(on_grid(share), 1), np.ones((24, 24, 1), np.uint8))
    line, middle, half, font = 28, 210, 150, ImageFont.load_default(14)
    picture = Image.new("RGB", (2 * middle + 60, line * len(values) + 12), "white")
    draw = ImageDraw.Draw(picture)
    for n, (value, part) in enumerate(zip(values, share, strict=True)):
        top, end = 6 + n * line, middle + half * part
        draw.text((8, top + 6), str(n), "black", font)
        draw.rectangle((min(middle, end), top + 4, max(middle, end), top + line - 4), tuple(paint(np.array(part), 1)))
        draw.text((middle + half + 12, top + 6), f"{value:.3g}", "black", font)
    draw.line((middle, 4, middle, picture.height - 4), "grey")
    return np.asarray(picture)


# ---- Files
def write_frames(folder: Path, episodes: list) -> None:
    """episode_0/env_0000.png, memory_0000.png and memory_0000.json for each step, in a new `folder`. JSON: step, width,
    height, and row by row the hidden state (values) and the cell state (cell_values), null where there is no unit."""
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run, whose episodes were others
    for n, episode in enumerate(tqdm(episodes, "frames", leave=False, disable=None)):
        inside, scale = folder / f"episode_{n}", scales(episode)
        rows, columns = heatmap_shape(episode.states.shape[-1])
        inside.mkdir(parents=True)
        for t, state in enumerate(episode.states):
            Image.open(io.BytesIO(episode.frames[t])).save(inside / f"env_{t:04}.png")
            memory_picture(state, scale).save(inside / f"memory_{t:04}.png")
            hidden, cell = ([None if np.isnan(v) else round(float(v), 6) for v in on_grid(s).flat] for s in state)
            content = {"step": t, "width": columns, "height": rows, "values": hidden, "cell_values": cell}
            (inside / f"memory_{t:04}.json").write_text(json.dumps(content), encoding="utf-8")


def write_video(path: Path, episode, fps: float) -> None:
    """An mp4, frame and memory side by side; one picture at a time goes to the encoder."""
    scale, last = scales(episode), len(episode.states) - 1

    def picture(t, size=None):
        frame = Image.open(io.BytesIO(episode.frames[t])).convert("RGB")
        memory = memory_picture(episode.states[min(t, last)], scale)
        width = round(memory.width * frame.height / memory.height)
        size = size or ((frame.width + 16 + width + 1) // 2 * 2, (frame.height + 1) // 2 * 2)  # H.264 wants even sides
        both = Image.new("RGB", size, "white")
        both.paste(frame, (0, 0))
        both.paste(memory.resize((width, frame.height), Image.Resampling.LANCZOS), (frame.width + 16, 0))
        return both

    size = picture(0).size
    options = {"macro_block_size": 2, "output_params": ["-threads", "1", "-preset", "veryfast"]}  # small in memory
    video = imageio_ffmpeg.write_frames(str(path), size, fps=fps, **options)
    video.send(None)  # starts the encoder
    for t in (*range(len(episode.frames)), *[last + 1] * math.ceil(fps)):  # the end stands for a second
        video.send(picture(t, size).tobytes())
    video.close()


def write_trace(path: Path, episodes: list) -> None:
    """All episodes one after the other: arrays whose first axis is the step, see `Episode`; `episode` (T,) counts them.
    dones is 1 where an observation is an episode's first: `agent.get_states(observations, zero state, dones)` replays
    it."""
    names = ("observations", "states", "logits", "values", "actions", "rewards", "dones")
    columns = {name: np.concatenate([getattr(e, name) for e in episodes]) for name in names}
    terminated, truncated = np.concatenate([e.ends for e in episodes]).T
    number = np.repeat(np.arange(len(episodes)), [len(e.actions) for e in episodes])
    np.savez_compressed(path, **columns, terminated=terminated, truncated=truncated, episode=number)


def page_data(about: dict, episodes: list, analysis: dict | None, figure: Path) -> dict:
    """What the page knows. Equal frames are kept once; states are integers of 16 bits (8 where there are very many)."""
    frames, shown = {}, []
    dtype = np.int16 if sum(e.states.size for e in episodes) < 2e6 else np.int8
    for e in episodes:
        scale, probs = scales(e), torch.as_tensor(e.logits).double().softmax(-1)
        coded = (e.states / scale[:, None] * np.iinfo(dtype).max).round().astype(dtype)
        shown.append({
            "frames": [frames.setdefault(frame, len(frames)) for frame in e.frames], "scale": scale.tolist(),
            "states": base64.b64encode(coded.tobytes()).decode(), "values": e.values.round(4).tolist(),
            "probs": probs.numpy().round(4).tolist(),
            "entropy": torch.special.entr(probs).sum(-1).numpy().round(4).tolist(),
            "actions": e.actions.tolist(), "rewards": e.rewards.round(4).tolist(), "cue": e.cue, "outcome": e.outcome,
            "seen": e.seen and [int(s) for s in e.seen], "fork": e.fork, "seed": e.seed})
    rows, columns = heatmap_shape(about["hidden_size"])
    told = analysis and {"figure": base64.b64encode(figure.read_bytes()).decode(), "text": analysis["summary"],
                         "top": analysis["units"]["ranking"][: analysis["units"]["top"]]}
    return about | {"rows": rows, "columns": columns, "bits": 8 * np.dtype(dtype).itemsize, "episodes": shown,
                    "analysis": told, "frames": [base64.b64encode(frame).decode() for frame in frames]}


def read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def write_page(path: Path, about: dict, episodes: list, analysis: dict | None, figure: Path, live: dict) -> None:
    """Put the files that `page.html` names, and the data, into one file; modules are joined in one function."""
    data = {"{{DATA}}": page_data(about, episodes, analysis, figure), "{{LIVE}}": live}

    def module(found):
        text = "".join(map(read, found[1].split()))
        return f'<script>\n(() => {{\n"use strict";\n{text}}})();\n</script>'

    page = read("page.html")
    for pattern, inline in (
        (r"<!-- ([\w./]+) -->\n", lambda found: read(found[1])),
        (r'<link rel="stylesheet" href="([\w./]+)">', lambda found: f"<style>\n{read(found[1])}</style>"),
        (r'<script src="([\w.]+)"></script>', lambda found: f"<script>\n{read(found[1])}</script>"),
        (r'<script data-modules="([^"]+)"></script>', module),
    ):
        page = re.sub(pattern, inline, page)
    for hole, content in data.items():  # nothing in it may close the script element
        page = page.replace(hole, json.dumps(content, separators=(",", ":")).replace("<", "\\u003c"))
    path.write_text(page, encoding="utf-8")
    if path.stat().st_size > PAGE_LIMIT:
        print(f"the page has {path.stat().st_size / 1e6:.1f} MB; fewer --episodes make it smaller", file=sys.stderr)
