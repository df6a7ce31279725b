"""Descriptions of bundles, ONNX graphs, GGUF models and drawn images, from headers and metadata. No model is
loaded.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from seed_edge.bundle import Bundle, find
from seed_edge.display import printable
from seed_edge.errors import BundleError
from seed_edge.gguf_header import MAGIC, GgufHeader, Items
from seed_edge.inputs import open_regular
from seed_edge.manifest import MANIFEST
from seed_edge.onnx_header import OnnxHeader

MAX_SHOWN_VALUE = 200
"""Maximum length of a value of a GGUF header, in characters."""
MAX_OPERATORS = 12
"""Maximum number of ONNX operators; the most frequent ones are listed."""


def describe(name: str) -> dict[str, Any]:
    """Describe a file, or a bundle by its folder or name; the result can be written as JSON.

    Raises:
        BundleError: the file does not exist, or its format is unknown.
        ImageError: it is an image without seed-edge metadata.
    """
    path = Path(name)
    if not path.is_file():
        return describe_bundle(Bundle.open(find(name)))
    if path.name == MANIFEST:
        return describe_bundle(Bundle.open(path.parent))
    from seed_edge.image_formats import HEAD_BYTES, READERS, detect_format

    with open_regular(path, BundleError) as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(MAGIC):
        return describe_language_model(path)
    if detect_format(head) in READERS:
        return describe_image(path)
    try:
        return describe_graph(path)
    except BundleError as error:
        if path.suffix == ".onnx":
            raise
        raise BundleError(
            f"{path} is not a bundle, a GGUF file, an ONNX file, or an image drawn by seed-edge"
        ) from error


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """Describe a bundle: its abilities, its manifest, its size in bytes."""
    manifest = bundle.manifest
    abilities = ["encode"]
    if manifest.kind == "pixels" or manifest.diffusion is not None:
        abilities.append("decode")
    if manifest.language is not None:
        prompts, draws = manifest.language.prompts, "decode" in abilities
        abilities += ["caption", *(["ask"] if prompts.ask else []), *(["draw"] if draws else [])]
        abilities += ["edit"] if draws and prompts.edit else []
        abilities += ["chat"] if prompts.turn else []
    description = dataclasses.asdict(manifest)
    description["sources"] = {source.name: f"{source.role} ({source.license})" for source in manifest.sources}
    if manifest.self_test is not None:
        description["self_test"] = "present"
    size = sum(entry.size for entry in manifest.files.values())
    return {"is": "bundle", "path": str(bundle.path), "bytes": size, "able_to": abilities} | description


def describe_language_model(path: Path) -> dict[str, Any]:
    """Describe a GGUF file by its header; long values are shortened, weights are counted by type."""
    header = GgufHeader.read(path)
    weights_by_type: Counter[str] = Counter()
    for tensor in header.tensors.values():
        weights_by_type[tensor.kind] += prod(tensor.shape)
    return {
        "is": "GGUF file",
        "path": str(path),
        "bytes": path.stat().st_size,
        "version": header.version,
        "weights": sum(weights_by_type.values()),
        "weights_by_type": dict(weights_by_type.most_common()),
        "tensors": len(header.tensors),
        "says": {key: _shortened(value) for key, value in header.values.items()},
    }


def _shortened(value: Any) -> Any:
    if isinstance(value, Items):
        return f"{value.count:,} values: {', '.join(map(str, value.first))[:MAX_SHOWN_VALUE]}, ..."
    return value[:MAX_SHOWN_VALUE] if isinstance(value, str) else value


def describe_graph(path: Path) -> dict[str, Any]:
    """Describe an ONNX file by its header, and check whether a bundle may contain it."""
    header = OnnxHeader.read(path)
    weights_by_type: Counter[str] = Counter()
    for tensor in header.tensors.values():
        weights_by_type[tensor.kind] += prod(tensor.shape)
    try:
        header.check_bundle_rules(path)
        fit = "yes"
    except BundleError as error:
        fit = f"no: {error}"
    return {
        "is": "ONNX file",
        "path": str(path),
        "bytes": path.stat().st_size,
        "ir_version": header.ir_version,
        "producer": header.producer,
        "opsets": {domain or "ai.onnx": version for domain, version in header.opsets.items()},
        "inputs": {name: list(shape) for name, shape in header.inputs.items()},
        "outputs": {name: list(shape) for name, shape in header.outputs.items()},
        "weights": sum(weights_by_type.values()),
        "weights_by_type": dict(weights_by_type.most_common()),
        "weights_in": sorted({tensor.location or path.name for tensor in header.tensors.values()}),
        "operators": dict(header.operators.most_common(MAX_OPERATORS)),
        "fit_for_a_bundle": fit,
    }


def describe_image(path: Path) -> dict[str, Any]:
    """Describe a drawn image by its metadata."""
    from seed_edge.image_metadata import read_record

    record = dataclasses.asdict(read_record(path))
    return {"is": "drawn picture", "path": str(path), "bytes": path.stat().st_size} | record


def lines(value: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Yield a description as lines of text, with its keys unchanged; empty values are skipped."""
    for key, item in value.items():
        name = printable(key)
        if isinstance(item, dict) and item:
            yield f"{indent}{name}:"
            yield from lines(item, indent + "  ")
        elif isinstance(item, (list, tuple)) and item and isinstance(item[0], dict):
            for number, element in enumerate(item, 1):
                yield f"{indent}{name} {number}:"
                yield from lines(element, indent + "  ")
        elif isinstance(item, (list, tuple)):
            if item:
                yield f"{indent}{name}: {printable(', '.join(map(str, item)))}"
        elif type(item) is int and name != "seed":
            yield f"{indent}{name}: {item:,}"
        elif item not in (None, "", {}):
            yield f"{indent}{name}: {printable(str(item))}"
