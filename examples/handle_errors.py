"""Caption files from a list that may contain unreadable ones: every error of the package is a
`SeedEdgeError`.

python examples/handle_errors.py examples/cat.jpg README.md
"""

import sys

import seed_edge


def main() -> None:
    """Print a caption, or the reason why there is none, for each argument."""
    with seed_edge.load() as edge:
        for name in sys.argv[1:]:
            try:
                print(f"{name}\t{edge.caption(name)}")
            except seed_edge.SeedEdgeError as error:
                print(f"{name}\tfailed: {error}")


if __name__ == "__main__":
    main()
