import json
import runpy
from pathlib import Path

import pytest

import seed_edge

TINY = Path(__file__).parent / "fixtures" / "tiny"
REFERENCE = Path(__file__).parent / "fixtures" / "seed2"
EXAMPLES = Path(__file__).parent.parent / "examples"
SLOW = (
    "docs/", "evaluate/", "export/", "fuzz/", "golden/", "models/", "train/", "cli/test_faults", "cli/test_outputs", "cli/test_bench",
    "cli/test_caption_output", "cli/test_chat", "cli/test_draw", "runtime/test_offline", "runtime/test_isolated_load",
    "runtime/test_embedded", "runtime/test_sharing", "runtime/test_part_cache", "runtime/test_language_model", "runtime/test_threads",
    "core/test_boundaries", "core/test_image_metadata", "core/test_image_files", "core/test_public_api", "cli/test_option_values",
    "cli/test_bundles", "data/test_dialogues", "runtime/test_conversation", "emoji/",
)  # fmt: skip
"""Beginnings of the names of test files, below tests/, that are marked `slow`."""


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, also where the tests run outside the source tree."""
    config.addinivalue_line("markers", "slow: takes seconds; `SLOW` in `tests/conftest.py` lists the files")
    config.addinivalue_line("markers", "fuzz: mutated files; all of them are slow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests as `slow` and `fuzz` by their files."""
    for item in items:
        name = item.path.relative_to(Path(__file__).parent).as_posix()
        if name.startswith(SLOW):
            item.add_marker("slow")
        if name.startswith("fuzz/"):
            item.add_marker("fuzz")


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory):
    """A user's folder of the tests' own, so that they neither see nor change that of whoever runs them."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEED_EDGE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The committed bundle of `tests/fixtures/make_tiny_bundle.py`: 8 codes, 4 per image, 16 px."""
    return TINY


@pytest.fixture(scope="session")
def examples() -> Path:
    return EXAMPLES


@pytest.fixture(scope="module")
def edge(tiny):
    with seed_edge.load(tiny, device="cpu") as opened:
        yield opened


@pytest.fixture(scope="session")
def maker():
    """What the script of reproducible random checkpoints defines."""
    return runpy.run_path(str(REFERENCE / "make_checkpoint.py"))


@pytest.fixture(scope="session")
def seed2(maker, tmp_path_factory):
    """SEED-2's official folder with the tiny geometry, seed 7; not to be written to."""
    import torch

    folder, geometry = tmp_path_factory.mktemp("seed2"), maker["GEOMETRIES"]["tiny"]
    torch.save(maker["vit"](geometry, 7), folder / "eva_vit_g.pth")
    torch.save(maker["quantizer"](geometry, 7), folder / "seed_quantizer.pt")
    (folder / "geometry.json").write_text(json.dumps(geometry))
    return folder
