import shutil
from pathlib import Path

import pytest

from seed_edge.bundle import Bundle, check_header
from seed_edge.errors import BundleError
from seed_edge.manifest import DECODER, ENCODER
from seed_edge.onnx_header import OnnxHeader

# ---- protocol buffers, written by hand ---------------------------------------------------------------------------


def varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def field(number, value):
    """A number, text, or a message of such fields."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def message(*fields):
    return b"".join(field(*each) for each in fields)


def axes(*sizes):
    return message(
        (1, message((2, b"".join(field(1, message((1 if isinstance(n, int) else 2, n))) for n in sizes))))
    )


def weights(name="w", shape=(2, 3), kind=1, raw=bytes(24), outside=None):
    said = [(1, n) for n in shape] + [(2, kind), (8, name)]
    if outside is None:
        return message(*said, (9, raw))
    entries = [(13, message((1, key), (2, value))) for key, value in outside.items()]
    return message(*said, *entries, (14, 1))


NODE = message((1, "x"), (2, "y"), (4, "MatMul"))


def model(*graph, nodes=(NODE,), opset=("", 23), more=()):
    inside = [(1, node) for node in nodes] + list(graph)
    return message(
        (1, 10), (2, "tester"), (8, message((1, opset[0]), (2, opset[1]))), (7, message(*inside)), *more
    )


@pytest.fixture
def read(tmp_path):
    def of(data, strict=False):
        path = tmp_path / "g.onnx"
        path.write_bytes(data)
        header = OnnxHeader.read(path)
        if strict:
            header.check_bundle_rules(path)
        return header

    return of


def test_what_is_said(read):
    inputs = (11, message((1, "x"), (2, axes("batch", 2))))
    header = read(model((5, weights()), inputs, (12, message((1, "y"), (2, axes("batch", 3))))), strict=True)
    assert (header.ir_version, header.producer, header.opsets) == (10, "tester", {"": 23})
    assert (
        header.operators == {"MatMul": 1}
        and header.inputs == {"x": ("batch", 2)}
        and header.outputs == {"y": ("batch", 3)}
    )
    assert (header.tensors["w"].shape, header.tensors["w"].kind, header.tensors["w"].size) == (
        (2, 3),
        "float32",
        24,
    )


def test_the_graphs_of_a_bundle_pass(tiny):
    for bundle in (Bundle.open(tiny), Bundle.open()):
        for name in (ENCODER, DECODER):
            header = OnnxHeader.read(bundle.path / name)
            header.check_bundle_rules(bundle.path / name)
            assert len(header.inputs) == len(header.outputs) == 1
            held = sum(tensor.size for tensor in header.tensors.values())
            assert held < (bundle.path / name).stat().st_size and (held > 1 << 20 or bundle.path == tiny)


def test_weights_in_the_file_beside_are_found(read, tmp_path):
    beside = {"location": "g.onnx.data", "offset": "64", "length": "24"}
    (tmp_path / "g.onnx.data").write_bytes(bytes(88))
    tensor = read(model((5, weights(outside=beside))), strict=True).tensors["w"]
    assert (tensor.location, tensor.offset, tensor.size) == ("g.onnx.data", 64, 24)
    (tmp_path / "g.onnx.data").write_bytes(bytes(87))
    with pytest.raises(BundleError, match=r"'w' are outside g\.onnx\.data"):
        read(model((5, weights(outside=beside))), strict=True)


@pytest.mark.parametrize("location", ["/etc/passwd", "../g.onnx.data", "other.data", "", "g.onnx.data/../x"])
def test_weights_anywhere_else_are_refused(read, tmp_path, location):
    (tmp_path / "other.data").write_bytes(bytes(24))
    with pytest.raises(BundleError, match=r"not in g\.onnx\.data"):
        read(model((5, weights(outside={"location": location}))), strict=True)


def test_a_link_beside_a_graph_is_refused(read, tmp_path):
    (tmp_path / "real").write_bytes(bytes(24))
    (tmp_path / "g.onnx.data").symlink_to(tmp_path / "real")
    with pytest.raises(BundleError, match="are outside"):
        read(model((5, weights(outside={"location": "g.onnx.data"}))), strict=True)


def test_the_one_operator_that_the_runtime_brings_itself_is_taken(read):
    header = read(
        model(nodes=[message((4, "MatMulNBits"), (7, "com.microsoft"))], opset=("com.microsoft", 1)),
        strict=True,
    )
    assert header.operators == {"com.microsoft::MatMulNBits": 1}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (model(nodes=[message((4, "Steal"), (7, "evil"))]), "uses evil::Steal, which bundles cannot use"),
        (model(opset=("com.evil", 1)), "uses com.evil"),
        (model(nodes=[message((4, "Inverse"), (7, "com.microsoft"))]), "uses com.microsoft::Inverse"),
        (model(more=[(25, b"")]), "functions or subgraphs"),
        (model(nodes=[message((4, "If"), (5, message((6, b""))))]), "functions or subgraphs"),
    ],
)
def test_what_bundles_never_hold_is_refused(read, data, words):
    assert read(data)
    with pytest.raises(BundleError, match=words):
        read(data, strict=True)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"not a graph", "broken ONNX file"),
        (message((1, 10)), "its graph or its version is missing"),
        (model() + model(), "not an ONNX file"),
        (model((5, weights(raw=bytes(23)))), "need 24 bytes, but have 23"),
        (model((5, weights(shape=(1 << 40, 1 << 40)))), "have shape"),
        (model((5, weights(shape=(1,) * 9))), "have shape"),
        (model((5, weights(kind=99))), "unknown type 99"),
        (model((5, weights()), (5, weights())), "duplicate weights 'w'"),
        (
            model((5, weights(outside={"location": "g.onnx.data", "length": "25"}))),
            "need 24 bytes, but 25 are declared",
        ),
        (model((5, weights(outside={"location": "g.onnx.data", "offset": "-1"}))), "have the location"),
        (model((5, weights(outside={"location": "g.onnx.data", "offset": "9" * 30}))), "have the location"),
        (model((15, b"")), "sparse weights"),
        (model((11, message((1, "x"), (2, axes(*range(9)))))), "9 dimensions"),
        (model((5, message((8, "n" * 5000)))), "a name of 5,000 bytes"),
        (model((5, message((8, b"\xff\xfe")))), "not UTF-8"),
        (model((5, message((8, 3)))), "a number in place of bytes"),
        (message((1, b"abc")), "bytes in place of a number"),
        (b"\x0b" + b"\x00" * 20, "a field of wire type 3"),
        (b"\xff" * 20, "a number is truncated"),
    ],
)
def test_broken_files_are_one_clear_error(read, data, words):
    with pytest.raises(BundleError, match=words) as caught:
        read(data)
    assert "\n" not in str(caught.value)


def test_a_graph_cut_anywhere_is_refused(tiny, read):
    whole = (tiny / ENCODER).read_bytes()
    for length in range(0, len(whole), 7):
        with pytest.raises(BundleError):
            read(whole[:length], strict=True)


def test_a_bundle_with_a_broken_header_is_refused_before_anything_runs_it(tiny, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(tiny, folder)
    data = bytearray((folder / ENCODER).read_bytes())
    data[2:6] = b"\xff\xff\xff\xff"
    (folder / ENCODER).write_bytes(data)
    with pytest.raises(BundleError, match=r"encoder\.onnx is a broken ONNX file"):
        Bundle.open(folder)


def test_other_files_are_let_through(tmp_path):
    path = Path(tmp_path / "image_noise.npz")
    path.write_bytes(b"anything")
    check_header(path)
