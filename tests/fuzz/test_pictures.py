"""Changed pictures through real readings in child processes: each is read or refused in one line, and no child ends."""

import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("children's memory is bounded as Linux does it", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent))

from pictures import MEMORY, mutate, run, seeds


def test_changed_pictures_are_read_or_refused(tmp_path):
    figures = run(1500, 20, tmp_path)
    assert figures.tried == 1500
    assert not figures.uncaught, figures.uncaught[0]
    assert not figures.ended, figures.ended[0]
    assert figures.read > 150, "most changes are to leave something to decode"
    assert figures.largest < MEMORY


def test_changes_are_the_same_for_the_same_number():
    import random

    made = seeds()
    assert len(made) > 80
    assert [mutate(made[5], random.Random(n)) for n in range(20)] == [mutate(made[5], random.Random(n)) for n in range(20)]
    assert sum(mutate(made[5], random.Random(n)) != made[5] for n in range(20)) > 15
