"""Exports encoder and decoder of an image tokenizer as ONNX graphs, declared in `graphs.py`."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from seed_edge.export.onnx_storage import rewrite
from seed_edge.graphs import BATCH, GraphSpec
from seed_edge.models.image_tokenizer import ImageTokenizer

OPSET = 23
AXES = {BATCH: 1, "rows": 2, "columns": 2}
"""Dynamic axes of inputs and their smallest sizes."""
DTYPES = {"float32": torch.float32, "int64": torch.int64}


class Encoder(nn.Module):
    """Wrapper for tracing: normalised pixels to codes."""

    def __init__(self, model: ImageTokenizer) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model.encode(pixel_values)


class Decoder(nn.Module):
    """Wrapper for tracing: codes to pixels or image embeddings."""

    def __init__(self, model: ImageTokenizer) -> None:
        super().__init__()
        self.model = model

    def forward(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes)


def export_graph(
    module: nn.Module, spec: GraphSpec, path: Path, storage: str, exact: tuple[str, ...] = ()
) -> None:
    """Trace `module` with the inputs that `spec` declares and write the graph to `path`.

    Args:
        storage: storage type of the weights; see `onnx_storage.rewrite`.
        exact: parameters of `module` that are stored as fp32.
    """
    for logger in ("torch.onnx", "onnxscript"):  # warnings about operators of packages that are not installed
        logging.getLogger(logger).setLevel(logging.ERROR)
    sizes = dict(zip(AXES, (2, 8, 12), strict=True))  # all different: the tracer unifies equal sizes
    examples = [
        torch.zeros([sizes[n] if isinstance(n, str) else n for n in tensor.shape], dtype=DTYPES[tensor.dtype])
        for tensor in spec.inputs
    ]
    axes = {name: torch.export.Dim(name, min=low, max=4096) for name, low in AXES.items()}
    with TemporaryDirectory(dir=path.parent) as temporary:
        traced = Path(temporary) / path.name
        program = torch.onnx.export(
            module.eval(),
            tuple(examples),
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=tuple(
                {i: axes[n] for i, n in enumerate(t.shape) if isinstance(n, str)} for t in spec.inputs
            ),
            verbose=False,
        )
        assert program is not None
        program.save(traced, external_data=True)
        del program
        rewrite(traced, path, storage, exact)


def export_image_tokenizer(
    model: ImageTokenizer,
    specs: tuple[GraphSpec, GraphSpec],
    paths: tuple[Path, Path],
    storages: tuple[str, str],
) -> None:
    """Write encoder and decoder of an image tokenizer. The codebook is stored as fp32: rounding would change
    which row is nearest to a vector.

    Args:
        specs, paths, storages: of encoder and decoder.
    """
    codebook = ("model.quantize.embedding.weight",)
    for module, spec, path, storage in zip(
        (Encoder(model), Decoder(model)), specs, paths, storages, strict=True
    ):
        export_graph(module, spec, path, storage, exact=codebook)
