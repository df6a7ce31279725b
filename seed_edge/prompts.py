r"""Templates to token ids. Prompts are assembled as ids; text of a user can never become a control id or a code.

A template is a string such as `{bos}USER: {image}{text}\nASSISTANT:`. The placeholders `{bos}`, `{eos}`, `{boi}`
and `{image}` become ids; what stands between two of them is one piece of text, tokenized on its own, with `{text}`
replaced by the user's text. Takes a `tokenize` function, so that training and runtime share it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seed_edge.errors import BundleError, PromptError
from seed_edge.vocab import Vocab

Tokenize = Callable[[str], list[int]]
"""Text to ids, literally: no BOS is added, and `</s>` or `<img_00001>` in the text stay text."""

MARKS = re.compile(r"(\{(?:bos|eos|boi|image)\})")
TASKS = ("caption", "draw")


@dataclass(frozen=True)
class Prompts:
    """How a bundle's language model wants to be asked."""

    caption: str
    """Template that a caption follows; has one `{image}`."""
    draw: str
    """Template that the codes of a picture follow; has `{text}` and ends with `{boi}`."""
    lowercase: bool = False
    """The model was trained on lower-case text."""

    def __post_init__(self) -> None:
        if self.caption.count("{image}") != 1:
            raise BundleError(f"caption template {self.caption!r} must hold {{image}} once; export again")
        if "{text}" not in self.draw or not self.draw.endswith("{boi}"):
            raise BundleError(f"draw template {self.draw!r} must hold {{text}} and end with {{boi}}; export again")

    def for_caption(self, vocab: Vocab, tokenize: Tokenize, codes: NDArray[np.int64]) -> list[int]:
        """Ids after which the model continues with a caption of the image."""
        return assemble(self.caption, vocab, tokenize, images=[codes])

    def for_drawing(self, vocab: Vocab, tokenize: Tokenize, text: str) -> list[int]:
        """Ids after which the model continues with the codes of a picture.

        Raises:
            PromptError: `text` is empty.
        """
        return assemble(self.draw, vocab, tokenize, text=self.clean(text))

    def clean(self, text: str) -> str:
        """Text with runs of white space made single spaces, in the case the model knows."""
        text = " ".join(text.split())
        if not text:
            raise PromptError('the prompt is empty; say what to draw, for example "a red fox"')
        return text.lower() if self.lowercase else text


def assemble(
    template: str,
    vocab: Vocab,
    tokenize: Tokenize,
    *,
    text: str = "",
    images: Sequence[NDArray[np.int64]] = (),
) -> list[int]:
    """Ids of a template.

    White space beside a placeholder's id is dropped, as the reference tokenizer drops it around added tokens.

    Args:
        text: replaces `{text}`.
        images: codes for each `{image}`, in order.
    """
    pieces = MARKS.split(template)
    waiting = iter(images)
    ids: list[int] = []
    for i, piece in enumerate(pieces):
        if piece == "{bos}":
            ids.append(vocab.bos_id)
        elif piece == "{eos}":
            ids.append(vocab.eos_id)
        elif piece == "{boi}":
            ids.append(vocab.boi_id)
        elif piece == "{image}":
            ids += vocab.codes_to_ids(next(waiting))
        else:
            literal = piece.replace("{text}", text)
            literal = literal.lstrip() if i > 0 else literal
            literal = literal.rstrip() if i + 1 < len(pieces) else literal
            ids += tokenize(literal) if literal else []
    return ids
