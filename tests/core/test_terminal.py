import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from seed_edge import terminal
from seed_edge.terminal import detect_protocol, render


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def picture():
    """Four plain quarters, 60 px a side."""
    image = Image.new("RGB", (60, 60), (255, 0, 0))
    image.paste((0, 255, 0), (30, 0, 60, 30))
    image.paste((0, 0, 255), (0, 30, 30, 60))
    image.paste((255, 255, 255), (30, 30, 60, 60))
    return image


@pytest.mark.parametrize(
    ("environ", "how"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm"),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "blocks"),
        ({"TERM": "xterm-256color"}, "blocks-256"),
        ({"TERM": "tmux-256color", "TMUX": "x", "KITTY_WINDOW_ID": "1", "COLORTERM": "24bit"}, "blocks"),
        ({"TERM": "dumb"}, None),
        ({"TERM": "xterm-kitty", "NO_COLOR": "1"}, None),
    ],
)
def test_the_terminal_is_known_by_what_it_says(environ, how, monkeypatch):
    monkeypatch.setattr(terminal, "_supports_sixel", lambda: False)
    assert detect_protocol(Terminal(), environ) == how
    assert detect_protocol(io.StringIO(), environ) is None


def test_a_terminal_that_answers_to_sixel_gets_it(monkeypatch):
    monkeypatch.setattr(terminal, "_supports_sixel", lambda: True)
    assert detect_protocol(Terminal(), {"TERM": "xterm"}) == "sixel"


def test_kitty_and_iterm_get_the_very_picture(picture):
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 256, (100, 100, 3), np.uint8))  # more than one message
    for image in (picture, large):
        messages = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", render(image, "kitty", 80))
        assert [header.endswith("m=1") for header, _ in messages] == [True] * (len(messages) - 1) + [False]
        assert max(len(data) for _, data in messages) <= 4096
        inline = re.fullmatch(
            r"\x1b\]1337;File=inline=1;width=48;preserveAspectRatio=1:(.*)\x07\n", render(image, "iterm", 80)
        )
        for data in ("".join(data for _, data in messages), inline[1]):
            assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == image.tobytes()


def from_sixel(text):
    """Pixels of a sixel picture."""
    head, body = re.fullmatch(r'\x1bPq"1;1;(\d+;\d+)(.*)\x1b\\\n', text, re.DOTALL).groups()
    width, height = map(int, head.split(";"))
    colours, pixels, x, top, now = {}, np.zeros((height + 6, width, 3)), 0, 0, 0
    for number, red, green, blue, select, count, letter, mark in re.findall(
        r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|(?:!(\d+))?([?-~])|([$-])", body
    ):
        if red:
            colours[int(number)] = [int(red), int(green), int(blue)]
        elif select:
            now = int(select)
        elif mark == "$":
            x = 0
        elif mark == "-":
            x, top = 0, top + 6
        else:
            end = x + int(count or 1)
            for bit in range(6):
                if (ord(letter) - 63) >> bit & 1:
                    pixels[top + bit, x:end] = colours[now]
            x = end
    return pixels[:height] * 255 / 100


def test_sixels_show_the_picture(picture):
    assert np.abs(from_sixel(render(picture, "sixel", 80)) - np.asarray(picture)).max() < 3


@pytest.mark.parametrize(
    ("how", "columns", "width"),
    [("blocks", 200, 48), ("blocks", 11, 10), ("blocks-256", 11, 10), ("blocks", 1, 1)],
)
def test_half_blocks_show_the_picture(picture, how, columns, width):
    text = render(picture, how, columns)
    lines = text.splitlines()
    assert all(line.count("\u2580") == width and line.endswith("\x1b[0m") for line in lines)
    if width == 10:
        assert len(lines) == 5
        first, last = lines[0], lines[-1]
        codes = {"blocks": ("38;2;255;0;0", "48;2;255;255;255"), "blocks-256": ("38;5;196", "48;5;231")}[how]
        assert first.startswith(f"\x1b[{codes[0]}m") and f"\x1b[{codes[1]}m\u2580\x1b[0m" in last
