import struct

import pytest

from seed_edge.bundle import Bundle
from seed_edge.errors import BundleError
from seed_edge.gguf_header import GgufHeader, Items


@pytest.fixture(scope="module")
def whole(tiny):
    return Bundle.open(tiny).language_model.read_bytes()


@pytest.fixture
def read(tmp_path):
    def of(data):
        path = tmp_path / "llm.gguf"
        path.write_bytes(data)
        return GgufHeader.read(path)

    return of


def string(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def made(*values, tensors=(), version=3, magic=b"GGUF", data=b""):
    """A file: values are (key, type, bytes), tensors (name, shape, type, offset)."""
    out = magic + struct.pack("<IQQ", version, len(tensors), len(values))
    out += b"".join(string(key) + struct.pack("<I", kind) + value for key, kind, value in values)
    for name, shape, kind, offset in tensors:
        out += (
            string(name)
            + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            + struct.pack("<IQ", kind, offset)
        )
    return out + bytes(-len(out) % 32) + data


def test_what_is_said_and_where_tensors_lie(tiny, whole):
    header, vocab = GgufHeader.read(Bundle.open(tiny).language_model), Bundle.open(tiny).language.vocab
    tokens = header.values["tokenizer.ggml.tokens"]
    assert (
        isinstance(tokens, Items)
        and tokens.count == vocab.size
        and tokens.first[:3] == ("<unk>", "<s>", "</s>")
    )
    assert (
        header.values["general.architecture"] == "llama"
        and header.values["tokenizer.ggml.bos_token_id"] == vocab.bos_id
    )
    table = header.tensors["token_embd.weight"]
    assert table.shape[1] == vocab.size
    assert max(info.offset + info.size for info in header.tensors.values()) <= len(whole)
    # nothing is left over but padding
    assert sum(info.size for info in header.tensors.values()) > 0.8 * (
        len(whole) - min(i.offset for i in header.tensors.values())
    )


def test_quantized_tensors_have_the_size_of_their_blocks(read):
    header = read(
        made(
            ("general.alignment", 4, struct.pack("<I", 64)),
            tensors=[("a", (64, 3), 8, 0)],
            data=bytes(64 + 6 * 34),
        )
    )
    info = header.tensors["a"]
    assert (info.kind, info.size, info.offset % 64) == ("Q8_0", 6 * 34, 0)


def test_a_file_cut_anywhere_in_its_header_is_refused(whole, read):
    end = min(info.offset for info in read(whole).tensors.values())
    for length in [*range(0, 120), *range(120, end, 97), end, len(whole) - 33]:
        with pytest.raises(BundleError, match=r"llm\.gguf is (not a GGUF|a broken GGUF)"):
            read(whole[:length])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (made(magic=b"GGML"), "not a GGUF file"),
        (made(version=9), "version 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "its header declares"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "its header declares"),
        (made(("a", 4, bytes(4)), ("a", 4, bytes(4))), "duplicate key a"),
        (made(("a", 99, b"")), "unknown type 99"),
        (made(("a", 8, struct.pack("<Q", 1 << 62))), "a string of"),
        (made(("a", 8, struct.pack("<Q", 2) + b"\xff\xfe")), "not UTF-8"),
        (made(("a", 9, struct.pack("<IQ", 4, 1 << 62))), "an array of"),
        (made(("a", 9, struct.pack("<IQ", 4, 1 << 21))), "header is truncated"),
        (made(("a", 9, struct.pack("<IQ", 9, 1))), "an array of 1 values of type 9"),
        (made(("general.alignment", 4, struct.pack("<I", 3))), "general.alignment is 3"),
        (made(tensors=[("t", (), 0, 0)]), "0 dimensions"),
        (made(tensors=[("t", (4,), 77, 0)]), "type 77"),
        (made(tensors=[("t", (33,), 8, 0)], data=bytes(64)), "has shape"),
        (made(tensors=[("t", (0,), 0, 0)]), "has shape"),
        (made(tensors=[("t", (1 << 40, 1 << 40), 0, 0)]), "has shape"),
        (made(tensors=[("t", (16,), 0, 0)], data=bytes(63)), "outside the file"),
        (made(tensors=[("t", (8,), 0, 7)], data=bytes(99)), "outside the file"),
        (made(tensors=[("t", (16,), 0, 0), ("u", (8,), 0, 32)], data=bytes(99)), "overlaps another"),
        (made(tensors=[("t", (8,), 0, 0), ("t", (8,), 0, 32)], data=bytes(99)), "duplicate tensor 't'"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(read, data, says):
    with pytest.raises(BundleError, match=says):
        read(data)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BundleError, match=r"none\.gguf cannot be read"):
        GgufHeader.read(tmp_path / "none.gguf")
