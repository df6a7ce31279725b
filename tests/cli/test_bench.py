import json

import pytest
from click.testing import CliRunner

from seed_edge import bench
from seed_edge.bench import Machine, Work
from seed_edge.bundle import Bundle
from seed_edge.cli import cli
from seed_edge.gguf_header import GgufHeader


@pytest.fixture(scope="module")
def found(tiny):
    options = ["--bundle", str(tiny), "--device", "cpu", "--tries", "1", "--json", "-q"]
    result = CliRunner().invoke(cli, ["bench", *options], catch_exceptions=False)
    return json.loads(result.stdout)


def test_every_stage_has_a_time_and_a_lower_bound(found):
    stages = {stage["stage"]: stage for stage in found["stages"]}
    named = [
        "encode",
        "encode, batch of 16",
        "decode",
        "prefill",
        "generate text",
        "generate codes",
        "caption",
        "draw",
    ]
    assert set(named) <= set(stages) and {"caption, a process", "draw, a process"} <= set(stages)
    assert all(stage["seconds"] > 0 for stage in stages.values())
    for name in ("encode", "decode", "prefill", "generate text", "generate codes"):
        # not that it is below the seconds: weights this small come from the cache, not from memory
        told = stages[name]
        assert told["floor_seconds"] > 0 and told["times_floor"] == pytest.approx(
            told["seconds"] / told["floor_seconds"], rel=0.02
        )
    assert stages["caption, a process"]["seconds"] > stages["caption"]["seconds"]
    assert stages["caption, a process"]["peak_mb"] > 20
    assert found["machine"]["cores"] >= 1 and found["device"].startswith("cpu")


def test_bench_prints_a_table(found):
    lines = bench.format_table(found).splitlines()
    assert "GB/s" in lines[1] and len({len(line.split("  ")[0]) > 0 for line in lines[3:]}) == 2
    assert sum(stage["stage"] in text for stage in found["stages"] for text in lines) >= len(found["stages"])


def test_attention_counts_as_two_matrix_products():
    shapes = [[2, 4, 10, 8], [2, 4, 12, 8], [2, 4, 12, 16]]
    attention = {"op_name": "Attention", "inputs": shapes, "outputs": [[2, 4, 10, 16]]}
    assert bench.operations(attention) == 2 * 2 * 4 * 10 * 12 * (8 + 16)


def test_a_token_reads_all_weights_except_the_embedding_table(tiny):
    header = GgufHeader.read(Bundle.open(tiny).language_model)
    work, table = bench._language_work(header), header.tensors["token_embd.weight"]
    assert work.bytes_read == sum(info.size for info in header.tensors.values()) - table.size


def test_the_lower_bound_is_the_slower_of_memory_and_arithmetic():
    machine = Machine(2, read_rate=10.0, multiply_rate=100.0)
    assert machine.floor(Work(50, 20)) == 2.0 and machine.floor(Work(500, 20)) == 5.0
    assert machine.floor(Work(50, 20).batched(8)) == 4.0  # weights are read once for all
