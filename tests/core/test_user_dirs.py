import os
import shutil
import time

import pytest

from seed_edge import bundle as bundle_module
from seed_edge import user_dirs as home_module
from seed_edge.bundle import EMBEDDED, Bundle, find
from seed_edge.errors import BundleError
from seed_edge.user_dirs import CheckCache, bundle_folder, bundle_names, folder


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("SEED_EDGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def settled(tiny, tmp_path):
    """A copy of the tiny bundle that was not changed just now."""
    copy = tmp_path / "bundle"
    shutil.copytree(tiny, copy)
    long_ago = time.time() - 3600
    for path in copy.iterdir():
        os.utime(path, (long_ago, long_ago))
    return copy


def counted(monkeypatch):
    """Names of the files that are hashed and whose headers are read."""
    read, check, hashed = [], bundle_module.check_header, bundle_module.sha256
    monkeypatch.setattr(bundle_module, "check_header", lambda path: (read.append(path.name), check(path)))
    monkeypatch.setattr(bundle_module, "sha256", lambda path: (read.append(path.name), hashed(path))[1])
    return read


def test_one_folder_for_all_or_those_of_the_system(own, monkeypatch):
    assert folder("data") == folder("cache") == own
    monkeypatch.delenv("SEED_EDGE_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere/cache")
    assert folder("data") != folder("cache") and "seed-edge" in str(folder("data"))


def test_what_passed_is_not_read_again_until_it_changes(own, settled, monkeypatch):
    read = counted(monkeypatch)
    Bundle.open(settled)
    assert sorted(set(read)) == ["decoder.onnx", "encoder.onnx", "llm.gguf"]
    read.clear()
    Bundle.open(settled)
    assert read == []
    os.utime(settled / "llm.gguf", (1, 1))
    Bundle.open(settled)
    assert set(read) == {"llm.gguf"}


def test_a_change_is_noticed_even_where_size_and_time_stay_the_same(own, settled):
    Bundle.open(settled)
    before = (settled / "llm.gguf").stat()
    data = bytearray((settled / "llm.gguf").read_bytes())
    data[-1] ^= 1
    (settled / "llm.gguf").write_bytes(data)
    os.utime(settled / "llm.gguf", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(BundleError, match=r"llm\.gguf is not the file that was exported"):
        Bundle.open(settled)


def test_what_changed_just_now_is_not_remembered(own, tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny, tmp_path / "fresh")
    for path in (tmp_path / "fresh").iterdir():
        os.utime(path)
    read = counted(monkeypatch)
    for _ in range(2):
        read.clear()
        Bundle.open(tmp_path / "fresh")
        assert len(set(read)) == 3


@pytest.mark.parametrize("content", ["no json", "[]", '{"x": 3}', "\x00"])
def test_a_damaged_memory_is_as_good_as_none(own, settled, content):
    own.mkdir()
    (own / "checked.json").write_text(content)
    assert Bundle.open(settled).path == settled


def test_a_memory_that_cannot_be_written_harms_nothing(own, settled, monkeypatch):
    own.write_text("a file where the folder should be")
    assert Bundle.open(settled).path == settled


def test_the_memory_does_not_grow_for_ever(own, settled, monkeypatch):
    monkeypatch.setattr(home_module, "MAX_ENTRIES", 2)
    Bundle.open(settled)
    assert len(CheckCache()._entries) == 2


def test_bundles_are_found_by_folder_and_by_name(own, tiny):
    shutil.copytree(tiny, bundle_folder("my-8b.q4"))
    assert bundle_names() == ["my-8b.q4"]
    assert find("my-8b.q4") == bundle_folder("my-8b.q4") and find(tiny) == tiny and find("mini") == EMBEDDED
    assert Bundle.open("my-8b.q4").manifest.name == "tiny"
    with pytest.raises(BundleError, match=r"other: no such bundle; .* one of: mini, my-8b\.q4"):
        find("other")


@pytest.mark.parametrize("name", ["../x", "", ".hidden", "a/b", "x" * 81, "a b"])
def test_names_that_could_lead_elsewhere_are_refused(own, name):
    with pytest.raises(BundleError, match="is not a valid name of a bundle"):
        bundle_folder(name)
    with pytest.raises(BundleError, match="no such bundle"):
        find(name or "nothing")
