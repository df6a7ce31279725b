import subprocess
import sys

import pytest

from seed_edge.file_lock import lock_file


def test_a_file_is_locked_once_and_free_again_when_it_is_closed(tmp_path):
    path = tmp_path / "lock"
    with open(path, "wb") as first, open(path, "wb") as second:
        lock_file(first.fileno())
        with pytest.raises(OSError):
            lock_file(second.fileno())
    with open(path, "wb") as third:
        lock_file(third.fileno())


def test_another_process_is_kept_out_until_this_one_ends(tmp_path):
    path = tmp_path / "lock"
    holder = f"""
from seed_edge.file_lock import lock_file
file = open({str(path)!r}, "wb")
lock_file(file.fileno())
print("locked", flush=True)
input()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "locked\n"
        with open(path, "wb") as file, pytest.raises(OSError):
            lock_file(file.fileno())
    finally:
        process.kill()
        process.communicate()
    with open(path, "wb") as file:
        lock_file(file.fileno())
