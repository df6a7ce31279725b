"""Tasks of development: `nox -s quick`, `nox -s tests`, `nox -s lint`, `nox -s docs`."""

import nox

nox.options.sessions = ["lint", "quick"]
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive"}


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and types."""
    session.install("-e", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
def quick(session: nox.Session) -> None:
    """Run the tests that are not marked slow."""
    session.install("-e", ".[dev]")
    session.run("pytest", "-m", "not slow", *session.posargs, env=ENVIRONMENT)


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests."""
    session.install("-e", ".[dev]")
    session.run("pytest", *session.posargs, env=ENVIRONMENT)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/."""
    session.install("-e", ".[docs]")
    session.run("mkdocs", "build", "--strict")
