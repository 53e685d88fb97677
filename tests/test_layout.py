"""The two scripts share their bodies on purpose, and stay small and self-contained."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import ppo_lstm_cartpole_novel
import ppo_lstm_minigrid

ROOT = Path(__file__).parent.parent
SCRIPTS = ("ppo_lstm_minigrid.py", "ppo_lstm_cartpole_novel.py")
DIFFERENT = {"Args", "make_envs", "make_env", "Encoder"}
SAME = {"FORMAT", "check_args", "layer_init", "LSTMRecurrence", "sample", "Agent", "gae", "to_sequences", "ppo_loss",
        "evaluate", "write_file", "save_checkpoint", "load_checkpoint", "load_agent", "train", "compiled", "Logger",
        "new_run_dir", "like", "parse", "Stopped", "way_on", "main"}  # fmt: skip


def top_level(module):
    tree = ast.parse(inspect.getsource(module))
    names = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    return names | {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets}


def test_every_name_is_on_one_list():
    for script in (ppo_lstm_minigrid, ppo_lstm_cartpole_novel):
        assert top_level(script) == SAME | DIFFERENT


@pytest.mark.parametrize("name", sorted(SAME - {"FORMAT"}))
def test_same_names_are_byte_identical(name):
    one, other = (inspect.getsource(getattr(s, name)) for s in (ppo_lstm_minigrid, ppo_lstm_cartpole_novel))
    assert one == other


def test_formats_agree():
    assert ppo_lstm_minigrid.FORMAT == ppo_lstm_cartpole_novel.FORMAT


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_imports_only_envs_of_the_project(name):
    tree = ast.parse((ROOT / name).read_text())
    imported = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    own = {path.stem for path in ROOT.glob("*.py")}
    assert imported & own == {"envs"}


def test_importing_runs_nothing(tmp_path):
    imports = "import envs, ppo_lstm_minigrid, ppo_lstm_cartpole_novel"
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {imports}"],
                          cwd=tmp_path, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0 and not done.stdout and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_flag_has_help(name, capsys):
    module = {"ppo_lstm_minigrid.py": ppo_lstm_minigrid, "ppo_lstm_cartpole_novel.py": ppo_lstm_cartpole_novel}[name]
    assert module.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for field in module.Args.__dataclass_fields__:
        assert "--" + field.replace("_", "-") in shown
    assert "--total-steps" in shown


@pytest.mark.parametrize("num_envs", [32, 64, 256])
@pytest.mark.parametrize("num_steps", [32, 64, 256])
def test_defaults_keep_dividing(script, num_envs, num_steps):
    script.Args(num_envs=num_envs, total_timesteps=10**7)
    script.Args(num_steps=num_steps, total_timesteps=10**7)
    script.Args(num_envs=num_envs, num_steps=num_steps, total_timesteps=10**7)
