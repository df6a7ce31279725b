"""What the commands share: options, notes for people, refusals. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seed_edge.commands.settings import log_to_stderr

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from seed_edge.runtime.pipeline import SeedEdge


class Bytes(click.ParamType[int]):
    """A number of bytes, with or without unit: `6G`, `500M`, `1.5GB`, `800MiB`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", value.strip().lower())
        if match is None:
            self.fail(f"{value!r} is no size; write it as 6G or 500M", param, ctx)
        number, unit, binary = match.groups()
        return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(unit or " "))


def complete_bundle(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of bundles that begin so, and folders."""
    from click.shell_completion import CompletionItem

    from seed_edge.bundle import EMBEDDED
    from seed_edge.home import bundle_names

    names = [name for name in (EMBEDDED.name, *bundle_names()) if name.startswith(incomplete)]
    return [*map(CompletionItem, names), CompletionItem(incomplete, type="dir")]


bundle_option = click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Folder of a bundle, or the name of one that was added.  [default: the embedded one]",
    shell_complete=complete_bundle,
)
device_option = click.option("--device", default="auto", show_default=True, help="Where graphs run: auto, cpu or cuda.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No notes or progress on stderr.")
memory_options = (
    click.option("--low-memory", is_flag=True, help="One part of the bundle open at a time."),
    click.option(
        "--memory-limit", type=Bytes(), metavar="SIZE", help="Most memory to take, such as 6G.  [default: what is free]"
    ),
    click.option("-v", "--verbose", is_flag=True, help="Tell what memory is needed and what is opened, on stderr."),
)
seed_option = click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
max_pixels_option = click.option(
    "--max-pixels", type=click.IntRange(1), help="Refuse images with more pixels.  [default: said when one is refused]"
)


def note(text: str, quiet: bool) -> None:
    """A line for people, on stderr."""
    if not quiet:
        click.echo(text, err=True)


@dataclass(frozen=True)
class Engine:
    """What every command that runs a bundle may be told."""

    bundle: Path | None
    device: str
    quiet: bool
    verbose: bool
    low_memory: bool
    memory_limit: int | None

    def note(self, text: str) -> None:
        """A line for people, on stderr."""
        note(text, self.quiet)

    def opened(self) -> SeedEdge:
        """The bundle, ready to use; says on stderr where it runs, and what memory it plans with where that is asked."""
        import seed_edge

        edge = seed_edge.load(self.bundle, device=self.device, memory_limit=self.memory_limit, low_memory=self.low_memory)
        if self.device == "auto":
            self.note(f"device: {edge.device}")
        if self.verbose:
            log_to_stderr("debug", as_json=False)
            for line in edge.memory_plan():
                click.echo(line, err=True)
        return edge


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say how a bundle is run; the command gets them together, as `engine`."""

    @functools.wraps(command)
    def collected(**options: Any) -> None:
        engine = Engine(**{field.name: options.pop(field.name) for field in dataclasses.fields(Engine)})
        command(engine=engine, **options)

    for option in reversed((bundle_option, device_option, *memory_options, quiet_option)):
        collected = option(collected)
    return collected


def choose(option: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices. Checked here, so that `--help` imports nothing heavy."""
    if value not in choices:
        raise click.ClickException(f"{option} {value}: choose one of {', '.join(choices)}")


def need(extra: str, *modules: str) -> None:
    """Refuse to start when an extra is not installed; says what to install."""
    from importlib.util import find_spec

    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        command = click.get_current_context().command_path
        install = f'pip install "seed-edge[{extra}]"'
        raise click.ClickException(f"`{command}` needs {', '.join(missing)}; install with: {install}")


def given(**options: int | None) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


class Progress:
    """A counter on stderr that rewrites its line; silent when quiet or when stderr is no terminal."""

    def __init__(self, what: str, quiet: bool) -> None:
        self.what, self.shown = what, not quiet and sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __call__(self, done: int, total: int) -> None:
        if self.shown:
            click.echo(f"\r{self.what}: {done}/{total}", err=True, nl=False)

    def __exit__(self, *_: object) -> None:
        if self.shown:
            click.echo("\r\033[K", err=True, nl=False)
