"""Options, messages and output that the commands share. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import click

from seed_edge.commands.config import log_to_stderr, logs_json, settings_file, write_stderr
from seed_edge.display import json_line, printable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from seed_edge.runtime.pipeline import SeedEdge

Command = TypeVar("Command", bound=Callable[..., Any] | click.Command)

MAX_SEED = (1 << 63) - 1
MAX_BYTES = (1 << 63) - 1
MAX_COUNT = 10**9
MAX_TEMPERATURE, MAX_GUIDANCE = 100.0, 1000.0
"""As in `manifest`, which `--help` does not import; a test compares them."""
DEVICES, SCHEDULERS, STORAGE_TYPES = (
    ("auto", "cpu", "cuda"),
    ("pndm", "ddim", "dpm++"),
    ("fp32", "fp16", "int8"),
)
RESIZE_FILTERS, PROMPT_TEMPLATES = ("bilinear", "bicubic"), ("vicuna", "llama2", "plain", "own", "own-talk")
"""As in the modules that use them, which `--help` does not import; a test compares them."""
MAX_VALUE_LENGTH = 24
"""Maximum number of characters of an invalid value in a message."""


class Bytes(click.ParamType[int]):
    """A number of bytes, with or without a unit: `6G`, `500M`, `1.5GB`, `800MiB`; 1 to 2**63 - 1."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([kmgt]?)(i?)b?", str(value).strip().lower())
        if match is None:
            self.fail(f"{shortened(value)} is not a size; write it as 6G or 500M", param, ctx)
        number, unit, binary = match.groups()
        integer, _, fraction = number.partition(".")
        scale: int = (1024 if binary else 1000) ** " kmgt".index(unit or " ")
        size: int = int(integer) * scale + int(fraction or "0") * scale // int("1" + "0" * len(fraction))
        if not 0 < size <= MAX_BYTES:
            self.fail(
                f"{shortened(value)} is not between 1 and 2**63 - 1 bytes; write it as 6G or 500M", param, ctx
            )
        return size


class Integer(click.IntRange):
    """An integer in a range; the help shows only the lower bound."""

    def __init__(self, minimum: int, maximum: int) -> None:
        super().__init__(minimum)
        self.maximum = maximum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, str) and len(value) > MAX_VALUE_LENGTH:
            self.fail(f"{shortened(value)} is not between {self.min} and {self.maximum}", param, ctx)
        number = int(super().convert(value, param, ctx))
        if number > self.maximum:
            self.fail(f"{shortened(value)} is not between {self.min} and {self.maximum}", param, ctx)
        return number


class Number(click.FloatRange):
    """A finite real number in a range."""

    def __init__(self, minimum: float, maximum: float) -> None:
        super().__init__(minimum)
        self.maximum = maximum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number) or number > self.maximum:
            self.fail(f"{shortened(value)} is not between {self.min:g} and {self.maximum:g}", param, ctx)
        return number


class Text(click.ParamType[str]):
    """Valid UTF-8 text without NUL characters."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            self.fail(
                f"it contains a byte that is not UTF-8 (character {error.start + 1}); write it in UTF-8",
                param,
                ctx,
            )
        if "\0" in text:
            self.fail("it contains a NUL character; remove that", param, ctx)
        return text


def shortened(value: Any) -> str:
    """Return a value in quotes, as one line of limited length, for messages."""
    text = printable(str(value))
    return repr(text if len(text) <= MAX_VALUE_LENGTH else text[:MAX_VALUE_LENGTH] + "...")


SEED, COUNT, TEMPERATURE, TEXT = (
    Integer(0, MAX_SEED),
    Integer(1, MAX_COUNT),
    Number(0, MAX_TEMPERATURE),
    Text(),
)


def complete_recipe(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete names of recipes that begin with `incomplete`, and files."""
    from click.shell_completion import CompletionItem

    folder = Path(__file__).parent.parent / "recipes"
    names = sorted(path.stem for path in folder.glob("*.toml") if path.stem.startswith(incomplete))
    return [*map(CompletionItem, names), CompletionItem(incomplete, type="file")]


def complete_bundle(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete names of bundles that begin with `incomplete`, and folders."""
    from click.shell_completion import CompletionItem

    from seed_edge.bundle import EMBEDDED
    from seed_edge.user_dirs import bundle_names

    names = [name for name in (EMBEDDED.name, *bundle_names()) if name.startswith(incomplete)]
    return [*map(CompletionItem, names), CompletionItem(incomplete, type="dir")]


class Option(click.Option):
    """An option with aliases that appear neither in help nor in completion.

    Args:
        aliases: further spellings, each with its dashes.
    """

    def __init__(self, *args: Any, aliases: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.aliases = list(aliases)

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        visible = self.opts
        self.opts = [*visible, *self.aliases]
        try:
            super().add_to_parser(parser, ctx)
        finally:
            self.opts = visible


class AliasGroup(click.Group):
    """A group whose commands have aliases that appear neither in help nor in completion."""

    aliases: ClassVar[Mapping[str, str]] = {}
    """Alias to command name."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return super().get_command(ctx, self.aliases.get(name, name))


def option(*names: str, aliases: Sequence[str] = (), **settings: Any) -> Callable[[Command], Command]:
    """Return a decorator like `click.option`, with hidden aliases; see `Option`."""
    return click.option(*names, cls=Option, aliases=aliases, **settings)


bundle_option = click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Bundle: a folder, or the name of an added bundle.  [default: the embedded bundle]",
    shell_complete=complete_bundle,
)
device_option = click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    show_default=True,
    help="Device that runs the ONNX graphs.",
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print no notes or progress on stderr.")
memory_options = (
    click.option("--low-memory", is_flag=True, help="Keep only one part of the bundle open at a time."),
    click.option(
        "--memory-limit",
        type=Bytes(),
        metavar="SIZE",
        help="Memory limit, such as 6G.  [default: free memory]",
    ),
    click.option(
        "-v", "--verbose", is_flag=True, help="Print the device, the memory plan and opened parts on stderr."
    ),
)
seed_option = click.option("-s", "--seed", type=SEED, default=0, show_default=True, help="Random seed.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
max_pixels_option = click.option(
    "--max-pixels", type=Integer(1, 1 << 40), help="Refuse images with more pixels.  [default: 200 million]"
)


def output_option(help: str, required: bool = False) -> Callable[[Command], Command]:
    """Return the decorator of `-o/--output`; the command receives a path as `out`."""
    path = click.Path(path_type=Path)
    return option("-o", "--output", "out", aliases=["--out"], type=path, required=required, help=help)


def overwrite_option(help: str) -> Callable[[Command], Command]:
    """Return the decorator of `--overwrite`; the command receives a flag of that name."""
    return option("--overwrite", aliases=["--replace"], is_flag=True, help=help)


def note(text: str, quiet: bool) -> None:
    """Write a line to stderr unless `quiet`; see `write_stderr`."""
    if not quiet:
        write_stderr(text)


def print_json(value: Any, indent: int | None = None) -> None:
    """Print a JSON value on stdout, in one line unless indented; valid JSON in any encoding of stdout."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("_", "-")
    if indent is None and encoding in ("utf-8", "utf8"):
        click.echo(json_line(value))
    else:
        click.echo(json.dumps(value, allow_nan=False, indent=indent))


def print_path(path: Path | str) -> None:
    """Print a path on stdout: exact for programs, escaped for a terminal."""
    if sys.stdout is not None and sys.stdout.isatty():
        click.echo(printable(str(path)))
    else:
        click.echo(os.fsencode(path))


@dataclass(frozen=True)
class RuntimeOptions:
    """Options shared by all commands that run a bundle."""

    bundle: Path | None
    device: str
    quiet: bool
    verbose: bool
    low_memory: bool
    memory_limit: int | None

    def note(self, text: str) -> None:
        """Write a line to stderr unless `quiet`."""
        note(text, self.quiet)

    def open_bundle(self) -> SeedEdge:
        """Open the bundle; with `verbose`, print the device and the memory plan on stderr."""
        import seed_edge

        edge = seed_edge.load(
            self.bundle, device=self.device, memory_limit=self.memory_limit, low_memory=self.low_memory
        )
        if self.verbose:
            self.note(f"device: {edge.device}")
            log_to_stderr("debug", as_json=False)
            for line in edge.memory_plan():
                note(line, quiet=False)
        return edge


def runtime_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `RuntimeOptions`; the command receives them as `runtime`."""

    @functools.wraps(command)
    def wrapper(**options: Any) -> None:
        runtime = RuntimeOptions(
            **{field.name: options.pop(field.name) for field in dataclasses.fields(RuntimeOptions)}
        )
        command(runtime=runtime, **options)

    for add_option in reversed((bundle_option, device_option, *memory_options, quiet_option)):
        wrapper = add_option(wrapper)
    return wrapper


def check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    """Check a value against choices that are too slow to compute for `--help`.

    Raises:
        click.UsageError: `value` is not one of `choices`.
    """
    if value not in choices:
        raise click.UsageError(f"{settings_file(option)}{option} {value}: choose one of {', '.join(choices)}")


def require_extra(extra: str, *modules: str) -> None:
    """Check that the modules of an extra are installed.

    Raises:
        click.ClickException: a module is missing; the message has the command that installs it.
    """
    from importlib.util import find_spec

    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        command = click.get_current_context().command_path
        install = f'pip install ".[{extra}]"'
        raise click.ClickException(
            f"`{command}` needs {', '.join(missing)}; install with: {install} in the source folder of "
            "seed-edge"
        )


def present(**options: Any) -> dict[str, Any]:
    """Return the options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


class Progress:
    """Progress on stderr: one line that is rewritten at a terminal, otherwise one line every
    `EVERY` seconds.
    """

    EVERY = 30.0
    """Seconds."""

    def __init__(self, label: str, quiet: bool) -> None:
        self.label, self.quiet, self.last_line = label, quiet, time.monotonic()
        self.rewritten = not quiet and sys.stderr.isatty() and not logs_json()

    def __enter__(self) -> Progress:
        return self

    def __call__(self, done: int, total: int) -> None:
        if self.rewritten:
            click.echo(f"\r{self.label}: {done}/{total}", err=True, nl=False)
        elif not self.quiet and time.monotonic() - self.last_line >= self.EVERY:
            self.last_line = time.monotonic()
            write_stderr(f"{self.label}: {done}/{total}")

    def __exit__(self, *_: object) -> None:
        if self.rewritten:
            click.echo("\r\033[K", err=True, nl=False)
