import re
import subprocess
import sys
from pathlib import Path

import pytest

import seed_edge
from seed_edge import errors

PROGRAM = """
from pathlib import Path

import seed_edge
from seed_edge import BundleNotFoundError, DiffusionOptions, ImageError, Sampling, SeedEdge, load


def use(path: Path) -> str:
    try:
        with load(path, device="cpu", low_memory=True) as edge:
            reveal_type(edge)
            reveal_type(edge.caption("photo.jpg"))
            reveal_type(edge.caption(b"", details=True))
            reveal_type(edge.draw("a fox").image)
            reveal_type(edge.encode([path]))
            reveal_type(Sampling(temperature=1.0).top_p)
            reveal_type(DiffusionOptions(steps=3))
            return edge.caption(path, beams=2)
    except BundleNotFoundError as error:
        reveal_type(error)
        raise
"""
TYPES = ["SeedEdge", "str", "Caption", "Image", "ndarray", "float", "DiffusionOptions", "BundleNotFoundError"]


def test_import_is_light():
    code = "import sys, seed_edge; print(*(m for m in ('numpy', 'PIL', 'onnxruntime', 'llama_cpp', 'click') if m in sys.modules))"
    assert not subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()


def test_every_public_name_can_be_imported_and_every_error_is_public():
    for name in seed_edge.__all__:
        assert getattr(seed_edge, name).__name__ == name if name[0].isupper() else hasattr(seed_edge, name)
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert defined == {name for name in seed_edge.__all__ if name.endswith("Error")}
    assert set(seed_edge.__all__) <= set(dir(seed_edge))
    with pytest.raises(AttributeError, match="no attribute 'draw'"):
        _ = seed_edge.draw


def test_the_list_for_type_checkers_is_the_list_at_run_time():
    text = Path(seed_edge.__file__).read_text()
    declared = set(re.findall(r"^    from seed_edge\.\S+ import (\w+) as \1$", text, re.MULTILINE))
    assert declared == {name for name in seed_edge.__all__ if name[0].isupper()}


def test_errors_are_the_builtins_that_fit(tmp_path, edge):
    with pytest.raises(FileNotFoundError, match="no such bundle"):
        seed_edge.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"none\.jpg: no such file") as caught:
        edge.caption(tmp_path / "none.jpg")
    assert isinstance(caught.value, seed_edge.ImageError)
    for wrong in (
        lambda: edge.decode([1]),
        lambda: edge.draw_codes(" "),
        lambda: edge.caption_codes([0] * 4, beams=0),
    ):
        with pytest.raises(ValueError) as caught:
            wrong()
        assert isinstance(caught.value, seed_edge.SeedEdgeError)


def test_a_strict_type_checker_sees_real_types(tmp_path):
    api = pytest.importorskip("mypy.api")
    (tmp_path / "program.py").write_text(PROGRAM)
    assert (Path(seed_edge.__file__).parent / "py.typed").is_file()
    # outside the source tree, so that this project's own settings of mypy do not apply
    options = [
        "--strict",
        "--config-file",
        "",
        "--cache-dir",
        str(tmp_path / "cache"),
        "--follow-imports",
        "silent",
    ]
    out, err, status = api.run([*options, str(tmp_path / "program.py")])
    assert status == 0, out + err
    revealed = re.findall(r'Revealed type is "(.*)"', out)
    assert len(revealed) == len(TYPES) and "Any" not in revealed
    for text, name in zip(revealed, TYPES, strict=True):
        assert name in text
