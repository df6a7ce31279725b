import ast
import subprocess
import sys
from pathlib import Path

import pytest

import seed_edge

PACKAGE = Path(seed_edge.__file__).parent
SIDES = ("seed_edge.models", "seed_edge.export", "seed_edge.train", "seed_edge.evaluate")


def imported_by(program: str) -> set[str]:
    code = f"{program}\nimport sys\nprint(*sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_the_runtime_never_loads_torch_or_the_training_side():
    loaded = imported_by("import seed_edge.cli, seed_edge.runtime.pipeline, seed_edge.runtime.language_model")
    assert not loaded & {"torch", "transformers", "onnx", "gguf", *SIDES}


def test_the_command_line_loads_nothing_heavy_before_a_command_runs():
    loaded = imported_by("import seed_edge.cli")
    assert not loaded & {"numpy", "PIL", "onnxruntime", "llama_cpp", "torch", "importlib.metadata"}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize(
    ("where", "never"),
    [
        ("*.py", ("torch", "transformers", "onnx.", "gguf")),
        ("commands/*.py", ("torch", "transformers", "onnx.", "gguf")),
        ("runtime/*.py", ("torch", "transformers", *SIDES)),
        ("models/*.py", ("seed_edge.runtime", "seed_edge.export", "seed_edge.train", "seed_edge.evaluate")),
        ("train/*.py", ("seed_edge.runtime", "seed_edge.export", "seed_edge.evaluate")),
        ("export/*.py", ("seed_edge.train", "seed_edge.evaluate")),
        ("evaluate/*.py", ("seed_edge.export",)),
    ],
)
def test_dependencies_point_one_way(where, never):
    paths = list(PACKAGE.glob(where))
    assert paths
    for path in paths:
        wrong = [name for name in imports_of(path) if name.startswith(never)]
        assert not wrong, f"{path} imports {wrong}"


def test_only_parity_reaches_from_export_into_the_runtime():
    reaching = {
        path.name
        for path in (PACKAGE / "export").glob("*.py")
        if any(i.startswith("seed_edge.runtime") for i in imports_of(path))
    }
    assert reaching == {"parity.py"}


def test_help_names_every_command_as_its_own_help_does():
    from seed_edge.cli import COMMANDS, cli

    assert {name: command.get_short_help_str(1000) for name, command in cli.commands.items()} == {
        name: text for name, (_, text) in COMMANDS.items()
    }
    assert not imported_by("import seed_edge.cli") & {f"seed_edge.commands.{module}" for module, _ in COMMANDS.values()}
