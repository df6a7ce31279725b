"""What a graph of a bundle may be: what the exporter writes, in operators, attributes, shapes and memory."""

import numpy as np
import onnx
import pytest
from bundle_files import SIDE, model, place, rich_encoder
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import seed_edge
from seed_edge.bundle import EMBEDDED, Bundle
from seed_edge.errors import BundleError
from seed_edge.graphs import encoder_graph
from seed_edge.manifest import ENCODER
from seed_edge.onnx_header import OnnxHeader
from seed_edge.onnx_rules import check_graph, estimate_memory, memory_budget

SPEC = encoder_graph(SIDE, 4)


@pytest.fixture
def refused(tmp_path):
    """Change an encoder; it must be refused in one line, which is given."""

    def call(change, base=None):
        graph = onnx.load_model_from_string(base or rich_encoder())
        change(graph)
        path = tmp_path / "x.onnx"
        path.write_bytes(graph.SerializeToString())
        with pytest.raises(BundleError) as error:
            check_graph(path, SPEC)
        assert "\n" not in str(error.value) and "x.onnx" in str(error.value)
        return str(error.value)

    return call


def node(graph, operator):
    return next(each for each in graph.graph.node if each.op_type == operator)


def attribute(operator, name, value):
    def change(graph):
        found = node(graph, operator)
        kept = [each for each in found.attribute if each.name != name]
        del found.attribute[:]
        found.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def weights(name, value):
    def change(graph):
        for tensor in graph.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), name))

    return change


def operator(old, new):
    return lambda graph: setattr(node(graph, old), "op_type", new)


@pytest.mark.parametrize("bundle", [EMBEDDED, None, "unclip"])
def test_what_the_exporter_writes_passes(tiny, tmp_path, bundle):
    opened = Bundle.open(place(tmp_path, {}, base="unclip") if bundle == "unclip" else bundle or tiny)
    sizes = {"rows": 8, "columns": 8}
    for name, spec in opened.manifest.graphs().items():
        check_graph(opened.path / name, spec, sizes)


def test_a_graph_of_many_operators_passes_and_runs(tmp_path):
    with seed_edge.load(place(tmp_path, {ENCODER: rich_encoder()}), device="cpu") as edge:
        noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        assert edge.encode([Image.fromarray(noise)]).shape == (1, 4)


@pytest.mark.parametrize(
    "name",
    [
        "RandomUniform",
        "RandomNormalLike",
        "GatherND",
        "InstanceNormalization",
        "Loop",
        "If",
        "Scan",
        "ConstantOfShape",
        "Range",
        "Tile",
        "Pad",
        "OneHot",
        "NonZero",
        "Multinomial",
        "TopK",
        "ConvTranspose",
        "LSTM",
        "StringNormalizer",
        "SequenceEmpty",
        "Nope",
        "Constant",
    ],
)
def test_operators_that_no_exporter_writes_are_refused(refused, name):
    assert name in refused(operator("Gelu", name))


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("LayerNormalization", "epsilon", float("nan")),
        ("LayerNormalization", "epsilon", -1.0),
        ("LayerNormalization", "epsilon", 1),
        ("LayerNormalization", "axis", -(2**31)),
        ("Attention", "softcap", float("nan")),
        ("Attention", "q_num_heads", 2),
        ("Attention", "is_causal", 2**40),
        ("Conv", "group", 0),
        ("Conv", "strides", [0, 0]),
        ("Conv", "strides", [2**31, 1]),
        ("Conv", "pads", [2**62, 0, 0, 0]),
        ("Conv", "pads", [-1, 0, 0, 0]),
        ("Conv", "dilations", [0, 1]),
        ("Conv", "auto_pad", b"SAME_UPPER"),
        ("MatMulNBits", "K", 2**31),
        ("MatMulNBits", "N", 17),
        ("MatMulNBits", "block_size", 0),
        ("MatMulNBits", "bits", 4),
        ("Transpose", "perm", [0, 0, 1]),
        ("Transpose", "perm", [0, 1, 9]),
        ("Concat", "axis", 3),
        ("Split", "num_outputs", 2**31),
        ("Split", "num_outputs", 0),
        ("Cast", "to", 8),
        ("Cast", "to", [1]),
        ("ArgMin", "axis", 5),
        ("Gelu", "approximate", b"x"),
        ("Pow", "scale", 1.0),
        ("ReduceMean", "noop_with_empty_axes", 1),
    ],
)
def test_attributes_are_bounded(refused, kind, name, value):
    refused(attribute(kind, name, value))


@pytest.mark.parametrize(
    "change",
    [
        weights("flat", np.array([0, 16, 5])),
        weights("flat", np.array([-1, -1, 4])),
        weights("flat", np.array([2**62, 2**62, 16])),
        weights("heads", np.array([0, 4, 3, 8])),
        weights("axes", np.array([9])),
        weights("axes", np.array([-(2**63)])),
        weights("starts", np.array([2**62, 1])),
        weights("scale", np.ones(15, "f4")),
        weights("bias", np.zeros((1, 16), "f4")),
        weights("bytes", np.zeros((16, 2, 16), "u1")),
        weights("half", np.zeros((17, 8), "f2")),
        weights("half", np.zeros((16, 8), "f8")),
        weights("low", np.zeros((16, 8), "f4")),
        weights("kernel", np.zeros((16, 4, 8, 8), "f4")),
        lambda graph: graph.graph.node.remove(node(graph, "Gelu")),
        lambda graph: graph.graph.node.append(node(graph, "Gelu")),
        lambda graph: node(graph, "Gelu").input.append("m"),
        lambda graph: node(graph, "Add").input.pop(),
        lambda graph: node(graph, "MatMul").input.__setitem__(0, "nowhere"),
        lambda graph: graph.graph.output[0].type.tensor_type.shape.dim[1].__setattr__("dim_value", 5),
        lambda graph: setattr(graph.graph.input[0].type.tensor_type, "elem_type", 11),
        lambda graph: graph.graph.input.append(helper.make_tensor_value_info("more", 1, [1])),
        lambda graph: setattr(graph.opset_import[0], "version", 24),
        lambda graph: setattr(graph.opset_import[0], "version", 7),
        lambda graph: setattr(graph.opset_import[1], "version", 2),
        lambda graph: setattr(node(graph, "Gelu"), "domain", "custom"),
    ],
)
def test_graphs_whose_shapes_or_links_contradict_each_other_are_refused(refused, change):
    refused(change)


def test_weights_as_lists_of_numbers_are_refused(refused):
    def change(graph):
        tensor = next(each for each in graph.graph.initializer if each.name == "bias")
        tensor.ClearField("raw_data")
        tensor.float_data.extend([0.0] * 16)

    assert "not stored as bytes" in refused(change)


def grows(*nodes, **constants):
    """An encoder of some hundred bytes that asks for gigabytes on its way to the codes."""
    n = helper.make_node
    ends = [n("ReduceMean", ["big", "all"], ["mean"], keepdims=0), n("Add", ["codes_", "mean"], ["sum"])]
    ends += [n("Cast", ["sum"], ["codes"], to=TensorProto.INT64)]
    start = [
        n("ReduceMean", ["pixel_values", "all"], ["one"], keepdims=1),
        n("Expand", ["zeros", "shape"], ["codes_"]),
    ]
    constants |= {"all": np.arange(4), "zeros": np.zeros((1, 4), "f4"), "shape": np.array([1, 4])}
    given = [["pixel_values", 1, ["batch", 3, SIDE, SIDE]]]
    return model([*start, *nodes, *ends], constants, given, [["codes", 7, ["batch", 4]]])


@pytest.mark.parametrize(
    "graph",
    [
        grows(helper.make_node("Expand", ["one", "to"], ["big"]), to=np.array([1, 1, 1 << 15, 1 << 15])),
        grows(helper.make_node("Resize", ["one", "", "by"], ["big"], mode="nearest"), by=np.array([1, 1, 1e6, 1e6], "f4")),
        grows(
            helper.make_node("Resize", ["one", "", "by"], ["b1"], mode="nearest"),
            helper.make_node("Resize", ["b1", "", "by"], ["b2"], mode="nearest"),
            helper.make_node("Resize", ["b2", "", "by"], ["big"], mode="nearest"),
            by=np.array([1, 1, 60, 60], "f4"),
        ),
        grows(
            helper.make_node("Expand", ["one", "down"], ["d"]),
            helper.make_node("Transpose", ["d"], ["u"], perm=[0, 1, 3, 2]),
            helper.make_node("MatMul", ["d", "u"], ["big"]),
            down=np.array([1, 1, 60_000, 1]),
        ),
        grows(
            helper.make_node("Expand", ["one", "down"], ["d"]),
            helper.make_node("Attention", ["d", "d", "d"], ["big"]),
            down=np.array([1, 1, 40_000, 1]),
        ),
    ],
)  # fmt: skip
def test_a_small_graph_that_would_take_gigabytes_is_refused(refused, graph):
    said = refused(lambda _: None, graph)
    assert "GB" in said or "scaled by" in said


def test_the_estimate_is_near_what_a_graph_takes(tiny):
    bundle = Bundle.open(EMBEDDED)
    for name, spec in bundle.manifest.graphs().items():
        header = OnnxHeader.read(bundle.path / name)
        taken = bundle.manifest.memory[name].running
        assert taken / 4 < estimate_memory(header, spec, {}) < 4 * taken < memory_budget(header, spec, {})
