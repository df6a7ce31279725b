"""What a process and its children do to the network and to the disk, seen by the kernel: strace, or else a network namespace."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CALLS = (
    "network,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,mknod,mknodat,truncate,"
    "unlink,unlinkat,rmdir"
)
SOCKET = re.compile(r"\bsocket(?:pair)?\((AF_\w+)")
OPENED = re.compile(
    r"\b(?:open|openat|creat)\(.*?(O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|creat).*\) = \d+<(.*?)>(?:<.*>)?$"
)
NAMED = re.compile(r"\b(?:mkdir|rename|link|symlink|mknod|truncate|unlink|rmdir)\w*\((.*)\) = 0$")
QUOTED = re.compile(r'(?:AT_FDCWD<([^>]*)>, |\d+<([^>]*)>, )?"((?:[^"\\]|\\.)*)"')
HARMLESS = ("/dev/null", "/dev/tty", "/proc/", "/dev/pts/", "/dev/shm/sem.")
"""Places that hold nothing."""


@dataclass
class Seen:
    """What one command did."""

    code: int
    output: str
    """stdout."""
    errors: str
    """stderr."""
    sockets: list[str]
    """Families of sockets that were made, other than AF_UNIX; or what a network namespace counted."""
    written: set[str]
    """Files and folders that were made, opened for writing, renamed or removed. Empty without strace."""


def strace_works() -> bool:
    """Whether strace is installed and may trace."""
    return (
        shutil.which("strace") is not None
        and subprocess.run(["strace", "-qq", "true"], capture_output=True).returncode == 0
    )


def namespace_works() -> bool:
    """Whether a network namespace of our own can be made."""
    return (
        shutil.which("unshare") is not None
        and subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0
    )


def traced(command: Sequence[str], cwd: Path, environment: Mapping[str, str], stdin: str = "") -> Seen:
    """Run a command under strace."""
    log = cwd / ".strace"
    words = [
        "strace",
        "-f",
        "-qq",
        "-y",
        "-s",
        "4096",
        "--seccomp-bpf",
        "-e",
        f"trace={CALLS}",
        "-o",
        str(log),
        *command,
    ]
    done = subprocess.run(words, cwd=cwd, env=dict(environment), capture_output=True, text=True, input=stdin)
    lines = log.read_text("utf-8", "replace").splitlines()
    log.unlink()
    families = [match[1] for line in lines if (match := SOCKET.search(line))]
    others = sorted({family for family in families if family not in ("AF_UNIX", "AF_LOCAL")})
    return Seen(done.returncode, done.stdout, done.stderr, others, set(_written(_whole(lines), cwd)))


def _whole(lines: Sequence[str]) -> Iterator[str]:
    """Calls that strace shows in two halves, put together."""
    begun: dict[str, str] = {}
    for line in lines:
        process, _, call = line.partition(" ")
        if call.rstrip().endswith("<unfinished ...>"):
            begun[process] = call.rpartition("<unfinished ...>")[0].rstrip()
        elif "resumed>" in call and process in begun:
            yield begun.pop(process) + call.partition("resumed>")[2]
        else:
            yield call


def _written(calls: Iterator[str], cwd: Path) -> Iterator[str]:
    for call in calls:
        if opened := OPENED.search(call):
            yield opened[2].removesuffix(" (deleted)")
        elif named := NAMED.search(call):
            for match in QUOTED.finditer(named[1]):
                yield os.path.normpath(os.path.join(match[1] or match[2] or cwd, match[3]))


def outside(seen: Seen, *places: Path) -> list[str]:
    """What was written anywhere but in some folders; Python's own cache of compiled modules does not count."""
    allowed = (*HARMLESS, *(str(place.resolve()) for place in places))
    return sorted(
        path for path in seen.written if not path.startswith(allowed) and "/__pycache__/" not in path
    )


COUNTERS = {"Ip": ("OutRequests", "OutNoRoutes"), "Tcp": ("ActiveOpens",), "Udp": ("OutDatagrams",)}
"""Of a network namespace: what is sent, or would be if there were a route."""


def isolated(command: Sequence[str], cwd: Path, environment: Mapping[str, str], stdin: str = "") -> Seen:
    """Run a command in a network namespace without any route, and see whether it tried to send."""
    words = ["unshare", "-rn", sys.executable, __file__, *command]
    done = subprocess.run(words, cwd=cwd, env=dict(environment), capture_output=True, text=True, input=stdin)
    errors, _, counted = done.stderr.rpartition("counted:")
    return Seen(done.returncode, done.stdout, errors, counted.split(), set())


def counters() -> dict[str, int]:
    """Counters of this network namespace."""
    found: dict[str, int] = {}
    lines = Path("/proc/self/net/snmp").read_text().splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        kind, _, rest = names.partition(":")
        table = dict(zip(rest.split(), map(int, values.partition(":")[2].split()), strict=True))
        found |= {f"{kind}.{name}": table[name] for name in COUNTERS.get(kind, ())}
    return found


if __name__ == "__main__":
    code = subprocess.run(sys.argv[1:], check=False).returncode
    said = " ".join(f"{name}={value}" for name, value in counters().items() if value)
    print(f"counted: {said}", end="", file=sys.stderr)
    sys.exit(code)
