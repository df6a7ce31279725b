import ast
import subprocess
import sys
from pathlib import Path

import pytest

import seed_edge

PACKAGE = Path(seed_edge.__file__).parent
SIDES = tuple(
    f"seed_edge.{room}" for room in ("models", "export", "train", "evaluate", "data", "metrics", "emoji")
)


ROOMS_ABOVE_MODELS = (
    "seed_edge.export",
    "seed_edge.train",
    "seed_edge.evaluate",
    "seed_edge.metrics",
    "seed_edge.commands",
)


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
        ("models/*.py", ("seed_edge.runtime", *ROOMS_ABOVE_MODELS)),
        ("data/*.py", ("seed_edge.runtime", *ROOMS_ABOVE_MODELS)),
        ("metrics/*.py", ("seed_edge.runtime", "seed_edge.export", "seed_edge.train", "seed_edge.evaluate")),
        (
            "train/**/*.py",
            ("seed_edge.runtime", "seed_edge.export", "seed_edge.evaluate", "seed_edge.commands"),
        ),
        ("export/*.py", ("seed_edge.train", "seed_edge.evaluate", "seed_edge.commands")),
        ("evaluate/*.py", ("seed_edge.export", "seed_edge.train", "seed_edge.commands")),
        ("emoji/*.py", ("seed_edge.train", "seed_edge.evaluate", "seed_edge.export", "seed_edge.runtime")),
    ],
)
def test_dependencies_point_one_way(where, never):
    paths = list(PACKAGE.glob(where))
    assert paths
    for path in paths:
        wrong = [name for name in imports_of(path) if name.startswith(never)]
        assert not wrong, f"{path} imports {wrong}"


def module_of(path: Path) -> str:
    return ".".join(("seed_edge", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def test_only_the_command_train_uses_the_emoji_package():
    using = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "emoji"
        and any(name.startswith("seed_edge.emoji") for name in imports_of(path))
    }
    assert using == {"commands/train.py"}


def runtime_imports(path: Path, modules: set[str]) -> set[str]:
    """Modules of the package that a file imports anywhere, but for imports that only type checkers see."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in modules else node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found & modules


def test_no_modules_import_each_other_in_a_circle():
    paths = {module_of(path): path for path in PACKAGE.rglob("*.py")}
    modules = set(paths) - {"seed_edge"}
    graph = {name: runtime_imports(paths[name], modules) - {name} for name in modules}
    assert len(graph) > 100
    while leaves := [name for name, needed in graph.items() if not needed & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"these modules form or lead to import circles: {sorted(graph)}"


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
    assert not imported_by("import seed_edge.cli") & {
        f"seed_edge.commands.{module}" for module, _ in COMMANDS.values()
    }
