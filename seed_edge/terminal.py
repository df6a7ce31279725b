"""Images in a terminal, by the protocol of kitty, iTerm2 or sixel if the terminal has one, otherwise as
coloured half blocks.
"""

from __future__ import annotations

import base64
import io
import os
import re
import select
import sys
from collections.abc import Mapping
from itertools import groupby
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

KITTY, ITERM, SIXEL, BLOCKS, BLOCKS_256 = "kitty", "iterm", "sixel", "blocks", "blocks-256"
CHUNK = 4096
"""Maximum number of base64 characters in a message of kitty's protocol."""
MAX_COLUMNS = 48
"""Maximum width of an image in characters."""
SIXEL_SIDE, SIXEL_COLOURS = 384, 128
"""Maximum side of a sixel image in pixels, and number of its colours."""
ANSWER_SECONDS = 0.2
"""Time to wait for each part of a terminal's answer, in seconds."""
ESCAPE = "\x1b"
HALF = "\N{UPPER HALF BLOCK}"


def detect_protocol(stream: IO[str], environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the best protocol for images on a stream; None if it is no terminal, or if colours are turned
    off (https://no-color.org).
    """
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if not stream.isatty() or term == "dumb" or environ.get("NO_COLOR"):
        return None
    blocks = BLOCKS if environ.get("COLORTERM") in ("truecolor", "24bit") else BLOCKS_256
    if "TMUX" in environ or term.startswith(("screen", "tmux")):
        return blocks  # terminal multiplexers do not pass image protocols on
    if "KITTY_WINDOW_ID" in environ or term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
        return KITTY
    if program in ("iTerm.app", "WezTerm") or environ.get("LC_TERMINAL") == "iTerm2":
        return ITERM
    return SIXEL if _supports_sixel() else blocks


def render(image: Image, protocol: str, columns: int) -> str:
    """Return the text that shows an image in a terminal, with a final newline.

    Args:
        protocol: one of the constants of this module; see `detect_protocol`.
        columns: width of the terminal in characters.
    """
    width = max(1, min(columns - 1, MAX_COLUMNS))
    rgb = image.convert("RGB")
    if protocol in (KITTY, ITERM):
        data = _png_base64(rgb)
        return _kitty(data, width) if protocol == KITTY else _iterm(data, width)
    return _sixel(rgb) if protocol == SIXEL else _half_blocks(rgb, width, protocol == BLOCKS)


def _png_base64(image: Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _kitty(data: str, width: int) -> str:
    """https://sw.kovidgoyal.net/kitty/graphics-protocol."""
    parts = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    out = []
    for number, part in enumerate(parts):
        first = f"a=T,f=100,q=2,c={width}," if number == 0 else ""
        out.append(f"{ESCAPE}_G{first}m={int(number + 1 < len(parts))};{part}{ESCAPE}\\")
    return "".join(out) + "\n"


def _iterm(data: str, width: int) -> str:
    """https://iterm2.com/documentation-images.html."""
    return f"{ESCAPE}]1337;File=inline=1;width={width};preserveAspectRatio=1:{data}\x07\n"


def _sixel(image: Image) -> str:
    """Encode bands of six rows, one colour after the other (DEC STD 070, chapter 9)."""
    import numpy as np
    from PIL.Image import Quantize

    scaled = image.copy()
    scaled.thumbnail((SIXEL_SIDE, SIXEL_SIDE))
    reduced = scaled.quantize(SIXEL_COLOURS, Quantize.MEDIANCUT)
    pixels = np.asarray(reduced)
    palette = reduced.getpalette() or []
    out = [f'{ESCAPE}Pq"1;1;{pixels.shape[1]};{pixels.shape[0]}']
    for colour in sorted(set(pixels.ravel().tolist())):
        red, green, blue = (round(value * 100 / 255) for value in palette[3 * colour : 3 * colour + 3])
        out.append(f"#{colour};2;{red};{green};{blue}")
    for top in range(0, len(pixels), 6):
        band = pixels[top : top + 6]
        bits = 1 << np.arange(len(band))[:, None]
        rows = []
        for colour in sorted(set(band.ravel().tolist())):
            sixels = ((band == colour) * bits).sum(0)
            rows.append(
                f"#{colour}"
                + "".join(_run_length(chr(63 + int(value)), len(list(run))) for value, run in groupby(sixels))
            )
        out.append("$".join(rows) + "-")
    return "".join(out) + f"{ESCAPE}\\\n"


def _run_length(character: str, count: int) -> str:
    return f"!{count}{character}" if count > 3 else character * count


def _half_blocks(image: Image, width: int, true_colour: bool) -> str:
    """Draw two pixels per character: the upper as its foreground, the lower as its background colour."""
    import numpy as np
    from PIL.Image import Resampling

    height = max(2, round(width * image.height / image.width / 2) * 2)
    pixels = np.asarray(image.resize((width, height), Resampling.BOX)).tolist()
    lines = []
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        pairs = zip(upper, lower, strict=True)
        cells = [
            _colour(38, upper_rgb, true_colour) + _colour(48, lower_rgb, true_colour) + HALF
            for upper_rgb, lower_rgb in pairs
        ]
        lines.append("".join(cells) + f"{ESCAPE}[0m")
    return "\n".join(lines) + "\n"


def _colour(ground: int, rgb: list[int], true_colour: bool) -> str:
    """Return the escape sequence of a foreground (38) or background (48) colour."""
    if true_colour:
        return f"{ESCAPE}[{ground};2;{rgb[0]};{rgb[1]};{rgb[2]}m"
    red, green, blue = (round(value * 5 / 255) for value in rgb)
    return f"{ESCAPE}[{ground};5;{16 + 36 * red + 6 * green + blue}m"


def _supports_sixel() -> bool:
    """Whether the terminal lists sixel graphics in its device attributes (DA1)."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        import termios
        import tty
    except ImportError:  # Windows
        return False
    handle = sys.stdin.fileno()
    attributes = termios.tcgetattr(handle)
    answer = ""
    try:
        tty.setcbreak(handle, termios.TCSANOW)
        sys.stdout.write(f"{ESCAPE}[c")
        sys.stdout.flush()
        while not answer.endswith("c") and select.select([handle], [], [], ANSWER_SECONDS)[0]:
            answer += os.read(handle, 64).decode("ascii", "replace")
    finally:
        termios.tcsetattr(handle, termios.TCSANOW, attributes)
    return "4" in re.findall(r"[?;](\d+)", answer)[1:]
