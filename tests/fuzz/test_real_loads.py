"""Files that no exporter, camera or editor wrote, through real loads in child processes: used, or refused in one line.

`benchmarks/fuzz.py` runs the same for hours.
"""

import driver
import pytest
from driver import KINDS, fuzzer, made, run

COUNTS = {"gguf": 400, "onnx": 400, "manifest": 250, "image": 3000, "text": 3000}
MEMORY = 700 << 20
"""Bytes of the largest process, the libraries in it and PyTorch beside some of them."""


@pytest.mark.parametrize("kind", COUNTS)
def test_nothing_ends_hangs_or_surprises_the_process(kind, tmp_path):
    figures = run(kind, COUNTS[kind], seed=20, keep=tmp_path)
    assert figures.clean, figures
    assert figures.tried == COUNTS[kind] and figures.passed and figures.refused, (
        figures
    )  # neither all taken nor all refused
    assert max(figures.peak_bytes, figures.peak_bytes_isolated) < MEMORY, figures


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_the_same_for_the_same_number_and_changed(kind):
    assert made(kind, 1, 5) == made(kind, 1, 5)
    valid = fuzzer(kind).seeds()
    assert sum(made(kind, 1, number) not in valid for number in range(20)) > 14


@pytest.mark.parametrize("kind", ["gguf", "onnx", "manifest", "text"])
def test_what_is_changed_was_valid(kind, tmp_path):
    module = fuzzer(kind)
    assert all(module.check(data, tmp_path) for data in module.seeds())


def test_faults_are_seen(tmp_path, monkeypatch):
    """The driver itself: a crash, a traceback and a hang of a child are told apart."""
    (tmp_path / "odd_files.py").write_text(
        "import os, time\nseeds = lambda: [b'']\nmutate = lambda data, rng: bytes([rng.randrange(4)])\n"
        "def check(data, folder):\n    [os.abort, time.sleep, int, bool][data[0]](*[[], [60], ['x'], []][data[0]])\n    return True\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(driver, "SECONDS", 1.5)
    figures = driver.run("odd", 8, 0)
    assert figures.tried == 8 and figures.crashes and figures.hangs and figures.tracebacks
