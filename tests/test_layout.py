"""The two scripts share their bodies on purpose; everything stays small and self-contained."""

import difflib
import re
from pathlib import Path

import pytest
from conftest import ROOT

NAMES = ("ppo_lstm_minigrid.py", "ppo_lstm_cartpole_novel.py")


def lines(*patterns):
    return [line for pattern in patterns for path in ROOT.glob(pattern) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("patterns", "limit"), [
    (NAMES[:1], 650), (NAMES[1:], 650), (["envs.py"], 600), (["README.md"], 150),
    (["benchmark/*.py", "benchmark/*.sh"], 1300), (["tests/*.py"], 2200)])
def test_sizes(patterns, limit):
    assert len(lines(*patterns)) <= limit


def test_the_scripts_differ_in_few_lines():
    one, other = (lines(name) for name in NAMES)
    assert sum(line[0] in "+-" for line in difflib.unified_diff(one, other, n=0)) - 2 <= 80


def test_no_line_is_wide_and_none_says_where_or_how_it_was_made():
    folders = (".", "tests", "visualize_memory", "benchmark", "benchmark/results")
    for path in (path for folder in folders for path in (ROOT / folder).glob("*.*") if path != Path(__file__)):
        if path.suffix in (".py", ".sh", ".md", ".html", ".toml", ".txt"):
            text = path.read_text()
            assert path.suffix not in (".py", ".sh") or max(map(len, text.splitlines() or [""])) <= 120, path
            found = re.search(r"(?i)/(work|home|root)/|\bissue #?\d|shared/(design|pitfalls)", text)
            assert not found, f"{path}: {found}"
