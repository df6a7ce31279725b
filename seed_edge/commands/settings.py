"""What is said once for all commands: defaults from a file, and what is told while they run."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import click

LEVELS = ("debug", "info", "warning", "error")


def defaults_in(path: Path, group: click.Group) -> dict[str, Any]:
    """Defaults of options, by command, for click's `default_map`.

    A key is the long name of an option without dashes. At the top it counts for every command that has the option; in the
    table of a command, such as `[draw]` or `[train.llm]`, for that one.

    Raises:
        click.ClickException: the file is no TOML, or names what is no command or option.
    """
    import tomllib

    try:
        told = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise click.ClickException(f"{path} cannot be read as TOML ({error})") from error
    for_all = {key: value for key, value in told.items() if not isinstance(value, dict)}
    known = set(_options_below(group))
    for key in for_all:
        if key not in known:
            raise click.ClickException(f"{path}: no command has an option --{key}{_nearest(key, known)}")
    return _defaults(path, group, told, for_all, "")


def _defaults(path: Path, group: click.Group, told: dict[str, Any], for_all: dict[str, Any], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    tables = {key: value for key, value in told.items() if isinstance(value, dict)}
    for name in tables:
        if name not in group.commands:
            raise click.ClickException(f"{path}: [{where}{name}] is no command{_nearest(name, set(group.commands))}")
    for name, command in group.commands.items():
        table = tables.get(name, {})
        if isinstance(command, click.Group):
            found[name] = _defaults(path, command, table, for_all, f"{where}{name}.")
            continue
        options = options_of(command)
        for key in table:
            if key not in options:
                raise click.ClickException(f"{path}: [{where}{name}] has no option --{key}{_nearest(key, set(options))}")
        found[name] = {options[key]: value for key, value in (for_all | table).items() if key in options}
    return found


def options_of(command: click.Command) -> dict[str, str]:
    """Names of parameters by the long names of a command's options."""
    return {
        name.removeprefix("--"): str(option.name)
        for option in command.params
        if isinstance(option, click.Option)
        for name in option.opts
        if name.startswith("--")
    }


def _options_below(group: click.Group) -> list[str]:
    found: list[str] = []
    for command in group.commands.values():
        found += _options_below(command) if isinstance(command, click.Group) else options_of(command)
    return found


def _nearest(word: str, known: set[str]) -> str:
    import difflib

    near = difflib.get_close_matches(word, sorted(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


class Lines(logging.Formatter):
    """A JSON object for each message: `time` (UTC), `level`, `message`."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        return json.dumps({"time": when, "level": record.levelname.lower(), "message": record.getMessage()})


def log_to_stderr(level: str, as_json: bool) -> None:
    """Let the package tell on stderr what it does, from that level on, until the command ends."""
    log, handler = logging.getLogger("seed_edge"), logging.StreamHandler()
    handler.setFormatter(Lines() if as_json else logging.Formatter("%(message)s"))
    before, propagate = log.level, log.propagate
    log.setLevel(level.upper())
    log.addHandler(handler)

    def stop() -> None:
        log.removeHandler(handler)
        log.setLevel(before)
        log.propagate = propagate

    click.get_current_context().call_on_close(stop)
