"""ONNX graphs changed at random, with regard to how they are built, and run as parts of a bundle."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import numpy as np
import onnx
from bundle_files import loaded, originals, place, rich_encoder
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper
from PIL import Image

import seed_edge
from seed_edge.runtime.unclip import DiffusionOptions

NUMBERS = (0, 1, 2, 3, 8, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**63 - 1, -1, -2, -(2**31), -(2**63))
FLOATS = (0.0, -1.0, 1e-45, 1e38, float("inf"), float("nan"))
OPERATORS = [
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
    "Where",
    "Add",
    "Mul",
    "MatMul",
    "Reshape",
    "Transpose",
    "Concat",
    "Resize",
    "Expand",
    "Gather",
    "Cast",
    "Softmax",
    "TopK",
    "ConvTranspose",
    "MaxPool",
    "Einsum",
    "LSTM",
    "Upsample",
    "Multinomial",
    "Bernoulli",
    "StringNormalizer",
    "SequenceEmpty",
    "Identity",
    "Erf",
    "Attention",
    "LayerNormalization",
    "DequantizeLinear",
]
NAMES = (
    "epsilon",
    "axis",
    "axes",
    "to",
    "perm",
    "kernel_shape",
    "strides",
    "pads",
    "dilations",
    "group",
    "batch_dims",
    "scale",
    "seed",
)
FILES = (
    "encoder.onnx",
    "encoder.onnx",
    "encoder.onnx",
    "decoder.onnx",
    "decoder.onnx",
    "unet.onnx",
    "vae_decoder.onnx",
)


@functools.cache
def seeds() -> list[bytes]:
    """Each begins with a byte that tells which file of which bundle it is."""
    tiny, unclip = originals("tiny"), originals("unclip")
    graphs = [(0, tiny["encoder.onnx"]), (1, rich_encoder()), (2, rich_encoder()), (3, tiny["decoder.onnx"])]
    graphs += [(4, unclip["decoder.onnx"]), (5, unclip["unet.onnx"]), (6, unclip["vae_decoder.onnx"])]
    return [bytes([kind]) + data for kind, data in graphs]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """The graph with one to three changes."""
    kind, graph = data[:1], data[1:]
    if rng.random() < 0.2:
        return kind + _raw(graph, rng)
    model = onnx.load_model_from_string(graph)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        try:
            rng.choice(CHANGES)(model, rng)
        except (ValueError, TypeError, IndexError, DecodeError):
            continue  # a change that protobuf cannot hold
    return kind + bytes(model.SerializeToString())


def _raw(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed[: rng.randrange(len(changed))]) if rng.random() < 0.1 else bytes(changed)


def _node(model: onnx.ModelProto, rng: random.Random) -> onnx.NodeProto:
    return rng.choice(list(model.graph.node))


def _change_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    name = rng.choice([attribute.name for attribute in node.attribute] or list(NAMES))
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    value = rng.choice(
        (
            rng.choice(NUMBERS), rng.choice(FLOATS), [rng.choice(NUMBERS) for _ in range(rng.randint(1, 5))], b"NOTSET",
            rng.randrange(-4, 9), [rng.randrange(1, 9) for _ in range(2)], numpy_helper.from_array(np.zeros(3, "f4")),
        )
    )  # fmt: skip
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def _add_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    value = rng.choice((rng.choice(NUMBERS), rng.choice(FLOATS), [rng.choice(NUMBERS)]))
    _node(model, rng).attribute.append(helper.make_attribute(rng.choice(NAMES), value))


def _change_operator(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    node.op_type = rng.choice([*OPERATORS, *(other.op_type for other in model.graph.node)])
    if rng.random() < 0.2:
        del node.attribute[:]
    if rng.random() < 0.1:
        node.domain = rng.choice(("com.microsoft", "ai.onnx.ml", "custom"))


def _change_links(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    names = [name for each in model.graph.node for name in (*each.input, *each.output)]
    names += [tensor.name for tensor in model.graph.initializer]
    how = rng.randrange(4)
    if how == 0 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice([*names, "", "nowhere"])
    elif how == 1 and node.input:
        del node.input[rng.randrange(len(node.input))]
    elif how == 2:
        node.input.append(rng.choice(names))
    else:
        node.output[rng.randrange(len(node.output))] = rng.choice(names)


def _change_nodes(model: onnx.ModelProto, rng: random.Random) -> None:
    nodes = list(model.graph.node)
    at = rng.randrange(len(nodes))
    if rng.random() < 0.5:
        del nodes[at]
    else:
        nodes.insert(rng.randrange(len(nodes)), nodes[at])
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _change_weights(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice([each for each in model.graph.initializer if not each.data_location])
    how = rng.randrange(5)
    if how == 0 and tensor.data_type == 7:  # a shape, an axis: numbers that decide sizes
        count = max(1, int(np.prod(tensor.dims)))
        value = np.array([rng.choice((*NUMBERS, 16, 4, 64)) for _ in range(count)], np.int64).reshape(
            tensor.dims
        )
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    elif how == 1:
        tensor.data_type = rng.choice((*range(24), 255))
    elif how == 2:
        dims = [rng.choice((*NUMBERS, n)) for n in tensor.dims] + [1] * rng.randrange(2)
        del tensor.dims[:]
        tensor.dims.extend(dims)
    elif how == 3:
        value = numpy_helper.to_array(tensor)
        shape = [max(1, rng.choice((n, n * 2, n // 2, 1))) for n in value.shape]
        tensor.CopyFrom(numpy_helper.from_array(np.resize(value, shape).astype(value.dtype), tensor.name))
    else:
        size = len(tensor.raw_data)
        tensor.raw_data = rng.choice((rng.randbytes(size), b"\xff" * size, bytes(size), tensor.raw_data[:-1]))


def _change_ends(model: onnx.ModelProto, rng: random.Random) -> None:
    value = rng.choice([*model.graph.input, *model.graph.output])
    kind = value.type.tensor_type
    if rng.random() < 0.3 or not kind.shape.dim:
        kind.elem_type = rng.choice((1, 6, 7, 10, 11, 99))
    else:
        kind.shape.dim[rng.randrange(len(kind.shape.dim))].dim_value = rng.choice(NUMBERS)


def _change_model(model: onnx.ModelProto, rng: random.Random) -> None:
    how = rng.randrange(3)
    if how == 0:
        model.opset_import[0].version = rng.choice((*NUMBERS, 1, 7, 13, 17, 24))
    elif how == 1:
        model.ir_version = rng.choice(NUMBERS)
    else:
        external = model.graph.initializer[rng.randrange(len(model.graph.initializer))]
        external.data_location = 1
        for key, value in (
            ("location", rng.choice(("encoder.onnx.data", "../x", "/etc/passwd"))),
            ("offset", "0"),
            ("length", "4"),
        ):
            external.external_data.add(key=key, value=value)


CHANGES = (
    _change_attribute, _change_attribute, _change_attribute, _add_attribute, _change_operator, _change_operator, _change_links,
    _change_links, _change_nodes, _change_weights, _change_weights, _change_weights, _change_ends, _change_model,
)  # fmt: skip


def check(data: bytes, folder: Path) -> bool:
    """Load the graph as its part of a bundle, encode and decode; whether that went well."""
    name = FILES[data[0]]
    bundle = place(folder, {name: data[1:]}, base="unclip" if data[0] >= 4 else "tiny")

    def use(edge: seed_edge.SeedEdge) -> None:
        if name == "encoder.onnx":
            edge.encode([Image.new("RGB", (20, 20), "red")])
        else:
            options = DiffusionOptions(steps=2) if data[0] >= 4 else None
            edge.decode([0, 1, 2, 3], options=options)

    return loaded(bundle, use)
