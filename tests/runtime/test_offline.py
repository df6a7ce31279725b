"""The promise of the package, seen below Python: no command opens a socket, or writes anywhere but where it says it does."""

import os
import sys
from pathlib import Path

import click
import pytest
from PIL import Image
from watch import Seen, isolated, namespace_works, outside, strace_works, traced

from seed_edge.cli import cli

TOOL = (sys.executable, "-m", "seed_edge")
TINY = ("--bundle", "{tiny}")
COMMANDS = {
    "caption": ("photo.png", "{cat}"),
    "caption --out": ("photo.png", "--out", "c.jsonl", *TINY),
    "caption --sidecar": ("photo.png", "--sidecar", "txt", *TINY),
    "draw": ("a red fox", "-o", "fox.png"),
    "draw --from": ("--from", "drawn.png", "-o", "again.png", *TINY),
    "encode": ("photo.png", "--json"),
    "decode": ("codes.json", "-o", "decoded.png", *TINY),
    "edit": ("photo.png", "make it blue", "-o", "blue.png"),
    "reconstruct": ("photo.png", "-o", "same.png"),
    "ask": ("photo.png", "what is this?"),
    "chat": ("-o", "."),
    "bundles add": ("{tiny}", "--name", "other"),
    "bundles list": (),
    "bundles info": ("other",),
    "bundles path": ("other",),
    "bundles remove": ("other", "--yes"),
    "inspect": ("drawn.png",),
    "doctor": (),
    "verify": ("{tiny}",),
    "bench": ("--tries", "1", *TINY),
    "completion": ("bash",),
    "manual": (),
}
"""Every command, run where `photo.png`, `drawn.png` and `codes.json` are; those of training and export are in tests/export."""
ELSEWHERE = {
    "export",
    "tokenize",
    "eval",
    "train drawings",
    "train tokenizer",
    "train llm",
    "train merge",
    "train unpack",
}
LONG = """
import sys, time
import seed_edge
with seed_edge.load(*sys.argv[2:]) as edge:
    print(len(edge.caption(sys.argv[1]).split()))
    time.sleep(20)
    print(edge.draw("a red fox", seed=7).image.size)
assert not {"torch", "transformers", "huggingface_hub", "requests", "httpx"} & set(sys.modules)
"""
SOCKET = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
SEND = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 53))"


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny):
    """A user's folders: home, which must stay empty, what is promised to be written to, and where the work is done."""
    folder = tmp_path_factory.mktemp("offline")
    for name in ("home", "kept", "work", "temporary"):
        (folder / name).mkdir()
    Image.new("RGB", (20, 20), "red").save(folder / "work" / "photo.png")
    (folder / "work" / "codes.json").write_text("[0, 1, 2, 3]")
    run(folder, tiny, *TOOL, "draw", "a house", "--bundle", str(tiny), "-o", "drawn.png", watch=None)
    return folder


def environment(folder):
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XDG_", "ORT_", "HF_", "SEED_"))
    }
    places = {"HOME": folder / "home", "SEED_EDGE_HOME": folder / "kept", "TMPDIR": folder / "temporary"}
    return kept | {name: str(path) for name, path in places.items()} | {"PYTHONDONTWRITEBYTECODE": "1"}


def run(folder, tiny, *command, watch=None, stdin="") -> Seen:
    cat = str(Path(__file__).parent.parent.parent / "examples" / "cat.jpg")
    words = [word.format(tiny=tiny, cat=cat) if "{" in word and word != LONG else word for word in command]
    watch = watch or (traced if strace_works() else isolated)
    return watch(words, folder / "work", environment(folder), stdin)


def quiet(seen, folder):
    """Whether a command ended well, made no socket, and wrote only where that is promised."""
    assert seen.code == 0, seen.errors
    assert not seen.sockets, seen.sockets
    assert not outside(seen, folder / "work", folder / "kept", folder / "temporary")
    assert os.listdir(folder / "home") == []
    return True


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_opens_a_socket_or_writes_where_it_should_not(place, tiny, name):
    stdin = "hello\n/draw a fox\n/save talk.json\n" if name == "chat" else ""
    words = [word for word in name.split() if not word.startswith("--")]
    assert quiet(run(place, tiny, *TOOL, *words, *COMMANDS[name], stdin=stdin), place)


def test_every_command_is_watched():
    found = set()

    def collect(group, prefix):
        for name, command in group.commands.items():
            if isinstance(command, click.Group):
                collect(command, f"{prefix}{name} ")
            else:
                found.add(prefix + name)

    collect(cli, "")
    watched = {" ".join(word for word in name.split() if not word.startswith("--")) for name in COMMANDS}
    assert found == watched | ELSEWHERE


@pytest.mark.parametrize("bundle", [(), ("{tiny}",)])
def test_a_process_that_lives_long_is_as_quiet(place, tiny, examples, bundle):
    seen = run(place, tiny, sys.executable, "-c", LONG, str(examples / "cat.jpg"), *bundle)
    assert quiet(seen, place) and len(seen.output.splitlines()) == 2


def test_the_environment_cannot_turn_telemetry_on_by_accident(place, tiny, examples):
    program = "import os, seed_edge; print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    odd = environment(place) | {"ORT_DISABLE_TELEMETRY": "0", "HF_HUB_DISABLE_TELEMETRY": ""}
    watch = traced if strace_works() else isolated
    assert watch([sys.executable, "-c", program], place / "work", odd).output.split() == ["1", "1"]
    assert quiet(watch([*TOOL, "caption", str(examples / "cat.jpg")], place / "work", odd), place)


def test_a_host_that_loaded_onnxruntime_before_is_told(place):
    program = "import onnxruntime, seed_edge"
    safe = environment(place) | {"ORT_DISABLE_TELEMETRY": "1"}  # the variable alone is enough
    watch = traced if strace_works() else isolated
    late = watch([sys.executable, "-c", "import sys, types; sys.modules['onnxruntime'] = types.SimpleNamespace("
                  "disable_telemetry_events=lambda: print('off'), set_default_logger_severity=print); import seed_edge"],
                 place / "work", environment(place))  # fmt: skip
    assert "off" in late.output and "import seed_edge first" in late.errors
    early = watch([sys.executable, "-c", program], place / "work", safe)
    assert quiet(early, place) and not early.errors


@pytest.mark.skipif(not strace_works(), reason="strace is not installed; the namespace watches instead")
def test_a_socket_and_a_stray_file_are_seen(place):
    seen = traced([sys.executable, "-c", SOCKET], place / "work", environment(place))
    assert seen.sockets == ["AF_INET"]
    stray = place / "home" / "stray"
    seen = traced(
        [sys.executable, "-c", f"open({str(stray)!r}, 'w').close()"], place / "work", environment(place)
    )
    stray.unlink()
    assert outside(seen, place / "work") == [str(stray)]


@pytest.mark.skipif(not namespace_works(), reason="no network namespace can be made here")
def test_a_namespace_sees_what_would_be_sent(place):
    seen = isolated([sys.executable, "-c", SEND], place / "work", environment(place))
    assert any(word.startswith("Ip.OutNoRoutes") for word in seen.sockets), seen
    assert isolated([sys.executable, "-c", "print(1)"], place / "work", environment(place)).sockets == []


def test_something_watches_here():
    assert strace_works() or namespace_works()
