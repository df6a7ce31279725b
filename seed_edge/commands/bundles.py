"""The commands `bundles`, `inspect` and `doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import click

from seed_edge.commands.common import (
    AliasGroup,
    complete_bundle,
    json_option,
    overwrite_option,
    print_json,
    print_path,
)
from seed_edge.display import printable

EXIT_CODES = {"ok": 0, "warning": 1, "broken": 2}
"""Exit codes of `doctor`, by the worst state of its checks."""


class Bundles(AliasGroup):
    """The commands of `bundles`; `rm` is `remove`."""

    aliases: ClassVar[Mapping[str, str]] = {"rm": "remove"}


@click.group(cls=Bundles)
def bundles() -> None:
    """Add, list and remove bundles that --bundle finds by name."""


@bundles.command("list")
@json_option
def list_bundles(as_json: bool) -> None:
    """List name, size and folder of all bundles, the embedded one first."""
    from seed_edge.bundle import EMBEDDED, Bundle
    from seed_edge.errors import SeedEdgeError
    from seed_edge.user_dirs import bundle_folder, bundle_names

    # not with `find`, which prefers a folder of that name in the working directory
    for name, path in [(EMBEDDED.name, EMBEDDED), *((name, bundle_folder(name)) for name in bundle_names())]:
        record: dict[str, object] = {"name": name, "path": str(path)}
        try:
            manifest = Bundle.open(path).manifest
            record |= {"kind": manifest.kind, "bytes": sum(entry.size for entry in manifest.files.values())}
        except SeedEdgeError as error:
            record["error"] = str(error)
        if as_json:
            print_json(record)
        else:
            text = record.get("error") or f"{record['bytes']:,} bytes, {record['kind']}"
            click.echo("\t".join(printable(str(part)) for part in (name, text, record["path"])))


@bundles.command()
@click.argument("name", required=False, default="mini", shell_complete=complete_bundle)
@json_option
def info(name: str, as_json: bool) -> None:
    """Print the abilities of a bundle, its sources and its parity figures."""
    from seed_edge.bundle import Bundle
    from seed_edge.inspection import describe_bundle, lines

    description = describe_bundle(Bundle.open(name))
    if as_json:
        print_json(description)
    else:
        click.echo("\n".join(lines(description)))


@bundles.command()
@click.argument("name", required=False, default="mini", shell_complete=complete_bundle)
def path(name: str) -> None:
    """Print the folder of a bundle."""
    from seed_edge.bundle import find

    print_path(find(name))


@bundles.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the bundle.  [default: name of the folder]")
@overwrite_option("Replace a bundle of that name.")
def add(folder: Path, name: str | None, overwrite: bool) -> None:
    """Copy the bundle in FOLDER to the folder that --bundle NAME searches."""
    from seed_edge.bundle import Bundle, add

    print_path(add(Bundle.open(folder), name or folder.resolve().name, overwrite).path)


@bundles.command()
@click.argument("name", shell_complete=complete_bundle)
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
def remove(name: str, yes: bool) -> None:
    """Delete an added bundle."""
    from seed_edge.bundle import remove
    from seed_edge.user_dirs import bundle_folder

    if not yes and bundle_folder(name).is_dir():
        click.confirm(f"Delete {bundle_folder(name)}?", abort=True)
    print_path(remove(name))


@click.command()
@click.argument("what")
@json_option
def inspect(what: str, as_json: bool) -> None:
    """Print the metadata of a drawn image, a bundle, a GGUF or an ONNX file. No model is loaded."""
    from seed_edge.inspection import describe, lines

    description = describe(what)
    if as_json:
        print_json(description)
    else:
        click.echo("\n".join(lines(description)))


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check this machine and the installation. No model is loaded.

    Exit code 0: no problem. 1: a warning. 2: something is broken.
    """
    from seed_edge.doctor import OK, report, run_checks, worst_state

    checks = run_checks()
    if as_json:
        print_json(report(checks))
    else:
        for check in checks:
            click.echo(
                printable(f"{'' if check.state == OK else check.state + ': '}{check.id}: {check.found}")
            )
            if check.advice:
                click.echo(printable(f"    try: {check.advice}"))
    raise click.exceptions.Exit(EXIT_CODES[worst_state(checks)])
