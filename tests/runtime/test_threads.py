import os
import subprocess
import sys

from seed_edge.runtime import threads
from seed_edge.runtime.threads import SMALL_MODEL, available_cores, threads_for_language_model


def test_a_containers_quota_caps_the_cores(tmp_path):
    quota = tmp_path / "cpu.max"
    quota.write_text("100000 100000\n")
    assert available_cores(quota) == 1
    quota.write_text("50000 100000\n")
    assert available_cores(quota) == 1
    quota.write_text("max 100000\n")
    assert available_cores(quota) == len(os.sched_getaffinity(0))
    assert available_cores(tmp_path / "none") == len(os.sched_getaffinity(0))


def test_a_small_model_runs_on_one_thread():
    assert threads_for_language_model(10 << 20) == 1
    assert threads_for_language_model(SMALL_MODEL + 1) == available_cores()


def test_openmp_sleeps_while_it_waits_unless_told_otherwise():
    program = "import seed_edge.runtime.language_model, os; print(os.environ['OMP_WAIT_POLICY'])"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for given, expected in (({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")):
        result = subprocess.run(
            [sys.executable, "-c", program], env=environment | given, capture_output=True, text=True
        )
        assert result.stdout.strip() == expected, result.stderr


def test_flags_of_the_processor_are_those_it_tells(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags\t\t: fpu avx2 amx_int8 sse\n")
    monkeypatch.setattr(threads, "CPUINFO", tmp_path / "cpuinfo")
    assert threads.cpu_flags() == ["avx2", "amx_int8"]
    monkeypatch.setattr(threads, "CPUINFO", tmp_path / "none")
    assert threads.cpu_flags() == []
