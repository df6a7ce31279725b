"""The commands `completion` and `manual`."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from seed_edge import __version__
from seed_edge.commands.exit_codes import EXIT_CODES

SHELLS = ("bash", "zsh", "fish")
COMPLETE = "_SEED_EDGE_COMPLETE"
"""Environment variable with which a shell requests completions."""
ENVIRONMENT = {
    "SEED_EDGE_HOME": "Folder for bundles, defaults and caches, instead of the folders of the system.",
    "SEED_EDGE_CONFIG": "File of defaults, instead of seed-edge.toml in the configuration folder.",
    "NO_COLOR": "If set, images are shown in the terminal only with --show.",
    "OMP_NUM_THREADS": "Number of OpenMP threads of ONNX Runtime and llama.cpp.",
}


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script for SHELL: bash, zsh or fish.

    For bash: seed-edge completion bash > ~/.local/share/bash-completion/completions/seed-edge
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(click.get_current_context().find_root().command, {}, "seed-edge", COMPLETE).source())


@click.command()
def manual() -> None:
    """Print the manual page: seed-edge manual > seed-edge.1."""
    root = click.get_current_context().find_root().command
    assert isinstance(root, click.Group)
    click.echo("\n".join(page(root)))


def page(root: click.Group) -> Iterator[str]:
    """Yield the lines of the manual page, in roff."""
    yield f'.TH SEED-EDGE 1 "" "seed-edge {__version__}" "User Commands"'
    yield from (".SH NAME", "seed-edge \\- caption and draw images with one small model, offline")
    yield from (".SH SYNOPSIS", ".B seed-edge", "\\fICOMMAND\\fR [\\fIOPTIONS\\fR] [\\fIARGUMENTS\\fR]")
    yield from (".SH DESCRIPTION", *paragraphs(root.help or ""))
    yield from (".SH OPTIONS", *options(root))
    yield ".SH COMMANDS"
    yield from commands(root, "seed-edge")
    yield from (".SH EXIT STATUS", roff(EXIT_CODES))
    yield ".SH ENVIRONMENT"
    for name, meaning in ENVIRONMENT.items():
        yield from (".TP", f".B {name}", roff(meaning))
    yield ".SH FILES"
    yield from (
        ".TP",
        ".B seed-edge.toml",
        "Default values of options: at the top level for all commands, in a table such as [draw] for one.",
    )


def commands(group: click.Group, prefix: str) -> Iterator[str]:
    """Yield a section for each command of a group and of its subgroups."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
            continue
        arguments = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
        usage = " ".join(argument.make_metavar(click.Context(command)) for argument in arguments)
        yield f".SS {roff(f'{prefix} {name} {usage}'.strip())}"
        yield from paragraphs(command.help or "")
        yield from options(command)


def options(command: click.Command) -> Iterator[str]:
    """Yield an entry for each option of a command."""
    context = click.Context(command)
    for parameter in command.params:
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            yield from (".TP", f".B {roff(record[0])}", roff(record[1]) or "\\&")


def paragraphs(text: str) -> Iterator[str]:
    """Yield the help of a command, paragraph by paragraph."""
    for paragraph in re.split(r"\n\s*\n", text.replace("\b", "").strip()):
        yield from (".PP", roff(paragraph))


def roff(text: str) -> str:
    """Escape text for roff."""
    escaped = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
