"""Commands that keep bundles and tell what files and this machine are."""

from __future__ import annotations

from pathlib import Path

import click

from seed_edge.commands.common import json_option, print_json, print_path
from seed_edge.display import printable

EXIT_CODES = {"ok": 0, "warning": 1, "broken": 2}
"""Of `doctor`, by the worst that was found."""


@click.group()
def bundles() -> None:
    """Keep bundles where any command finds them by name: --bundle NAME."""


@bundles.command("list")
@json_option
def list_bundles(as_json: bool) -> None:
    """Names, sizes and places of all bundles; the embedded one first."""
    from seed_edge.bundle import EMBEDDED, Bundle, find
    from seed_edge.errors import SeedEdgeError
    from seed_edge.user_dirs import bundle_names

    for name in [EMBEDDED.name, *bundle_names()]:
        record: dict[str, object] = {"name": name, "path": str(EMBEDDED if name == EMBEDDED.name else find(name))}
        try:
            manifest = Bundle.open(find(name)).manifest
            record |= {"kind": manifest.kind, "bytes": sum(entry.size for entry in manifest.files.values())}
        except SeedEdgeError as error:
            record["error"] = str(error)
        if as_json:
            print_json(record)
        else:
            told = record.get("error") or f"{record['bytes']:,} bytes, {record['kind']}"
            click.echo("\t".join(printable(str(part)) for part in (name, told, record["path"])))


@bundles.command()
@click.argument("name", required=False, default="mini")
@json_option
def info(name: str, as_json: bool) -> None:
    """What a bundle can do, of what it was made, and how exact it is."""
    from seed_edge.bundle import Bundle
    from seed_edge.inspection import describe_bundle, lines

    told = describe_bundle(Bundle.open(name))
    if as_json:
        print_json(told)
    else:
        click.echo("\n".join(lines(told)))


@bundles.command()
@click.argument("name", required=False, default="mini")
def path(name: str) -> None:
    """Folder of a bundle."""
    from seed_edge.bundle import find

    print_path(find(name))


@bundles.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", help="Name to find it by.  [default: the folder's]")
@click.option("--replace", is_flag=True, help="Replace a bundle of that name.")
def add(folder: Path, name: str | None, replace: bool) -> None:
    """Copy the bundle in FOLDER to where every command finds it by name."""
    from seed_edge.bundle import Bundle, add

    print_path(add(Bundle.open(folder), name or folder.resolve().name, replace).path)


@bundles.command()
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def remove(name: str, yes: bool) -> None:
    """Delete a bundle that was added."""
    from seed_edge.bundle import remove
    from seed_edge.user_dirs import bundle_folder

    if not yes and bundle_folder(name).is_dir():
        click.confirm(f"Delete {bundle_folder(name)}?", abort=True)
    print_path(remove(name))


@click.command()
@click.argument("what")
@json_option
def inspect(what: str, as_json: bool) -> None:
    """What a file says of itself: a drawn picture, a bundle, any GGUF or ONNX file. Nothing is loaded or run."""
    from seed_edge.inspection import describe, lines

    told = describe(what)
    if as_json:
        print_json(told)
    else:
        click.echo("\n".join(lines(told)))


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """What of this machine can be used, what cannot and why. No model is loaded.

    Exit code 0: all is well. 1: something works worse than it could. 2: something is broken.
    """
    from seed_edge.doctor import OK, examine, report, worst

    checks = examine()
    if as_json:
        print_json(report(checks))
    else:
        for check in checks:
            click.echo(printable(f"{'' if check.state == OK else check.state + ': '}{check.id}: {check.found}"))
            if check.advice:
                click.echo(printable(f"    try: {check.advice}"))
    raise click.exceptions.Exit(EXIT_CODES[worst(checks)])
