from collections import namedtuple

import pytest

from seed_edge import memory
from seed_edge.errors import CheckpointError
from seed_edge.export import estimate
from seed_edge.export.estimate import Estimate, estimate_tokenizer, report_estimates
from seed_edge.models.config import SeedGeometry


def need(**changes):
    given = {"part": "p", "sources": [], "parameters": 10, "written": 5e9, "scratch": 3e9, "memory": 2e9}
    return Estimate(**given | changes)


@pytest.fixture
def machine(monkeypatch):
    """A machine with as much free as asked for."""

    def make(disk, ram):
        monkeypatch.setattr(estimate.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(disk))
        monkeypatch.setattr(estimate, "available_memory", lambda: ram)

    return make


def told(needs, out, kept=0):
    said = []
    report_estimates(needs, out, kept, said.append)
    return said


def test_disk_is_what_stays_and_the_largest_scratch(machine, tmp_path):
    machine(disk=14_000_000_000, ram=8_000_000_000)
    said = told([need(), need(scratch=4e9, memory=3e9)], tmp_path / "deeper" / "out")
    assert (
        f"takes 14.0 GB of disk in {tmp_path} (14.0 GB free), about 3.7 GB of memory (8.0 GB free)"
        in said[-1]
    )


def test_a_disk_too_small_is_refused_but_what_is_there_counts(machine, tmp_path):
    machine(disk=7_000_000_000, ram=None)
    with pytest.raises(CheckpointError, match=r"7\.0 GB free, the export takes 8\.0 GB"):
        told([need()], tmp_path / "out")
    assert "2.7 GB of memory and" in told([need()], tmp_path / "out", kept=1_000_000_000)[-1]


def test_short_memory_is_said(machine, tmp_path):
    machine(disk=1e12, ram=1e9)
    assert "memory is short" in told([need()], tmp_path / "out")[-1]


def test_the_official_tokenizer_has_the_parameters_of_the_specification():
    assert (
        estimate_tokenizer(SeedGeometry(), [], "int8").parameters == 1_149_998_528 - 28_376_064
    )  # without the training-only head


def test_available_memory_is_what_linux_says_or_unknown(tmp_path, monkeypatch):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       24 kB\nMemAvailable:   1000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", path)
    assert memory.available_memory() == 1_024_000
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    assert memory.available_memory() is None
