"""What a recurrent agent remembers, where, and for how long: what `--analysis` finds.

1. A linear probe reads a task variable (the cue, a position, a velocity) from the agent's state. Its score against the
   time since that variable was in view says for how long it is kept. Beside it the same probe on the observation alone,
   on the states of an untrained network of the same shape (what a probe reads from any LSTM is not yet learned), and on
   both with noise added, as large as each unit's own spread (what is kept in the last digits only cannot be used).
2. A probe on each unit alone says which units carry it.
3. Zeroing those units while the agent plays says whether it is used.

Shapes: E episodes, N of them still playing, M rows (a row is one step of one episode), H = hidden_size, F inputs and
K outputs of a probe. A step's state is the one that has read its observation and gives its action.
"""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from minigrid.core.constants import DIR_TO_VEC
from tqdm import tqdm

from envs import spawn_seeds, success_return
from visualize_memory.episodes import LONGEST, at_fork, in_view, kind_of
from visualize_memory.page import on_grid

RIDGE = 1e-3  # penalty of the probes, as a share of a standardised input's sum of squares; fixed, not tuned
FOLDS, RESAMPLES, SINGLE_LAGS = 5, 1000, 16
VARIES = 0.05  # a bin's rows must vary by this share of the target's variance, or there is nothing to tell in it
LOOKS = {"hidden": ("#1a4a8f", "-", "hidden state"), "cell": ("#d9702b", "-", "cell state"),
         "untrained": ("#4c9a6a", "-", "untrained network"), "hidden_noisy": ("#1a4a8f", "--", "hidden state + noise"),
         "untrained_noisy": ("#4c9a6a", "--", "untrained + noise"), "observation": ("#777777", ":", "observation")}


# ---- Episodes
@torch.no_grad()
def roll_out(subject, episodes: int, seed: int, each_step=None, lesion=None) -> tuple[np.ndarray, np.ndarray]:
    """One episode in each of E environments of the batched form, starts as the environment draws them, actions drawn
    from the policy without random moves: the most probable ones would repeat a few dozen episodes.

    each_step(n, obs, states, variables) is told of every step of those still playing: their numbers n (N,), obs (N, D),
    states (N, 4, H) (hidden and cell of the agent, then of the untrained network), task variables (N, ...) each.
    lesion(n, variables) -> (N, H), 0 where the state that enters the step is zeroed, 1 elsewhere.
    Returns return and length of each episode, (E,) each.
    """
    agent, untrained, (start, draws) = subject.agent, subject.untrained, spawn_seeds(seed, 2, 2, evaluation=True)
    envs = subject.script.make_envs(subject.args, subject.args.env_id, episodes, "cpu")
    generator, (obs, _) = torch.Generator().manual_seed(draws), envs.reset(seed=start)
    state, other, done = agent.initial_state(episodes), untrained.initial_state(episodes), torch.ones(episodes)
    action, playing = torch.zeros(episodes, dtype=torch.int64), torch.arange(episodes)
    returns, lengths = torch.zeros(2, episodes)
    bar = tqdm(total=episodes, desc="lesioned episodes" if lesion else "episodes", leave=False, disable=None)
    while len(playing) and lengths.max() < LONGEST:
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
    bar.close()
    envs.close()
    return returns.numpy(), lengths.numpy()


def collect(subject, episodes: int, seed: int) -> tuple[dict, np.ndarray]:
    """Rows (M, ...) by name: episode, step, lag, fork, obs, states (M, 4, H), "variables" (a dict); and returns (E,).

    On Memory an episode's rows end with its first at the fork: after that, where the agent stands gives the cue away.
    """
    env_id, chunks, lag, reached = subject.args.env_id, [], np.full(episodes, -1), np.zeros(episodes, bool)

    def each_step(n, obs, states, variables):
        seen, fork, before = in_view(subject.args, obs, variables), at_fork(env_id, variables, len(n)), ~reached[n]
        if seen is not None:
            lag[n] = np.where(seen, 0, np.where(lag[n] < 0, -1, lag[n] + 1))
        columns = {"episode": n, "step": np.full(len(n), len(chunks)), "lag": lag[n], "fork": fork, "obs": obs,
                   "states": states} | {("variable", name): value for name, value in variables.items()}
        chunks.append({name: value[before] for name, value in columns.items()})
        reached[n] |= fork

    returns, _ = roll_out(subject, episodes, seed, each_step)
    rows = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    variables = {name[1]: rows.pop(name) for name in list(rows) if isinstance(name, tuple)}
    return rows | {"variables": variables, "kind": kind_of(env_id)}, returns


# ---- Probes
@dataclass
class Target:
    """What a probe reads: values (M, K), or K classes one-hot; lag (M,): steps `since` it was in view, -1 before."""

    name: str
    values: np.ndarray
    lag: np.ndarray
    since: str
    classes: bool = False


def find_targets(rows: dict) -> list[Target]:
    """What to probe for: Memory's cue; agent and goal (also as seen from the agent) in a maze; or every task variable,
    those with two values as classes. Raises ValueError where one is not made of numbers."""
    v, began, targets = rows["variables"], "the episode began", []
    if rows["kind"] == "Memory":
        return [Target("cue", np.eye(2)[v["cue"]], rows["lag"], "the cue was last seen", classes=True)]
    if rows["kind"] == "Maze":
        position, goal = (np.stack((v[x], v[y]), 1).astype(float) for x, y in (("x", "y"), ("goal_x", "goal_y")))
        to_goal, step = goal - position, np.array(DIR_TO_VEC)[v["direction"]]
        from_agent = np.stack(((to_goal * step).sum(1), to_goal[:, 1] * step[:, 0] - to_goal[:, 0] * step[:, 1]), 1)
        _, first, episode = np.unique(rows["episode"], return_index=True, return_inverse=True)
        return [Target("position of the agent", position, rows["step"], began),
                Target("agent's way from its start", position - position[first][episode], rows["step"], began),
                Target("position of the goal", goal, rows["lag"], "the goal was last seen"),
                Target("goal ahead and to the right", from_agent, rows["lag"], "the goal was last seen")]
    for name, values in sorted(v.items()):
        if values.dtype.kind not in "biuf":
            raise ValueError(f"--analysis: task variable {name!r} is {values.dtype}, not a number")
        values = values.reshape(len(values), -1).astype(float)
        kinds, index = np.unique(values, axis=0, return_inverse=True)
        classes = len(kinds) == 2
        values = np.eye(2)[index.ravel()] if classes else values
        targets.append(Target(str(name).replace("_", " "), values, rows["step"], began, classes))
    return targets


def beyond_time(target: Target) -> Target:
    """Numbers less their mean over the rows of the same lag: R2 compares with that mean, and what the time alone
    decides is then zero in every row. Classes stay."""
    lag = target.lag + 1
    means = [np.bincount(lag, column)[lag] / np.bincount(lag)[lag] for column in target.values.T]
    rest = target.values - np.stack(means, 1)
    rest = np.where(np.abs(rest) > 1e-9 * np.abs(target.values).max(), rest, 0.0)  # not what rounding leaves
    return target if target.classes else replace(target, values=rest)


def one_hot(obs: np.ndarray) -> np.ndarray:
    """What a probe reads of the observation: integers (M, D) one-hot, column by column; other numbers as they are."""
    if obs.dtype.kind not in "ui":
        return obs.astype(float)
    return np.concatenate([column[:, None] == np.unique(column) for column in obs.T], 1).astype(float)


def make_folds(rows: dict, seed: int) -> np.ndarray:
    """(M,) the fold of each row. Whole episodes are held out; on Memory, where few starts exist, whole start cells with
    both cues and all hallway lengths: else a probe would be tested on the very walks that it was fitted to."""
    _, first, groups = np.unique(rows["episode"], return_index=True, return_inverse=True)
    if rows["kind"] == "Memory":
        groups = np.unique(rows["variables"]["x"][first], return_inverse=True)[1].reshape(-1)[groups]
    return np.random.default_rng(seed).permutation(groups.max() + 1)[groups] % FOLDS


def cross_validated(X: np.ndarray, target: Target, fold: np.ndarray) -> np.ndarray:
    """Ridge regression of the target (M, K) on X (M, F): each row's prediction (M, K) comes from a fit on other folds.

    Rows before the first sight of the target train nothing. A class is the largest of its K one-hot regressions.
    Inputs are scaled by their spread over all rows: over the training rows it can be next to nothing (a silent unit),
    and what the unit does in the others would be blown up.
    """
    prediction, deviation = np.zeros_like(target.values), X.std(0)
    X = X / np.where(deviation > 1e-6 * np.abs(X).max(0).clip(1e-6), deviation, np.inf)
    for k in np.unique(fold):
        train = (fold != k) & (target.lag >= 0)
        if train.any():  # else it was never in view
            Z, offset = X - X[train].mean(0), target.values[train].mean(0)
            gram = Z[train].T @ Z[train] + RIDGE * train.sum() * np.eye(X.shape[1])
            weights = np.linalg.solve(gram, Z[train].T @ (target.values[train] - offset))
            prediction[fold == k] = Z[fold == k] @ weights + offset
    return prediction


def wilson(hits, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    p = hits / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return min(p, (middle - half) / (1 + z * z / n)), max(p, (middle + half) / (1 + z * z / n))  # rounding could miss p


def score(prediction, target: Target, episode, bins, seed: int, classes: bool | None = None):
    """Accuracy (classes) or R2 (numbers) in each bin of rows, as pairs (bin, dict); bins (M,), -1 in none. Left out are
    bins of under 10 episodes, and those in which the target (almost) does not vary: R2 compares with that variation.

    With 95 % intervals: a bootstrap over episodes; for accuracy at least as wide as Wilson's for so many episodes, as a
    bootstrap of a sample without an error has no width.
    """
    E, y, results = episode.max() + 1, target.values - target.values.mean(0), []
    classes = target.classes if classes is None else classes
    hit = prediction.argmax(1) == y.argmax(1) if classes else -((prediction - target.values) ** 2).sum(1)
    columns = np.stack((np.ones(len(y)), hit, (y**2).sum(1), *y.T))
    resamples = np.random.default_rng(seed).multinomial(E, np.full(E, 1 / E), RESAMPLES)
    weights = np.concatenate((np.ones((1, E)), resamples))  # of the episodes; the first are the sample itself
    for b in np.unique(bins[bins >= 0]):
        rows = bins == b
        n, hits, squares, *sums = (weights @ np.bincount(episode[rows], c[rows], E) for c in columns)
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = squares - sum(total**2 for total in sums) / n
            value = hits / n if classes else 1 + hits / spread
        value[~(spread > VARIES * n * columns[2].mean())] = np.nan
        episodes = len(np.unique(episode[rows]))
        if episodes >= 10 and np.isfinite(value[0]):
            low, high = np.nanpercentile(value[1:], (2.5, 97.5))
            if classes:
                least = wilson(value[0] * episodes, episodes)
                low, high = min(low, least[0]), max(high, least[1])
            results.append((b, {"value": float(value[0]), "low": float(low), "high": float(high), "steps": int(n[0]),
                                "episodes": episodes}))
    return results


def lag_bins(lag: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The bin of each row (M,), and first and last lag of each bin: -1 (not yet seen), 0, 1, ..., then stretches."""
    edges = list(range(-1, SINGLE_LAGS + 2))
    while edges[-1] <= lag.max():
        edges.append(math.ceil(edges[-1] * 1.4))
    return np.searchsorted(edges, lag, "right") - 1, [(a, b - 1) for a, b in itertools.pairwise(edges)]


# ---- Findings
def success(subject, returns: np.ndarray) -> dict:
    """The share of returns (E,) that are a success, with Wilson's interval."""
    hits = returns >= success_return(subject.args.env_id)
    low, high = wilson(hits.sum(), len(hits))
    return {"value": float(hits.mean()), "low": float(low), "high": float(high)}


def intervene(subject, episodes: int, seed: int, ranking: list[int]) -> dict:
    """New episodes with k units (hidden and cell) zeroed: the k that tell most, or k random ones, others each episode.

    On Memory once: in the state that enters the first step at the fork, so that what the agent knew there is gone, and
    only that. (It may walk back and look again.) Elsewhere there is no such moment: in the state that enters every
    step, so that these units carry nothing over. All units: amnesia at the fork; elsewhere the memoryless control.
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
        now = at_fork(env_id, variables, len(n)) & ~reached[n] if once else np.ones(len(n), bool)
        reached[n] |= now
        return torch.where(torch.from_numpy(now)[:, None], kept[n], 1.0)

    returns, lengths = (x.reshape(-1, E) for x in roll_out(subject, len(kept), seed + 1, lesion=lesion))
    results = []
    for (kind, k), r, length in zip(variants, returns, lengths, strict=True):
        low, high = np.percentile(rng.choice(r, (RESAMPLES, E)).mean(1), (2.5, 97.5))
        results.append({"units": kind, "zeroed": k, "success_rate": success(subject, r), "length": float(length.mean()),
                        "return": {"value": float(r.mean()), "low": float(low), "high": float(high)}})
    when = "once, in the state that enters the first step at the fork" if once else "in the state that enters each step"
    return {"when": when, "episodes": E, "variants": results}


def analyse(subject, episodes: int, seed: int, figure) -> dict:
    """Probes, units, lesions; draws the file `figure` and returns what analysis.json holds."""
    rows, returns = collect(subject, episodes, seed)
    targets, fold, episode = [beyond_time(t) for t in find_targets(rows)], make_folds(rows, seed), rows["episode"]
    H, states = subject.about["hidden_size"], rows["states"].astype(float)
    inputs = {"hidden": states[:, 0], "cell": states[:, 1], "observation": one_hot(rows["obs"]),
              "untrained": states[:, 2:].reshape(len(states), 2 * H)}
    rng = np.random.default_rng(seed)  # noise as large as each unit's spread drowns what only exact arithmetic keeps
    for name in ("hidden", "untrained"):
        inputs[name + "_noisy"] = inputs[name] + inputs[name].std(0) * rng.standard_normal(inputs[name].shape)
    held_out = "start cells" if rows["kind"] == "Memory" else "episodes"
    result = subject.about | {
        "policy": "sampled, without random moves", "episodes": episodes, "steps": len(episode), "targets": {},
        "success_rate": success(subject, returns), "probe": f"ridge {RIDGE}, {FOLDS} folds of whole {held_out}"}

    # for how long: one probe for each target and input; its score by the time since the target was in view
    for target in tqdm(targets, "probes", leave=False, disable=None):
        bins, stretches = lag_bins(target.lag)
        guessing = float(target.values[target.lag >= 0].mean(0).max()) if target.classes else 0.0
        entry = result["targets"][target.name] = {"metric": "accuracy" if target.classes else "R2",
                                                  "guessing": guessing, "since": target.since, "by_lag": {}}
        for name, X in inputs.items():
            prediction = cross_validated(X, target, fold)
            scores = score(prediction, target, episode, bins, seed)
            entry["by_lag"][name] = [dict(zip(("from", "to"), stretches[b], strict=True)) | s for b, s in scores]
            if rows["fork"].any():
                at = score(prediction, target, episode, np.where(rows["fork"] & (target.lag >= 0), 0, -1), seed)
                entry.setdefault("at_fork", {})[name] = at[0][1] if at else None

    # where: R2 of a probe on one unit alone (its hidden and cell state), once the target is out of view
    alone = np.zeros((len(targets), H))
    some = slice(None, None, max(1, len(episode) // 20_000))  # rows enough for two inputs
    for unit, (n, target) in itertools.product(tqdm(range(H), "units", leave=False, disable=None), enumerate(targets)):
        part = replace(target, values=target.values[some], lag=target.lag[some])
        prediction, later = cross_validated(states[some, :2, unit], part, fold[some]), np.where(part.lag >= 1, 0, -1)
        found = score(prediction, part, episode[some], later, seed, classes=False)
        alone[n, unit] = found[0][1]["value"] if found else 0.0
    telling = alone.clip(0).mean(0)
    ranking = np.argsort(-telling, kind="stable").tolist()
    by_target = dict(zip(result["targets"], alone.tolist(), strict=True))
    result["units"] = {"R2": by_target, "ranking": ranking, "top": max(1, H // 4)}

    # is it used: the units that tell most are zeroed, against as many random ones and against all
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
            lines.append(f"{name}: nothing to tell, on too few steps it is out of view and differs between episodes")
            continue
        # the longest time that half of the episodes reach, or else the one that most do: not chosen by its score
        half = [s for s in later if 2 * s["episodes"] >= result["episodes"]]
        at = half[-1] if half else max(later, key=lambda s: s["episodes"])
        found = {kind: show(s) for kind, scores in target["by_lag"].items() for s in scores if s["from"] == at["from"]}
        told = ", ".join(f"{text} {found[kind]}" for kind, (*_, text) in LOOKS.items() if kind in found)
        metric = target["metric"].replace("2", "²")
        lines.append(f"{name}, {label(at)} steps after {target['since']}, {metric}: {told} (any LSTM echoes what "
                     "it saw, untrained ones too; a memory that was learned is strong enough to stand out of noise)")
    top, H = result["units"]["top"], result["hidden_size"]
    lines.append(f"units that tell most alone: {', '.join(map(str, result['units']['ranking'][:top]))}")
    rates = {(v["units"], v["zeroed"]): show(v["success_rate"]) for v in result["intervention"]["variants"]}
    told = [f"no unit zeroed {rates['none', 0]}"]
    for k in sorted({round(H / 4), round(H / 2)} - {0, H}):
        told.append(f"the {k} that tell most {rates['best', k]}, {k} random ones {rates['random', k]}")
    lines.append(f"success, zeroed {result['intervention']['when']}: {'; '.join(told)}; all {rates['all', H]} "
                 "(an agent that has lost all of it may go back and look again)")
    return lines


def label(stretch: dict) -> str:
    low, high = stretch["from"], stretch["to"]
    return "before" if low < 0 else str(low) if low == high else f"{low}-{high}"


def draw(result: dict, telling: np.ndarray, path) -> None:
    """One panel for each target, then the units in the page's layout, then the lesions."""
    import matplotlib.figure  # slow to import, and only this needs it

    matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11,
                                "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.fontsize": 9})
    panels = len(result["targets"]) + 2
    columns = 2 if panels == 4 else 3
    rows = math.ceil(panels / columns)
    fig = matplotlib.figure.Figure(figsize=(4.6 * columns, 3.7 * rows), layout="constrained")
    fig.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    axes = [fig.add_subplot(rows, columns, n + 1) for n in range(panels)]
    for ax, (name, target) in zip(axes, result["targets"].items(), strict=False):
        accuracy, stretches = target["metric"] == "accuracy", {}
        for scores in target["by_lag"].values():
            stretches |= {s["from"]: label(s) for s in scores}
        places = sorted(stretches)
        for kind, (colour, line, text) in LOOKS.items():
            value, low, high = ([s[key] for s in target["by_lag"][kind]] for key in ("value", "low", "high"))
            at = [places.index(s["from"]) for s in target["by_lag"][kind]]
            ax.plot(at, value, line, color=colour, label=text, lw=1.8, marker="o", ms=3)
            ax.fill_between(at, low, high, color=colour, alpha=0.15, lw=0)
        ax.axhline(target["guessing"], color="black", lw=0.8, alpha=0.6)
        ax.set(xlabel=f"steps since {target['since']}", ylim=(0.35 if accuracy else -0.15, 1.03),
               ylabel="accuracy" if accuracy else "R²", title=name if places else f"{name}: nothing to tell")
        shown = range(0, len(places), math.ceil(len(places) / 14) or 1)
        ax.set_xticks(shown, [stretches[places[p]] for p in shown], rotation=45, ha="right", fontsize=9)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2 * columns, frameon=False)

    units, ax, grid = axes[-2], axes[-1], on_grid(telling)
    image = units.imshow(grid, cmap="viridis", vmin=0, vmax=max(0.1, telling.max()))
    for rank, n in enumerate(result["units"]["ranking"]):
        row, column = divmod(n, grid.shape[1])
        if len(telling) <= 128:
            ink = "white" if telling[n] < 0.7 * telling.max() else "black"
            units.text(column, row, n, ha="center", va="center", color=ink, fontsize=8)
        if rank < result["units"]["top"]:
            corner = (column - 0.46, row - 0.46)
            units.add_patch(matplotlib.patches.Rectangle(corner, 0.92, 0.92, fill=False, color="#e5484d", lw=2))
    units.set(title="what each unit tells alone", xticks=[], yticks=[])
    fig.colorbar(image, ax=units, shrink=0.7, label="R² (red: the best quarter)")

    for kind, colour, text in (("best", "#e5484d", "the units that tell most"), ("random", "#777777", "random units")):
        points = [v for v in result["intervention"]["variants"] if v["units"] in ("none", kind, "all")]
        value, low, high = (np.array([v["success_rate"][key] for v in points]) for key in ("value", "low", "high"))
        at = [v["zeroed"] for v in points]
        ax.errorbar(at, value, (value - low, high - value), color=colour, label=text, marker="o", ms=4, capsize=3)
        ax.set_xticks(at)
    where = "at the fork" if "once" in result["intervention"]["when"] else "at every step"
    ax.set(title=f"success, units zeroed {where}", xlabel="units zeroed", ylabel="success rate", ylim=(-0.03, 1.05))
    ax.legend()
    for ax in (*axes[:-2], axes[-1]):
        ax.grid(alpha=0.25)
    fig.savefig(path, dpi=110)
