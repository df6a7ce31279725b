"""Default values of options from a settings file, and log messages on stderr."""

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
MAX_SHOWN = 60
"""Maximum number of characters of a key or value in a message."""
FILE = "seed_edge.settings"
"""Key of a context's `meta`: path of the settings file."""


class InvalidValue(click.ClickException):
    """A value in a settings file is invalid for its option; exit code 2, as on the command line."""

    exit_code = 2


def read_defaults(path: Path, group: click.Group) -> dict[str, Any]:
    """Read a settings file; return the defaults of options by command, for click's `default_map`.

    A key is the long name of an option without dashes. At the top level it applies to every command that has
    the option; in a table such as `[draw]` or `[train.llm]`, to that command. Values of all commands are
    checked.

    Raises:
        click.ClickException: the file is not TOML, or has an unknown command or option.
        InvalidValue: a value is invalid for its option.
    """
    import tomllib

    name = printable(str(path))
    try:
        settings = tomllib.loads(read_text(path, MAX_FILE_BYTES))
    except SeedEdgeError as error:
        raise click.ClickException(f"settings cannot be read: {error}") from error
    except RecursionError:
        raise click.ClickException(f"{name} cannot be read as TOML (it is nested too deeply)") from None
    except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
        raise click.ClickException(f"{name} cannot be read as TOML ({error})") from error
    shared = {key: value for key, value in settings.items() if not isinstance(value, dict)}
    known = {
        key: option for command in _all_commands(group) for key, option in options_by_name(command).items()
    }
    for key in shared:
        if key not in known:
            raise click.ClickException(
                f"{name}: no command has an option --{_shorten(key)}{_suggestion(key, set(known))}"
            )
    return _group_defaults(name, group, settings, shared, "")


def _group_defaults(
    path: str, group: click.Group, settings: dict[str, Any], shared: dict[str, Any], prefix: str
) -> dict[str, Any]:
    """Return the defaults of the commands of a group.

    Args:
        settings: tables of the commands.
        shared: values of the top level.
        prefix: name of the table of the group, with a dot at its end.
    """
    defaults: dict[str, Any] = {}
    tables = {key: value for key, value in settings.items() if isinstance(value, dict)}
    for name in tables:
        if name not in group.commands:
            raise click.ClickException(
                f"{path}: [{prefix}{_shorten(name)}] is not a command{_suggestion(name, set(group.commands))}"
            )
    for name, command in group.commands.items():
        table = tables.get(name, {})
        if isinstance(command, click.Group):
            keys = [key for key, value in table.items() if not isinstance(value, dict)]
            if keys:
                example = next(iter(command.commands))
                raise click.ClickException(
                    f"{path}: [{prefix}{name}] contains {_shorten(keys[0])}; put options into the table of a "
                    f"command, such as [{prefix}{name}.{example}]"
                )
            defaults[name] = _group_defaults(path, command, table, shared, f"{prefix}{name}.")
            continue
        options = options_by_name(command)
        for key in table:
            if key not in options:
                raise click.ClickException(
                    f"{path}: [{prefix}{name}] has no option --{_shorten(key)}"
                    f"{_suggestion(key, set(options))}"
                )
        defaults[name] = {}
        for key, value in (shared | table).items():
            if key in options:
                _check_value(
                    options[key],
                    value,
                    f"{path}: [{prefix}{name}] {key}" if key in table else f"{path}: {key}",
                )
                defaults[name][str(options[key].name)] = value
    return defaults


def _check_value(option: click.Option, value: Any, where: str) -> None:
    """Check that an option takes a value.

    Args:
        where: file, table and key, for messages.

    Raises:
        InvalidValue: the value has another type, or is outside the range of the option.
    """
    if not option.multiple:
        _check_item(option, value, where)
        return
    if not isinstance(value, list):
        raise InvalidValue(
            f"{where}: {_shown(value)} is not an array; expected an array, each value {_expected(option)}"
        )
    for item in value:
        _check_item(option, item, where)


def _check_item(option: click.Option, value: Any, where: str) -> None:
    if type(value) not in _types(option):
        raise InvalidValue(f"{where}: {_shown(value)} is {_type_name(value)}; expected {_expected(option)}")
    if isinstance(value, str) and "\0" in value:
        raise InvalidValue(f"{where}: the text contains a NUL character; expected {_expected(option)}")
    if isinstance(value, bool):
        return
    try:
        option.type.convert(value, option, None)
    except click.UsageError as error:
        raise InvalidValue(f"{where}: {printable(error.message)}; expected {_expected(option)}") from error


def _types(option: click.Option) -> tuple[type, ...]:
    """Return the types of the TOML values that an option takes."""
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
    return "a path in quotes" if isinstance(option.type, click.Path) else "a string in quotes"


def _type_name(value: Any) -> str:
    """Return the type of a TOML value, in words."""
    names = {
        bool: "a boolean",
        int: "an integer",
        float: "a float",
        str: "a string",
        list: "an array",
        dict: "a table",
    }
    return names.get(type(value), "a date or time")


def _shown(value: Any) -> str:
    return "the value" if isinstance(value, dict | list) else _shorten(str(value))


def _shorten(text: str) -> str:
    shortened = printable(text[: MAX_SHOWN + 1])
    return shortened if len(text) <= MAX_SHOWN else shortened[:MAX_SHOWN] + "..."


def settings_file(option: str) -> str:
    """Return `FILE: ` if the value of an option of the current command comes from a settings file, otherwise
    an empty string.
    """
    context = click.get_current_context(silent=True)
    parameter = options_by_name(context.command).get(option.removeprefix("--")) if context else None
    if (
        context is None
        or parameter is None
        or context.get_parameter_source(str(parameter.name)) is not ParameterSource.DEFAULT_MAP
    ):
        return ""
    return f"{context.meta.get(FILE, 'settings')}: "


def options_by_name(command: click.Command) -> dict[str, click.Option]:
    """Return a command's options by their long names, without dashes."""
    return {
        name.removeprefix("--"): option
        for option in command.params
        if isinstance(option, click.Option)
        for name in option.opts
        if name.startswith("--")
    }


def _all_commands(group: click.Group) -> list[click.Command]:
    commands: list[click.Command] = []
    for command in group.commands.values():
        commands += _all_commands(command) if isinstance(command, click.Group) else [command]
    return commands


def _suggestion(word: str, known: set[str]) -> str:
    import difflib

    matches = difflib.get_close_matches(word[:MAX_SHOWN], sorted(known), 1)
    return f"; did you mean {matches[0]}?" if matches else ""


def json_log(level: str, message: str, created: float) -> str:
    """Return a log message as one line of JSON: `time` (UTC), `level`, `message`.

    Args:
        created: seconds since the epoch.
    """
    timestamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created))
    return json.dumps({"time": timestamp, "level": level, "message": printable(message)})


def logs_json() -> bool:
    """Whether the running command has --log-json, so that every line on stderr is JSON."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.find_root().params.get("log_json"))


def write_stderr(text: str, level: str = "info") -> None:
    """Write a line to stderr: JSON with --log-json, otherwise text with control characters escaped."""
    click.echo(json_log(level, text, time.time()) if logs_json() else printable(text), err=True)


class TextFormatter(logging.Formatter):
    """Formats a message as one line, with control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(record.getMessage())


class JsonFormatter(logging.Formatter):
    """Formats a message as a JSON object with `time` (UTC), `level` and `message`."""

    def format(self, record: logging.LogRecord) -> str:
        return json_log(record.levelname.lower(), record.getMessage(), record.created)


def log_to_stderr(level: str, as_json: bool) -> None:
    """Write log messages of at least `level` to stderr until the command ends.

    A second call of the same command can only lower the level.
    """
    log = logging.getLogger("seed_edge")
    root = click.get_current_context().find_root()
    new_level = logging.getLevelNamesMapping()[level.upper()]
    if root.meta.get(HANDLER) is not None:
        log.setLevel(min(log.level, new_level))
        return
    handler, old_level = logging.StreamHandler(), log.level
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    log.setLevel(new_level)
    log.addHandler(handler)
    root.meta[HANDLER] = handler

    def stop() -> None:
        log.removeHandler(handler)
        log.setLevel(old_level)

    root.call_on_close(stop)


HANDLER = "seed_edge.handler"
"""Key of a context's `meta`: the handler added by `log_to_stderr`."""
