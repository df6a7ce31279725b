import shutil
import subprocess
import sys

import numpy as np
import pytest

from seed_edge.errors import BundleError, DeviceError
from seed_edge.graphs import encoder_graph, pixel_decoder_graph
from seed_edge.manifest import DECODER, ENCODER
from seed_edge.runtime import onnx_session
from seed_edge.runtime.onnx_session import Device, Session, choose_device

CPU = Device("cpu", "for the test", required=True)


def test_a_session_runs_its_graph(tiny):
    session = Session(tiny / ENCODER, encoder_graph(16, 4), CPU)
    assert session(np.ones((2, 3, 16, 16), np.float32))[0].tolist() == [[7] * 4] * 2
    assert session.device == "cpu"


def test_threads_of_graphs_sleep_while_they_wait():
    """Spinning ones turn a millisecond into hundreds on a busy machine."""
    assert onnx_session.session_options().get_session_config_entry("session.intra_op.allow_spinning") == "0"
    busy, quiet = (idle_seconds(spin) for spin in ("1", "0"))
    assert quiet < 0.1 and (busy > 2 * quiet or onnx_session.available_cores() == 1), (busy, quiet)


def idle_seconds(spin):
    """Processor seconds that a process takes while nothing is asked of an opened graph, of half a second."""
    program = f"""
import time, numpy as np
from seed_edge.runtime import onnx_session
from seed_edge.bundle import EMBEDDED
options = onnx_session.session_options()
if {spin!r} == "1":
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
graph = onnx_session.ort.InferenceSession(EMBEDDED / "encoder.onnx", options, providers=["CPUExecutionProvider"])
values = np.zeros((1, 3, 224, 224), np.float32)
taken = 0.0
for _ in range(5):
    graph.run(None, {{"pixel_values": values}})
    started = time.process_time()
    time.sleep(0.1)
    taken += time.process_time() - started
print(taken)
"""
    return float(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    )


@pytest.mark.parametrize("spec", [encoder_graph(16, 5), encoder_graph(32, 4), pixel_decoder_graph(4, 16)])
def test_a_graph_that_is_not_the_declared_one_is_refused(tiny, spec):
    with pytest.raises(BundleError, match=r"encoder\.onnx has inputs or outputs"):
        Session(tiny / ENCODER, spec, CPU)


@pytest.mark.parametrize("content", [b"", b"not a graph", bytes(500)])
def test_a_file_that_is_no_graph_is_one_clear_error(tmp_path, content):
    path = tmp_path / "encoder.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"encoder\.onnx cannot be opened") as caught:
        Session(path, encoder_graph(16, 4), CPU)
    assert "\n" not in str(caught.value)


def test_a_truncated_graph_is_refused(tiny, tmp_path):
    path = tmp_path / "decoder.onnx"
    shutil.copy(tiny / DECODER, path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(BundleError):
        Session(path, pixel_decoder_graph(4, 16), CPU)


def test_cuda_that_is_not_there_is_an_error_and_auto_says_why(monkeypatch):
    monkeypatch.setattr(onnx_session, "cuda_problem", lambda: "no NVIDIA driver found")
    with pytest.raises(DeviceError, match="no NVIDIA driver found; use --device cpu"):
        choose_device("cuda")
    assert choose_device("auto") == Device("cpu", "no NVIDIA driver found")
    assert choose_device("cpu").name == "cpu"


def test_auto_takes_cuda_where_nothing_speaks_against_it(monkeypatch):
    monkeypatch.setattr(onnx_session, "cuda_problem", lambda: None)
    assert choose_device("auto").name == choose_device("cuda").name == "cuda"


def test_cuda_asked_for_but_not_loaded_is_an_error(tiny, monkeypatch):
    if (
        onnx_session.CUDA not in onnx_session.ort.get_available_providers()
        or onnx_session.cuda_problem() is None
    ):
        monkeypatch.setattr(onnx_session, "CUDA", "MissingExecutionProvider")
    with pytest.raises(DeviceError, match="--device cuda cannot be used"):
        Session(tiny / ENCODER, encoder_graph(16, 4), Device("cuda", "requested", required=True))


def test_an_unknown_device_lists_the_known_ones():
    with pytest.raises(DeviceError, match="auto, cpu, cuda"):
        choose_device("tpu")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the address space")
def test_memory_that_runs_out_is_told_as_that(tiny):
    program = f"""
import resource, numpy as np
from pathlib import Path
from seed_edge.errors import MemoryShortError
from seed_edge.graphs import encoder_graph
from seed_edge.runtime.onnx_session import Device, Session
session = Session(Path({str(tiny / ENCODER)!r}), encoder_graph(16, 4), Device("cpu", ""))
values = np.ones((50_000, 3, 16, 16), np.float32)
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (20 << 20), -1))
try:
    session(values)
except MemoryShortError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "encoder.onnx ran out of memory; close other programs, or try --low-memory" in done.stdout
