"""The promise of the package: nothing here ever opens a connection."""

import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
import socket, sys
def refuse(*args, **options):
    raise AssertionError(f"network touched: {args}")
for name in ("connect", "connect_ex", "bind", "sendto"):
    setattr(socket.socket, name, refuse)
socket.create_connection = socket.getaddrinfo = refuse

import seed_edge
with seed_edge.load(sys.argv[2]) as edge:
    print(edge.caption(sys.argv[1]))
    print(edge.draw("a red fox", seed=7).size)
assert not {"torch", "transformers", "huggingface_hub", "requests", "httpx"} & set(sys.modules)
"""


@pytest.mark.parametrize("name", ["coffee.jpg", "cat.jpg"])
def test_caption_and_draw_with_sockets_blocked(examples, tiny, name):
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(examples / name), str(tiny)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "(16, 16)"
