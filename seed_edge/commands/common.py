"""What the commands share: options, notes for people, refusals. Imports nothing heavy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from seed_edge.runtime.pipeline import SeedEdge

bundle_option = click.option(
    "--bundle", type=click.Path(path_type=Path), help="Bundle directory.  [default: the embedded one]"
)
device_option = click.option("--device", default="auto", show_default=True, help="Where graphs run: auto, cpu or cuda.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No notes or progress on stderr.")
seed_option = click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
max_pixels_option = click.option(
    "--max-pixels", type=click.IntRange(1), help="Refuse images with more pixels.  [default: said when one is refused]"
)


def note(text: str, quiet: bool) -> None:
    """A line for people, on stderr."""
    if not quiet:
        click.echo(text, err=True)


def opened(bundle: Path | None, device: str, quiet: bool) -> SeedEdge:
    """The bundle, ready to use; says on stderr where it runs."""
    import seed_edge

    edge = seed_edge.load(bundle, device=device)
    if device == "auto":
        note(f"device: {edge.device}", quiet)
    return edge


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
