from pathlib import Path

import pytest

import seed_edge

TINY = Path(__file__).parent / "fixtures" / "tiny"
EXAMPLES = Path(__file__).parent.parent / "examples"


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
