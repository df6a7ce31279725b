"""The promise of the package: nothing here ever opens a connection."""

import subprocess
import sys

import pytest

PROGRAM = """
import socket, sys
def refuse(*args, **options):
    raise AssertionError(f"network touched: {args}")
for name in ("connect", "connect_ex", "bind", "sendto"):
    setattr(socket.socket, name, refuse)
socket.create_connection = socket.getaddrinfo = refuse

import seed_edge
with seed_edge.load(*sys.argv[2:]) as edge:
    print(len(edge.caption(sys.argv[1]).split()))
    print(edge.draw("a red fox", seed=7).size)
assert not {"torch", "transformers", "huggingface_hub", "requests", "httpx"} & set(sys.modules)
"""


@pytest.mark.parametrize("name", ["coffee.jpg", "cat.jpg"])
def test_the_embedded_model_captions_and_draws_with_sockets_blocked(examples, name):
    words, size = said(str(examples / name))
    assert int(words) >= 2 and size == "(128, 128)"


def test_any_bundle_captions_and_draws_with_sockets_blocked(examples, tiny):
    assert said(str(examples / "cat.jpg"), str(tiny))[1] == "(16, 16)"


def said(*arguments):
    result = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()
