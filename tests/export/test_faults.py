"""An export killed at random moments: no half bundle, and the same command goes on to the end."""

import runpy
import shutil
import subprocess

import pytest
from faults import command, killed, seconds_of

from seed_edge.bundle import Bundle


@pytest.fixture(scope="module")
def llama(tiny, tmp_path_factory):
    """The language model of `tests/fixtures/tiny`, as a checkpoint."""
    folder = tmp_path_factory.mktemp("llama")
    runpy.run_path(str(tiny.parent / "make_tiny_bundle.py"))["llama"](folder, seed=1)
    return folder


def test_killed_at_any_moment_export_leaves_a_whole_bundle_or_none(tiny, llama, tmp_path):
    out = tmp_path / "out"
    words = command("export", "--ckpt", tiny, "--llm", llama, "--weight-type", "F16", "--out", out, "-q")
    longest = seconds_of(words, tmp_path)
    wanted = Bundle.open(out).manifest.files
    shutil.rmtree(out)

    def look():
        if out.exists():
            assert Bundle.open(out).manifest.files == wanted
            shutil.rmtree(out)

    assert killed(words, tmp_path, 10, longest, look)
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    assert Bundle.open(out).manifest.files == wanted and [path.name for path in tmp_path.iterdir()] == ["out"]
