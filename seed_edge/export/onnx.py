"""Writes the image tokenizer's two halves as ONNX graphs, declared in `graphs.py`.

Weights may be stored in half precision: each large initializer becomes fp16 with a Cast behind it, so that all
arithmetic stays in fp32 and the file is half the size.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from seed_edge.graphs import BATCH, GraphSpec, decoder_graph, encoder_graph
from seed_edge.models.image_tokenizer import PixelTokenizer

OPSET = 23
HALF_FROM = 256
"""Initializers with at least this many values are stored in half precision."""
STORAGE = ("fp32", "fp16")
DTYPES = {"float32": torch.float32, "int64": torch.int64}


class Encoder(nn.Module):
    """For tracing only: normalised pixels to codes."""

    def __init__(self, model: PixelTokenizer) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model.encode(pixel_values)


class Decoder(nn.Module):
    """For tracing only: codes to pixels."""

    def __init__(self, model: PixelTokenizer) -> None:
        super().__init__()
        self.model = model

    def forward(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes)


def export_graph(module: nn.Module, spec: GraphSpec, path: Path, storage: str) -> None:
    """Trace `module` with the inputs `spec` declares and write it to `path`.

    Args:
        storage: `fp32`, or `fp16` for half-precision storage.
    """
    for noisy in ("torch.onnx", "onnxscript"):  # remarks on operators of packages that are not installed
        logging.getLogger(noisy).setLevel(logging.ERROR)
    (declared,) = spec.inputs
    example = torch.zeros([2 if isinstance(n, str) else n for n in declared.shape], dtype=DTYPES[declared.dtype])
    program = torch.onnx.export(
        module.eval(),
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=[declared.name],
        output_names=[tensor.name for tensor in spec.outputs],
        dynamic_shapes=({0: torch.export.Dim(BATCH, min=1, max=4096)},),
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    if storage == "fp16":
        store_half(model)
    strip_traces(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def store_half(model: onnx.ModelProto) -> None:
    """Store large fp32 initializers as fp16, each followed by a Cast back to fp32."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < HALF_FROM:
            continue
        name, stored = tensor.name, f"{tensor.name}.fp16"
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), stored))
        casts.append(helper.make_node("Cast", [stored], [name], name=f"{name}.cast", to=onnx.TensorProto.FLOAT))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)


def strip_traces(model: onnx.ModelProto) -> None:
    """Drop what the tracer notes about source files: paths of the machine do not belong in a graph."""
    del model.graph.value_info[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]


def export_image_tokenizer(model: PixelTokenizer, encoder: Path, decoder: Path, storage: str) -> None:
    """Write both graphs of an image tokenizer."""
    geometry = model.geometry
    export_graph(Encoder(model), encoder_graph(geometry.image_size, geometry.num_queries), encoder, storage)
    export_graph(Decoder(model), decoder_graph(geometry.num_queries, geometry.output_size), decoder, storage)
