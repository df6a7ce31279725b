"""Draw an image of a prompt, and store prompt, seed and codes in its metadata.

python examples/draw_prompt.py "a red fox" fox.png
"""

import sys

import seed_edge


def main() -> None:
    """Draw the prompt of the first argument into the file of the second."""
    prompt, path = sys.argv[1:3]
    with seed_edge.load() as edge:
        edge.draw(prompt, seed=7).save(path)
    print(path)


if __name__ == "__main__":
    main()
