"""Rank images by similarity to a query image: the number of equal codes at equal positions.

python examples/find_similar.py examples/cat.jpg examples/*.jpg
"""

import sys

import numpy as np

import seed_edge


def main() -> None:
    """Print the number of equal codes and the name of each image, most similar first."""
    query, *paths = sys.argv[1:]
    with seed_edge.load() as edge:
        codes = edge.encode([query, *paths])
    equal = (codes[1:] == codes[0]).sum(1)
    for index in np.argsort(-equal, kind="stable"):
        print(f"{equal[index]}\t{paths[index]}")


if __name__ == "__main__":
    main()
