"""Settings of all commands: default values from a file, and the log on stderr."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from seed_edge.display import printable
from seed_edge.errors import SeedEdgeError
from seed_edge.inputs import read_text

LEVELS = ("debug", "info", "warning", "error")
MAX_FILE_BYTES = 1 << 16
"""Maximum size of a settings file in bytes."""
MAX_WORD = 60
"""Maximum number of characters of a key or value in a message."""
FILE = "seed_edge.settings"
"""Key of a context's `meta`: path of the settings file."""


class InvalidValue(click.ClickException):
    """Invalid value of an option in a settings file: exit code 2, as on the command line."""

    exit_code = 2


def read_defaults(path: Path, group: click.Group) -> dict[str, Any]:
    """Defaults of options, by command, for click's `default_map`.

    A key is the long name of an option without dashes. At the top it counts for every command that has the
    option; in the table of a command, such as `[draw]` or `[train.llm]`, for that one. Every value is
    checked, also those of other commands than the one that runs.

    Raises:
        click.ClickException: the file is no TOML, or names what is no command or option.
        InvalidValue: a value is not what its option takes.
    """
    import tomllib

    name = printable(str(path))
    try:
        settings = tomllib.loads(read_text(path, MAX_FILE_BYTES))
    except SeedEdgeError as error:
        raise click.ClickException(f"settings cannot be read: {error}") from error
    except RecursionError:
        raise click.ClickException(f"{name} cannot be read as TOML (it nests too deeply)") from None
    except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
        raise click.ClickException(f"{name} cannot be read as TOML ({error})") from error
    for_all = {key: value for key, value in settings.items() if not isinstance(value, dict)}
    known = {
        key: option for command in _commands_below(group) for key, option in options_by_name(command).items()
    }
    for key in for_all:
        if key not in known:
            raise click.ClickException(
                f"{name}: no command has an option --{_short(key)}{_nearest(key, set(known))}"
            )
    return _defaults(name, group, settings, for_all, "")


def _defaults(
    path: str, group: click.Group, settings: dict[str, Any], for_all: dict[str, Any], where: str
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    tables = {key: value for key, value in settings.items() if isinstance(value, dict)}
    for name in tables:
        if name not in group.commands:
            raise click.ClickException(
                f"{path}: [{where}{_short(name)}] is no command{_nearest(name, set(group.commands))}"
            )
    for name, command in group.commands.items():
        table = tables.get(name, {})
        if isinstance(command, click.Group):
            values = [key for key, value in table.items() if not isinstance(value, dict)]
            if values:
                one = next(iter(command.commands))
                raise click.ClickException(
                    f"{path}: [{where}{name}] holds {_short(values[0])}; options go into the table of a "
                    "command, "
                    f"such as [{where}{name}.{one}]"
                )
            found[name] = _defaults(path, command, table, for_all, f"{where}{name}.")
            continue
        options = options_by_name(command)
        for key in table:
            if key not in options:
                raise click.ClickException(
                    f"{path}: [{where}{name}] has no option --{_short(key)}{_nearest(key, set(options))}"
                )
        found[name] = {}
        for key, value in (for_all | table).items():
            if key in options:
                _check(
                    options[key],
                    value,
                    f"{path}: [{where}{name}] {key}" if key in table else f"{path}: {key}",
                )
                found[name][str(options[key].name)] = value
    return found


def _check(option: click.Option, value: Any, where: str) -> None:
    """Refuse a value that an option does not take.

    Raises:
        InvalidValue: it is of another type, or outside the option's range.
    """
    if not option.multiple:
        _check_one(option, value, where)
        return
    if not isinstance(value, list):
        raise InvalidValue(
            f"{where}: {_shown(value)} is not an array; expected an array, each value {_expected(option)}"
        )
    for each in value:
        _check_one(option, each, where)


def _check_one(option: click.Option, value: Any, where: str) -> None:
    if type(value) not in _types(option):
        raise InvalidValue(f"{where}: {_shown(value)} is {_kind(value)}; expected {_expected(option)}")
    if isinstance(value, str) and "\0" in value:
        raise InvalidValue(f"{where}: it holds a NUL character; expected {_expected(option)}")
    if isinstance(value, bool):
        return
    try:
        option.type.convert(value, option, None)
    except click.UsageError as error:
        raise InvalidValue(f"{where}: {printable(error.message)}; expected {_expected(option)}") from error


def _types(option: click.Option) -> tuple[type, ...]:
    """Types of the TOML values that an option takes."""
    if option.is_flag:
        return (bool,)
    if isinstance(option.type, click.types.FloatParamType):
        return (int, float, str)
    return (int, str) if _is_number(option) else (str,)


def _is_number(option: click.Option) -> bool:
    return isinstance(option.type, click.types.IntParamType) or option.type.name == "size"


def _expected(option: click.Option) -> str:
    if option.is_flag:
        return "true or false"
    if isinstance(option.type, click.types.FloatParamType):
        return "a number"
    if _is_number(option):
        return 'a size such as "6G"' if option.type.name == "size" else "an integer"
    return "a path in quotes" if isinstance(option.type, click.Path) else "a text in quotes"


def _kind(value: Any) -> str:
    """What a TOML value is, in words."""
    words = {
        bool: "a truth value",
        int: "an integer",
        float: "a real number",
        str: "a text",
        list: "an array",
        dict: "a table",
    }
    return words.get(type(value), "a date or time")


def _shown(value: Any) -> str:
    return "it" if isinstance(value, dict | list) else _short(str(value))


def _short(text: str) -> str:
    shortened = printable(text[: MAX_WORD + 1])
    return shortened if len(text) <= MAX_WORD else shortened[:MAX_WORD] + "..."


def settings_file(option: str) -> str:
    """`FILE: ` where the current command has the value of an option from a settings file; else an
    empty text.
    """
    context = click.get_current_context(silent=True)
    found = options_by_name(context.command).get(option.removeprefix("--")) if context else None
    if (
        context is None
        or found is None
        or context.get_parameter_source(str(found.name)) is not ParameterSource.DEFAULT_MAP
    ):
        return ""
    return f"{context.meta.get(FILE, 'settings')}: "


def options_by_name(command: click.Command) -> dict[str, click.Option]:
    """A command's options by their long names, without dashes."""
    return {
        name.removeprefix("--"): option
        for option in command.params
        if isinstance(option, click.Option)
        for name in option.opts
        if name.startswith("--")
    }


def _commands_below(group: click.Group) -> list[click.Command]:
    found: list[click.Command] = []
    for command in group.commands.values():
        found += _commands_below(command) if isinstance(command, click.Group) else [command]
    return found


def _nearest(word: str, known: set[str]) -> str:
    import difflib

    near = difflib.get_close_matches(word[:MAX_WORD], sorted(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def json_log(level: str, message: str, created: float) -> str:
    """A log message as one line of JSON: `time` (UTC), `level`, `message`.

    Args:
        created: seconds since the epoch.
    """
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created))
    return json.dumps({"time": when, "level": level, "message": printable(message)})


def logs_json() -> bool:
    """Whether the running command has --log-json: then every line on stderr is JSON."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.find_root().params.get("log_json"))


def write_stderr(text: str, level: str = "info") -> None:
    """Write one line to stderr: JSON with --log-json, else the text with control characters escaped."""
    click.echo(json_log(level, text, time.time()) if logs_json() else printable(text), err=True)


class Plain(logging.Formatter):
    """The message in one line, with control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(record.getMessage())


class Lines(logging.Formatter):
    """A JSON object for each message: `time` (UTC), `level`, `message`."""

    def format(self, record: logging.LogRecord) -> str:
        return json_log(record.levelname.lower(), record.getMessage(), record.created)


def log_to_stderr(level: str, as_json: bool) -> None:
    """Write log messages of at least `level` to stderr until the command ends.

    A second call of the same command can only lower the level.
    """
    log = logging.getLogger("seed_edge")
    root = click.get_current_context().find_root()
    wanted = logging.getLevelNamesMapping()[level.upper()]
    if root.meta.get(HANDLER) is not None:
        log.setLevel(min(log.level, wanted))
        return
    handler, before = logging.StreamHandler(), log.level
    handler.setFormatter(Lines() if as_json else Plain())
    log.setLevel(wanted)
    log.addHandler(handler)
    root.meta[HANDLER] = handler

    def stop() -> None:
        log.removeHandler(handler)
        log.setLevel(before)

    root.call_on_close(stop)


HANDLER = "seed_edge.handler"
"""Key of a context's `meta`: the handler that `log_to_stderr` added."""
