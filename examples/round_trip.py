"""Encode an image to codes, decode the codes, and save what is left of the image.

python examples/round_trip.py examples/coffee.jpg decoded.png
"""

import sys

import seed_edge


def main() -> None:
    """Print the codes of the image of the first argument, and write the decoded image to the second."""
    source, target = sys.argv[1:3]
    with seed_edge.load() as edge:
        codes = edge.encode([source])[0]
        edge.decode(codes).save(target)
    print(*codes)


if __name__ == "__main__":
    main()
