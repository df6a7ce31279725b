"""Files written whole or not at all: by several processes, past planted links, into pipes, under any umask and any name."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from seed_edge import atomic
from seed_edge.atomic import (
    create_temporary,
    create_temporary_folder,
    is_special,
    replacing,
    same_file,
    sweep,
    write_new,
)

LONG = "a" * 251 + ".txt"
NAMES = [
    "plain.txt",
    LONG,
    "\N{HAMSTER FACE}" * 62 + ".txt",
    os.fsdecode(b"caf\xe9\xff.txt"),
    "line\nend\t.txt",
    "-",
    ".hidden",
]


@pytest.fixture
def umask():
    """Sets the umask of this process, for one test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name_is_written_whole(tmp_path, name):
    path = tmp_path / name
    for content in ("first", "second"):
        with replacing(path) as partial:
            partial.write_text(content)
    assert path.read_text() == "second" and [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
def test_what_was_there_stays_where_writing_fails(tmp_path, fault):
    path = tmp_path / "a"
    path.write_text("dear")
    with pytest.raises(fault), replacing(path) as partial:
        partial.write_text("half")
        raise fault
    assert path.read_text() == "dear" and [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_what_the_umask_leaves_and_the_umask_is_not_touched(
    tmp_path, umask, monkeypatch, mask
):
    umask(mask)
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the umask belongs to the whole process"))
    with replacing(tmp_path / "a") as partial:
        partial.write_text("x")
    write_new(tmp_path / "b", lambda partial: partial.touch())
    create_temporary_folder(tmp_path / "c").rename(tmp_path / "c")
    monkeypatch.undo()
    assert (
        mode(tmp_path / "a") == mode(tmp_path / "b") == 0o666 & ~mask
        and mode(tmp_path / "c") == 0o777 & ~mask
    )


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "target")
    with replacing(tmp_path / "link") as partial:
        partial.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "folder" / "target").read_text() == "new"


def test_another_name_of_the_file_that_is_replaced_keeps_what_it_had(tmp_path):
    (tmp_path / "mine").write_text("dear")
    os.link(tmp_path / "mine", tmp_path / "a")
    with replacing(tmp_path / "a") as partial:
        partial.write_text("new")
    assert (tmp_path / "mine").read_text() == "dear"


def test_planted_links_are_not_written_through(tmp_path, monkeypatch):
    names = iter(["0" * 16, "1" * 16, "2" * 16, "3" * 16])
    monkeypatch.setattr(
        atomic, "temporary_name", lambda path: path.with_name(f".{path.name}-{next(names)}.partial")
    )
    (tmp_path / "mine").write_text("dear")
    (tmp_path / f".a-{'0' * 16}.partial").symlink_to(tmp_path / "mine")
    (tmp_path / f".a-{'1' * 16}.partial").symlink_to(tmp_path / "nowhere")
    with replacing(tmp_path / "a") as partial:
        partial.write_text("new")
    assert (tmp_path / "mine").read_text() == "dear" and not (tmp_path / "nowhere").exists()
    assert (tmp_path / "a").read_text() == "new"
    (tmp_path / f".a-{'3' * 16}.partial").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StopIteration):
        create_temporary_folder(Path(tmp_path, "a")).rmdir()  # the third is free
        create_temporary_folder(Path(tmp_path, "a"))


def test_temporary_names_differ_and_are_hidden(tmp_path):
    found = [create_temporary(tmp_path / "a") for _ in range(50)]
    assert len(set(found)) == 50 and all(
        path.name.startswith(".") and path.name.endswith(".partial") for path in found
    )


MANY = """
import sys
from pathlib import Path
from seed_edge.atomic import replacing, write_new, create_temporary
kind, folder, own = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
for number in range(300):
    if kind == "replacing":
        with replacing(folder / "a") as partial:
            partial.write_text(own * 1000)
        assert set((folder / "a").read_text()) in ({"0"}, {"1"}, {"2"}), "half a file"
    else:
        names = (folder / f"a-{n}" for n in range(10_000))
        print(write_new(folder / "a", lambda partial: partial.write_text(f"{own} {number}"), names).name)
"""


@pytest.mark.parametrize("kind", ["replacing", "new"])
def test_processes_at_one_name_do_not_disturb_each_other(tmp_path, kind):
    words = [sys.executable, "-c", MANY, kind, str(tmp_path)]
    running = [subprocess.Popen([*words, str(own)], stdout=subprocess.PIPE, text=True) for own in range(3)]
    told = [process.communicate()[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    if kind == "replacing":
        assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
        return
    assert (
        {name for names in told for name in names}
        == {f"a-{n}" for n in range(900)}
        == set(os.listdir(tmp_path))
    )
    for own, names in enumerate(told):
        assert [(tmp_path / name).read_text() for name in names] == [
            f"{own} {number}" for number in range(300)
        ]


@pytest.mark.parametrize("linking", [True, False], ids=["hard links", "no hard links"])
def test_the_first_free_name_is_taken(tmp_path, monkeypatch, linking):
    if not linking:

        def refused(*_):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refused)
    (tmp_path / "a").write_text("mine")
    (tmp_path / "b").symlink_to(tmp_path / "nowhere")
    (tmp_path / "c").mkdir()
    taken = write_new(
        tmp_path / "a", lambda partial: partial.write_text("new"), iter([tmp_path / name for name in "abcd"])
    )
    assert taken == tmp_path / "d" and taken.read_text() == "new" and (tmp_path / "a").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists() and len(list(tmp_path.iterdir())) == 4
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "a", lambda partial: partial.write_text("new"))
    assert (tmp_path / "a").read_text() == "mine" and len(list(tmp_path.iterdir())) == 4


def test_pipes_and_devices_are_written_to_and_stay(tmp_path):
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    with replacing(tmp_path / "link") as partial:
        partial.write_bytes(b"hello")
    reader.join(10)
    assert found == [b"hello"] and stat.S_ISFIFO(pipe.stat().st_mode)
    with replacing(Path("/dev/null")) as partial:
        partial.write_bytes(b"hello")
    assert is_special(Path("/dev/null")) and is_special(pipe) and is_special(tmp_path / "link")
    assert not is_special(tmp_path) and not is_special(tmp_path / "none") and not is_special(Path(__file__))


def test_files_are_told_apart_by_what_they_are_not_by_their_names(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("x")
    other.write_text("x")
    os.link(one, tmp_path / "hard")
    (tmp_path / "soft").symlink_to("one")
    (tmp_path / "round").symlink_to("round")
    assert all(
        same_file(one, tmp_path / name) for name in ("one", "hard", "soft", "../" + tmp_path.name + "/one")
    )
    assert not any(same_file(one, tmp_path / name) for name in ("other", "none", "round"))


def test_only_our_temporary_files_are_swept(tmp_path):
    create_temporary(tmp_path / "a")
    create_temporary(tmp_path / LONG)
    (tmp_path / "target").write_text("mine")
    (tmp_path / f".a-{'0' * 16}.partial").symlink_to(tmp_path / "target")
    kept = [
        ".a.partial",
        "a-0123456789abcdef.partial",
        ".a-0123456789abcde.partial",
        ".a-0123456789ABCDEF.partial",
        "b.partial",
    ]
    for name in kept:
        (tmp_path / name).write_text("mine")
    create_temporary_folder(tmp_path / "b")
    sweep(tmp_path)
    left = {entry.name for entry in tmp_path.iterdir() if not entry.is_dir()}
    assert left == {*kept, "target", f".a-{'0' * 16}.partial"}


def test_a_folder_that_nobody_may_write_to_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError), replacing(tmp_path / "none" / "a"):
        pytest.fail("there is no such folder")
    with pytest.raises(OSError):
        write_new(tmp_path / "none" / "a", lambda _: pytest.fail("there is no such folder"))
