"""Caption every image of a folder, and print one line per image.

python examples/caption_folder.py examples
"""

import sys
from pathlib import Path

import seed_edge

ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}


def main() -> None:
    """Caption the images of the folder that the first argument names."""
    folder = Path(sys.argv[1])
    with seed_edge.load() as edge:
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in ENDINGS:
                print(f"{path.name}\t{edge.caption(path)}")


if __name__ == "__main__":
    main()
