"""What a recurrent agent remembers, where, and for how long; `visualize_memory.py --analysis` writes what this finds.

1. A linear probe reads a task variable (the cue, a position, a velocity) from the agent's state. Its score against the
   time since that variable was in view says for how long it is kept. Beside it the same probe on the observation alone,
   on the states of an untrained network of the same shape (what a probe reads from any LSTM is not yet learned), and on both
   with noise added, as large as each unit's own spread (what is kept only in the last digits is no use to anybody).
2. A probe on each unit alone says which units carry it.
3. Zeroing those units while the agent plays says whether it is used.

`subject` has the `script` (for `make_envs`), its `args`, the `agent`, its `untrained` twin, and a dict `about` them.

Shapes: E episodes, N of them still playing, M rows (a row is one step of one episode), H = hidden_size, F inputs and
K outputs of a probe. A step's state is the one that has read its observation and gives its action.
"""

import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from minigrid.core.constants import DIR_TO_VEC, OBJECT_TO_IDX
from tqdm import tqdm

from envs import EVAL_SEED, success_return

RIDGE = 1e-3  # penalty of the probes, as a share of a standardised input's sum of squares; fixed, not tuned
FOLDS, RESAMPLES, SINGLE_LAGS = 5, 1000, 16
LOOKS = {"hidden": ("#1a4a8f", "-", "hidden state"), "cell": ("#d9702b", "-", "cell state"),
         "untrained": ("#4c9a6a", "-", "untrained network"), "hidden_noisy": ("#1a4a8f", "--", "hidden state + noise"),
         "untrained_noisy": ("#4c9a6a", "--", "untrained + noise"), "observation": ("#777777", ":", "observation")}  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# What has to be remembered, and when it was last in view
# ----------------------------------------------------------------------------------------------------------------------
def kind_of(env_id: str) -> str | None:
    """The tasks that have a thing to remember: a cue in "Memory", a goal in "Maze"."""
    return {f"envs:{kind}VectorEnv": kind for kind in ("Memory", "Maze")}.get(gym.registry[env_id].vector_entry_point)


def grid_size(env_id: str) -> int:
    return gym.registry[env_id].kwargs["size"]


def cue_in_view(obs, x, y, direction, size: int):
    """Whether Memory's cue is in view: obs (..., D) uint8; x, y, direction (...) of the agent; `size` of the grid -> (...).

    Exact: the view cell that lies over the cue's place, (1, size // 2 - 1), must show a key or a ball. The objects at the
    fork look the same and are not the cue; a wall that hides the cue's place hides the cue.
    """
    obs, x, y, direction = (np.asarray(v).astype(np.int64) for v in (obs, x, y, direction))
    view = math.isqrt((obs.shape[-1] - 1) // 3)
    cells = obs[..., :-1:3]  # object types (..., view * view), column by column
    if (cells == OBJECT_TO_IDX["agent"]).any(-1).all():  # the whole grid: only there the agent itself is shown
        return np.ones(x.shape, bool)
    step_x, step_y = np.moveaxis(np.array(DIR_TO_VEC)[direction], -1, 0)
    to_x, to_y = 1 - x, size // 2 - 1 - y
    ahead, right = to_x * step_x + to_y * step_y, to_y * step_x - to_x * step_y
    i, j = right + view // 2, view - 1 - ahead  # the agent looks towards j = 0 from the middle of the last row
    inside = (i >= 0) & (i < view) & (j >= 0) & (j < view)
    shown = np.take_along_axis(cells, (i * view + j).clip(0, view * view - 1)[..., None], -1)[..., 0]
    return inside & np.isin(shown, (OBJECT_TO_IDX["key"], OBJECT_TO_IDX["ball"]))


def in_view(env_id: str, obs, variables: dict):
    """Whether the cue or the goal is in view: obs (..., D), variables (...) -> (...); None where there is neither."""
    if kind_of(env_id) == "Memory":
        return cue_in_view(obs, variables["x"], variables["y"], variables["direction"], grid_size(env_id))
    return (obs[..., :-1:3] == OBJECT_TO_IDX["goal"]).any(-1) if kind_of(env_id) == "Maze" else None


def at_fork(env_id: str, variables: dict):
    """Whether Memory's agent stands between the two ends of the fork, (...) -> (...); elsewhere there is no fork: False."""
    if kind_of(env_id) != "Memory":
        return np.zeros(np.shape(next(iter(variables.values()), 0)), bool)
    return (variables["x"] == variables["success_x"]) & (variables["y"] == grid_size(env_id) // 2)


# ----------------------------------------------------------------------------------------------------------------------
# Episodes
# ----------------------------------------------------------------------------------------------------------------------
@torch.no_grad()
def roll_out(subject, episodes: int, seed: int, each_step=None, lesion=None) -> tuple[np.ndarray, np.ndarray]:
    """One episode in each of E environments of the batched form, starts as the environment draws them, actions drawn from
    the policy without random moves: the most probable ones would repeat a few dozen episodes.

    each_step(n, obs, states, variables) is told of every step of those still playing: their numbers n (N,), obs (N, D),
    states (N, 4, H) (hidden and cell of the agent, then of the untrained network), task variables (N,) each.
    lesion(n, variables) -> (N, H), 0 where the state that enters the step is zeroed, 1 elsewhere.
    Returns return and length of each episode, (E,) each.
    """
    agent, untrained = subject.agent, subject.untrained
    envs = subject.script.make_envs(subject.args, subject.args.env_id, episodes, "cpu")
    generator = torch.Generator().manual_seed(EVAL_SEED + seed)
    obs, _ = envs.reset(seed=EVAL_SEED + seed)
    state, other, done = agent.initial_state(episodes), untrained.initial_state(episodes), torch.ones(episodes)
    action = torch.zeros(episodes, dtype=torch.int64)
    returns, lengths, playing = torch.zeros(episodes), torch.zeros(episodes), torch.arange(episodes)
    with tqdm(total=episodes, desc="lesioned episodes" if lesion else "episodes", leave=False, disable=None) as bar:
        while len(playing):
            n = playing.numpy()
            variables = {name: np.asarray(value)[n] for name, value in envs.task_variables().items()}
            if lesion:
                kept = lesion(n, variables)
                state = tuple(s * kept for s in state)
            action[playing], state = agent.act(obs[playing], state, done, generator)
            if each_step:
                _, other = untrained.get_states(obs[playing], other, done)
                each_step(n, obs[playing].numpy(), torch.cat((*state, *other)).transpose(0, 1).numpy(), variables)
            obs, reward, terminated, truncated, _ = envs.step(action)
            returns[playing] += reward[playing]
            lengths[playing] += 1
            going_on = ~(terminated | truncated)[playing]
            state, other = (tuple(s[:, going_on] for s in pair) for pair in (state, other if each_step else state))
            playing, done = playing[going_on], torch.zeros(int(going_on.sum()))
            bar.update(episodes - len(playing) - bar.n)
    envs.close()
    return returns.numpy(), lengths.numpy()


def collect(subject, episodes: int, seed: int) -> tuple[dict, np.ndarray]:
    """Rows (M, ...) by name: episode, step, lag, fork, obs, states (M, 4, H) and the task's variables; and returns (E,).

    On Memory an episode's rows end with its first at the fork: after that, where the agent stands gives the cue away.
    """
    env_id, chunks, lag, reached = subject.args.env_id, [], np.full(episodes, -1), np.zeros(episodes, bool)

    def each_step(n, obs, states, variables):
        seen, fork, before = in_view(env_id, obs, variables), at_fork(env_id, variables), ~reached[n]
        if seen is not None:
            lag[n] = np.where(seen, 0, np.where(lag[n] < 0, -1, lag[n] + 1))
        columns = variables | {"episode": n, "step": np.full(len(n), len(chunks)), "lag": lag[n], "fork": fork, "obs": obs,
                               "states": states}  # fmt: skip
        chunks.append({name: value[before] for name, value in columns.items()})
        reached[n] |= fork

    returns, _ = roll_out(subject, episodes, seed, each_step)
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}, returns


# ----------------------------------------------------------------------------------------------------------------------
# Probes
# ----------------------------------------------------------------------------------------------------------------------
@dataclass
class Target:
    """What a probe reads: values (M, K), or K classes one-hot; lag (M,): steps `since` it was in view, -1 before that."""

    name: str
    values: np.ndarray
    lag: np.ndarray
    since: str
    classes: bool = False


def find_targets(rows: dict) -> list[Target]:
    """What to probe for: the cue; or agent and goal (also as seen from the agent) in a maze; or every task variable."""

    def numbers(*names):
        return np.stack([rows[name] for name in names], -1).astype(float)

    if "cue" in rows:
        return [Target("cue", np.eye(int(rows["cue"].max()) + 1)[rows["cue"]], rows["lag"], "the cue was last seen", True)]
    if {"x", "y", "goal_x", "goal_y", "direction"} <= rows.keys():
        to_goal, step = numbers("goal_x", "goal_y") - numbers("x", "y"), np.array(DIR_TO_VEC)[rows["direction"]]
        from_agent = np.stack(((to_goal * step).sum(1), to_goal[:, 1] * step[:, 0] - to_goal[:, 0] * step[:, 1]), 1)
        _, first, episode = np.unique(rows["episode"], return_index=True, return_inverse=True)
        way = numbers("x", "y") - numbers("x", "y")[first][episode]
        return [Target("position of the agent", numbers("x", "y"), rows["step"], "the episode began"),
                Target("agent's way from its start", way, rows["step"], "the episode began"),
                Target("position of the goal", numbers("goal_x", "goal_y"), rows["lag"], "the goal was last seen"),
                Target("goal ahead and to the right", from_agent, rows["lag"], "the goal was last seen")]  # fmt: skip
    names = rows.keys() - {"episode", "step", "lag", "fork", "obs", "states"}
    return [Target(name.replace("_", " "), numbers(name), rows["step"], "the episode began") for name in sorted(names)]


def one_hot(obs: np.ndarray) -> np.ndarray:
    """What a probe reads of the observation: integers (M, D) one-hot, column by column; other numbers as they are."""
    if obs.dtype.kind not in "ui":
        return obs.astype(float)
    return np.concatenate([column[:, None] == np.unique(column) for column in obs.T], 1).astype(float)


def make_folds(rows: dict, seed: int) -> np.ndarray:
    """(M,) the fold of each row. Whole episodes are held out; on Memory, where few starts exist, whole start cells (of a
    hallway length) with both cues: else a probe would be tested on the very walks that it was fitted to."""
    _, first, groups = np.unique(rows["episode"], return_index=True, return_inverse=True)
    if {"cue", "x", "success_x"} <= rows.keys():
        starts = np.stack((rows["x"][first], rows["success_x"][first]), 1)
        groups = np.unique(starts, axis=0, return_inverse=True)[1].reshape(-1)[groups]
    return np.random.default_rng(seed).permutation(groups.max() + 1)[groups] % FOLDS


def cross_validated(X: np.ndarray, target: Target, fold: np.ndarray) -> np.ndarray:
    """Ridge regression of the target (M, K) on X (M, F): each row's prediction (M, K) comes from a fit on the other folds.

    Standardised by the training rows; rows before the first sight of the target train nothing. A class is the largest of
    its K one-hot regressions.
    """
    prediction = np.zeros_like(target.values)
    for k in np.unique(fold):
        train = (fold != k) & (target.lag >= 0)
        if not train.any():  # never in view: nothing to learn from
            continue
        mean, deviation, offset = X[train].mean(0), X[train].std(0), target.values[train].mean(0)
        Z = (X - mean) / np.where(deviation > 1e-8, deviation, np.inf)  # what never varies in training says nothing
        gram = Z[train].T @ Z[train] + RIDGE * train.sum() * np.eye(X.shape[1])
        prediction[fold == k] = Z[fold == k] @ np.linalg.solve(gram, Z[train].T @ (target.values[train] - offset)) + offset
    return prediction


def wilson(hits, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    p = hits / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return min(p, (middle - half) / (1 + z * z / n)), max(p, (middle + half) / (1 + z * z / n))  # rounding could miss p


def score(prediction, target: Target, episode, bins, num_bins: int, seed: int, classes: bool | None = None) -> list[dict]:
    """Accuracy (classes) or R2 (numbers) in each bin of rows; bins (M,), -1 in none; bins of under 10 episodes are left out.

    With 95 % intervals: a bootstrap over episodes; for accuracy at least as wide as Wilson's for so many episodes, as a
    bootstrap of a sample without an error has no width.
    """
    E, inside, y = episode.max() + 1, bins >= 0, target.values - target.values.mean(0)
    classes = target.classes if classes is None else classes
    draws = np.random.default_rng(seed).multinomial(E, np.full(E, 1 / E), RESAMPLES)
    draws = np.concatenate((np.ones((1, E)), draws)).astype(float)  # the first is the sample itself

    def total(v):  # (M,) -> (1 + RESAMPLES, bins): the sum over the episodes of each draw
        sums = np.zeros((E, num_bins))
        np.add.at(sums, (episode[inside], bins[inside]), v[inside])
        return draws @ sums

    n = total(np.ones(len(bins)))
    with np.errstate(invalid="ignore", divide="ignore"):
        if classes:
            value = total((prediction.argmax(1) == y.argmax(1)).astype(float)) / n
        else:
            spread = total((y**2).sum(1)) - sum(total(column) ** 2 for column in y.T) / n
            value = 1 - total(((prediction - target.values) ** 2).sum(1)) / spread
    value[~np.isfinite(value)] = np.nan  # a bin without a row, or one in which the target does not vary
    results = []
    for b in range(num_bins):
        episodes = len(np.unique(episode[bins == b]))
        if episodes >= 10 and np.isfinite(value[0, b]):
            low, high = np.nanpercentile(value[1:, b], (2.5, 97.5))
            if classes:
                least = wilson(value[0, b] * episodes, episodes)
                low, high = min(low, least[0]), max(high, least[1])
            results.append({"bin": b, "value": float(value[0, b]), "low": float(low), "high": float(high),
                            "steps": int(n[0, b]), "episodes": episodes})  # fmt: skip
    return results


def lag_bins(lag: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The bin of each row (M,), and first and last lag of each bin: -1 (not yet seen), 0, 1, ..., then longer stretches."""
    edges = list(range(-1, SINGLE_LAGS + 2))
    while edges[-1] <= lag.max():
        edges.append(math.ceil(edges[-1] * 1.4))
    return np.searchsorted(edges, lag, "right") - 1, [(a, b - 1) for a, b in itertools.pairwise(edges)]


# ----------------------------------------------------------------------------------------------------------------------
# Findings
# ----------------------------------------------------------------------------------------------------------------------
def success(subject, returns: np.ndarray) -> dict:
    """The share of returns (E,) that are a success, with Wilson's interval."""
    hits = returns >= success_return(subject.args.env_id)
    low, high = wilson(hits.sum(), len(hits))
    return {"value": float(hits.mean()), "low": float(low), "high": float(high)}


def intervene(subject, episodes: int, seed: int, ranking: list[int]) -> dict:
    """New episodes with k units (hidden and cell) zeroed: the k that tell most, or k random ones, other ones each episode.

    On Memory once: in the state that enters the first step at the fork, so that what the agent knew there is gone, and
    only that. (It may walk back and look again.) Elsewhere there is no such moment: in the state that enters every step,
    so that these units carry nothing over. All units: amnesia at the fork; elsewhere the memoryless control.
    """
    env_id, E, H = subject.args.env_id, episodes, len(ranking)
    sizes = sorted({round(H * eighth / 8) for eighth in range(1, 8)} - {0, H})
    variants = [("none", 0), *((kind, k) for k in sizes for kind in ("best", "random")), ("all", H)]
    rng, kept = np.random.default_rng(seed + 1), np.ones((len(variants), E, H), np.float32)
    for n, (kind, k) in enumerate(variants):
        order = rng.random((E, H)).argsort(1) if kind == "random" else np.tile(ranking, (E, 1))
        np.put_along_axis(kept[n], order[:, :k], 0, axis=1)
    kept, reached = torch.from_numpy(kept.reshape(-1, H)), np.zeros(len(variants) * E, bool)
    once = kind_of(env_id) == "Memory"

    def lesion(n, variables):
        now = at_fork(env_id, variables) & ~reached[n] if once else np.ones(len(n), bool)
        reached[n] |= now
        return torch.where(torch.from_numpy(now)[:, None], kept[n], 1.0)

    returns, lengths = roll_out(subject, len(kept), seed + 1, lesion=lesion)
    results = []
    for (kind, k), r, length in zip(variants, returns.reshape(-1, E), lengths.reshape(-1, E), strict=True):
        low, high = np.percentile(rng.choice(r, (RESAMPLES, E)).mean(1), (2.5, 97.5))
        results.append({"units": kind, "zeroed": k, "success_rate": success(subject, r), "length": float(length.mean()),
                        "return": {"value": float(r.mean()), "low": float(low), "high": float(high)}})  # fmt: skip
    when = "once, in the state that enters the first step at the fork" if once else "in the state that enters every step"
    return {"when": when, "episodes": E, "variants": results}


def analyse(subject, episodes: int, seed: int, figure: Path) -> dict:
    """Probes, units, lesions; draws `figure` and returns what analysis.json holds."""
    rows, returns = collect(subject, episodes, seed)
    targets, fold, episode, H = find_targets(rows), make_folds(rows, seed), rows["episode"], subject.about["hidden_size"]
    states = rows["states"].astype(float)
    inputs = {"hidden": states[:, 0], "cell": states[:, 1], "observation": one_hot(rows["obs"]),
              "untrained": states[:, 2:].reshape(len(states), 2 * H)}  # fmt: skip
    rng = np.random.default_rng(seed)  # noise as large as each unit's spread: what only exact arithmetic keeps is drowned
    for name in ("hidden", "untrained"):
        inputs[name + "_noisy"] = inputs[name] + inputs[name].std(0) * rng.standard_normal(inputs[name].shape)
    result = subject.about | {
        "policy": "sampled, without random moves", "episodes": episodes, "steps": len(episode),
        "success_rate": success(subject, returns), "targets": {},
        "probe": f"ridge {RIDGE}, {FOLDS} folds of whole " + ("start cells" if "cue" in rows else "episodes")}  # fmt: skip

    # ---- for how long: one probe for each target and input; its score by the time since the target was in view
    for target in tqdm(targets, "probes", leave=False, disable=None):
        bins, stretches = lag_bins(target.lag)
        guessing = float(target.values[target.lag >= 0].mean(0).max()) if target.classes else 0.0
        entry = {"metric": "accuracy" if target.classes else "R2", "guessing": guessing, "since": target.since, "by_lag": {}}
        for name, X in inputs.items():
            prediction = cross_validated(X, target, fold)
            scores = score(prediction, target, episode, bins, len(stretches), seed)
            entry["by_lag"][name] = [dict(zip(("from", "to"), stretches[s.pop("bin")], strict=True)) | s for s in scores]
            if rows["fork"].any():
                at = score(prediction, target, episode, np.where(rows["fork"] & (target.lag >= 0), 0, -1), 1, seed)
                entry.setdefault("at_fork", {})[name] = at[0] if at else None
        result["targets"][target.name] = entry

    # ---- where: R2 of a probe on one unit alone (its hidden and cell state), once the target is out of view
    alone = np.zeros((len(targets), H))
    some = slice(None, None, max(1, len(episode) // 20_000))  # rows enough for two inputs
    for (n, target), unit in tqdm(list(itertools.product(enumerate(targets), range(H))), "units", leave=False, disable=None):
        part = replace(target, values=target.values[some], lag=target.lag[some])
        prediction, later = cross_validated(states[some, :2, unit], part, fold[some]), np.where(part.lag >= 1, 0, -1)
        found = score(prediction, part, episode[some], later, 1, seed, classes=False)
        alone[n, unit] = found[0]["value"] if found else 0.0
    telling = alone.clip(0).mean(0)
    ranking = np.argsort(-telling, kind="stable").tolist()
    by_target = dict(zip(result["targets"], alone.tolist(), strict=True))
    result["units"] = {"R2": by_target, "ranking": ranking, "top": max(1, H // 4)}

    # ---- is it used: the units that tell most are zeroed, against as many random ones and against all
    result["intervention"] = intervene(subject, episodes, seed, ranking)
    result["summary"] = summarise(result)
    draw(result, telling, figure)
    return result


def summarise(result: dict) -> list[str]:
    """The analysis in a few sentences, with its intervals."""

    def show(s):
        return f"{s['value']:.2f} [{s['low']:.2f}, {s['high']:.2f}]"

    lines = []
    for name, target in result["targets"].items():
        later = [s for s in target["by_lag"]["hidden"] if s["from"] >= 1]
        if not later:
            lines.append(f"{name}: too few steps on which it is out of view")
            continue
        # the longest time that half of the episodes reach, or else the one that most do: not chosen by its score
        half = [s for s in later if 2 * s["episodes"] >= result["episodes"]]
        at = half[-1] if half else max(later, key=lambda s: s["episodes"])
        found = {kind: show(s) for kind, scores in target["by_lag"].items() for s in scores if s["from"] == at["from"]}
        lines.append(f"{name}, {label(at)} steps after {target['since']}, {target['metric'].replace('2', '²')}: " + ", ".join(
            f"{text} {found[kind]}" for kind, (*_, text) in LOOKS.items() if kind in found))  # fmt: skip
    top, H = result["units"]["top"], result["hidden_size"]
    lines.append(f"units that tell most alone: {', '.join(map(str, result['units']['ranking'][:top]))}")
    rates = {(v["units"], v["zeroed"]): show(v["success_rate"]) for v in result["intervention"]["variants"]}
    told = [f"no unit zeroed {rates['none', 0]}"]
    for k in sorted({round(H / 4), round(H / 2)} - {0, H}):
        told.append(f"the {k} that tell most {rates['best', k]}, {k} random ones {rates['random', k]}")
    lines.append(f"success, zeroed {result['intervention']['when']}: {'; '.join(told)}; all {rates['all', H]}")
    return lines


def label(stretch: dict) -> str:
    low, high = stretch["from"], stretch["to"]
    return "not yet" if low < 0 else str(low) if low == high else f"{low}-{high}"


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


def draw(result: dict, telling: np.ndarray, path: Path) -> None:
    """One panel for each target, then the units in the page's layout, then the lesions."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # slow to import, and only the analysis needs it

    style = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "axes.titlesize": 11,
             "axes.titleweight": "bold", "axes.titlelocation": "left"}  # fmt: skip
    panels = len(result["targets"]) + 2
    columns = 2 if panels == 4 else 3
    rows = math.ceil(panels / columns)
    plt.rcParams.update(style)
    fig, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.7 * rows), layout="constrained", squeeze=False)
    fig.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    axes = iter(axes.flat)
    for name, target in result["targets"].items():
        ax, accuracy = next(axes), target["metric"] == "accuracy"
        stretches = {s["from"]: label(s) for scores in target["by_lag"].values() for s in scores}
        places = sorted(stretches)
        for kind, (colour, line, text) in LOOKS.items():
            scores = target["by_lag"][kind]
            at = [places.index(s["from"]) for s in scores]
            ax.plot(at, [s["value"] for s in scores], line, color=colour, label=text, lw=1.8, marker="o", ms=3)
            ax.fill_between(at, [s["low"] for s in scores], [s["high"] for s in scores], color=colour, alpha=0.15, lw=0)
        ax.axhline(target["guessing"], color="black", lw=0.8, alpha=0.6)
        ax.set(title=name, xlabel=f"steps since {target['since']}", ylim=(0.35 if accuracy else -0.15, 1.03))
        ax.set_ylabel("accuracy" if accuracy else "R²")
        thin = math.ceil(len(places) / 14)
        ax.set_xticks(range(0, len(places), thin), [stretches[p] for p in places[::thin]], rotation=45, ha="right", fontsize=9)
    fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2 * columns, frameon=False)

    ax, grid = next(axes), on_grid(telling)
    shown = ax.imshow(grid, cmap="viridis", vmin=0, vmax=max(0.1, telling.max()))
    for n in range(telling.size if telling.size <= 128 else 0):
        row, column = divmod(n, grid.shape[1])
        ink = "white" if telling[n] < 0.7 * telling.max() else "black"
        ax.text(column, row, n, ha="center", va="center", color=ink, fontsize=8)
    for n in result["units"]["ranking"][: result["units"]["top"]]:
        row, column = divmod(n, grid.shape[1])
        ax.add_patch(plt.Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, color="#e5484d", lw=2))
    ax.grid(False)
    ax.set(title="what each unit tells alone", xticks=[], yticks=[])
    fig.colorbar(shown, ax=ax, shrink=0.7, label="R² (red: the best quarter)")

    ax, variants = next(axes), result["intervention"]["variants"]
    for kind, colour, text in (("best", "#e5484d", "the units that tell most"), ("random", "#777777", "random units")):
        points = [v for v in variants if v["units"] in ("none", kind, "all")]
        value, low, high = (np.array([v["success_rate"][key] for v in points]) for key in ("value", "low", "high"))
        at = [v["zeroed"] for v in points]
        ax.errorbar(at, value, (value - low, high - value), color=colour, label=text, marker="o", ms=4, capsize=3)
        ax.set_xticks(at)
    where = "at the fork" if "once" in result["intervention"]["when"] else "at every step"
    ax.set(title=f"success, units zeroed {where}", xlabel="units zeroed", ylabel="success rate", ylim=(-0.03, 1.05))
    ax.legend(fontsize=9)
    for ax in axes:
        ax.axis("off")
    fig.savefig(path, dpi=110)
    plt.close(fig)
