r"""Prompt templates to token ids. Prompts are assembled as ids, so that a user's text can never become a
control id or a code.

A template is a string such as `{bos}USER: {images}{text}\nASSISTANT:`. The placeholders `{bos}`, `{eos}`,
`{boi}` and `{images}` become ids; the text between two of them is tokenized as one piece, with `{text}`
replaced by the user's text. Training and runtime share this module; each passes its own `tokenize` function.
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
Codes = NDArray[np.int64]
Part = str | list[int]
"""A part of a prompt: text that is not tokenized yet, or ids."""

MARKS = re.compile(r"(\{(?:bos|eos|boi|images)\})")


@dataclass(frozen=True)
class Turn:
    """One exchange of a conversation."""

    text: str
    """The user's message."""
    images: tuple[Codes, ...] = ()
    """Codes of the images the user shows, before the text."""
    answer: tuple[str | Codes, ...] = ()
    """The answer, text and images in order; empty for the turn to be answered."""


@dataclass(frozen=True)
class Prompts:
    """The prompt templates of a bundle's language model."""

    caption: str
    """Prompt of a caption; contains `{images}`."""
    draw: str
    """Prompt of a drawing; contains `{text}` and ends with `{boi}`."""
    ask: str = ""
    """Prompt of an answer to a question about images; empty if the model cannot answer questions."""
    edit: str = ""
    """Prompt of an edited image; contains `{images}` and ends with `{boi}`; empty if the model cannot edit.
    """
    turn: str = ""
    """Template of one turn of a conversation, without BOS; empty if the model cannot converse."""
    before_answer: str = ""
    """Text between a turn and its answer if a further turn follows."""
    between_turns: str = ""
    """Text between an answer and the next turn."""
    drawn: str = ""
    """Template of the caption of a drawing; contains `{text}`; empty if captions do not say "a drawing"."""
    lowercase: bool = False
    """Whether the model was trained on lower-case text."""

    def __post_init__(self) -> None:
        for name, template, required in (
            ("caption", self.caption, "{images}"),
            ("draw", self.draw, "{text}"),
            ("edit", self.edit, "{images}"),
            ("drawn", self.drawn, "{text}"),
        ):
            if required not in template and (template or name not in ("edit", "drawn")):
                raise BundleError(f"{name} template {template!r} must contain {required}; export again")
        for name, template in (("draw", self.draw), ("edit", self.edit)):
            if template and not template.endswith("{boi}"):
                raise BundleError(f"{name} template {template!r} must end with {{boi}}; export again")

    def drawing_caption(self, tokenize: Tokenize, text: str) -> list[int]:
        """Ids of the caption of a drawing of `text`, which follow the ids of `for_caption`; empty without the
        template `drawn`.

        Raises:
            PromptError: `text` is empty.
        """
        return join([self.drawn.replace("{text}", self.clean(text))], tokenize) if self.drawn else []

    def for_caption(self, vocab: Vocab, tokenize: Tokenize, codes: Codes) -> list[int]:
        """Prompt ids for a caption of the image."""
        return join(fill(self.caption, vocab, images=[codes]), tokenize)

    def for_drawing(self, vocab: Vocab, tokenize: Tokenize, text: str) -> list[int]:
        """Prompt ids for the codes of an image of `text`.

        Raises:
            PromptError: `text` is empty.
        """
        return join(fill(self.draw, vocab, text=self.clean(text)), tokenize)

    def for_unconditional_drawing(self, vocab: Vocab, tokenize: Tokenize) -> list[int]:
        """Prompt ids for the codes of any image: the unconditional prompt."""
        return join(fill(self.draw, vocab), tokenize)

    def for_question(self, vocab: Vocab, tokenize: Tokenize, text: str, images: Sequence[Codes]) -> list[int]:
        """Prompt ids for an answer to a question about images.

        Raises:
            PromptError: `text` is empty, or the model cannot answer questions.
        """
        return join(
            fill(self._require(self.ask, "answer questions"), vocab, text=self.clean(text), images=images),
            tokenize,
        )

    def for_edit(self, vocab: Vocab, tokenize: Tokenize, text: str, images: Sequence[Codes]) -> list[int]:
        """Prompt ids for the codes of the images, edited as `text` says.

        Raises:
            PromptError: `text` is empty, or the model cannot edit.
        """
        return join(
            fill(self._require(self.edit, "edit images"), vocab, text=self.clean(text), images=images),
            tokenize,
        )

    def for_conversation(self, vocab: Vocab, tokenize: Tokenize, turns: Sequence[Turn]) -> list[int]:
        """Prompt ids for the answer to the last turn.

        Raises:
            PromptError: a turn's text is empty, or the model cannot converse.
        """
        template = self._require(self.turn, "hold a conversation")
        parts: list[Part] = [[vocab.bos_id]]
        for i, turn in enumerate(turns):
            parts += fill(template, vocab, text=self.clean(turn.text), images=turn.images)
            if i + 1 < len(turns):
                answer = [part if isinstance(part, str) else vocab.codes_to_ids(part) for part in turn.answer]
                parts += [self.before_answer, *answer, self.between_turns]
        return join(parts, tokenize)

    def clean(self, text: str) -> str:
        """Text without surrounding white space, in lower case if the model was trained on lower case.

        Raises:
            PromptError: the result is empty.
        """
        text = text.strip()
        if not text:
            raise PromptError('the prompt is empty; write what you want, for example "a red fox"')
        return " ".join(text.lower().split()) if self.lowercase else text

    @staticmethod
    def _require(template: str, task: str) -> str:
        if not template:
            raise PromptError(
                f"this bundle's model cannot {task}; use one of SEED-LLaMA's instruction-tuned models"
            )
        return template


def fill(template: str, vocab: Vocab, *, text: str = "", images: Sequence[Codes] = ()) -> list[Part]:
    """Parts of a template.

    Args:
        text: replaces `{text}`.
        images: codes of the images that replace `{images}`, in order.
    """
    ids = {
        "{bos}": [vocab.bos_id],
        "{eos}": [vocab.eos_id],
        "{boi}": [vocab.boi_id],
        "{images}": [token_id for codes in images for token_id in vocab.codes_to_ids(codes)],
    }
    return [ids[piece] if piece in ids else piece.replace("{text}", text) for piece in MARKS.split(template)]


def join(parts: Sequence[Part], tokenize: Tokenize) -> list[int]:
    """Ids of a prompt.

    Adjacent parts of text are tokenized as one piece. White space next to ids is dropped, as the reference
    tokenizer drops it around added tokens.
    """
    result: list[int] = []
    text, after_ids = "", False
    for part in [*parts, None]:
        if isinstance(part, str):
            text += part
        elif part is None or part:
            text = text.lstrip() if after_ids else text
            text = text.rstrip() if part is not None else text
            result += tokenize(text) if text else []
            result += part or []
            text, after_ids = "", True
    return result


DRAWN = "a drawing of {text}"
"""Caption of drawings in the training data of models that `seed-edge train llm` trains from scratch."""
SFT_CAPTION = "Please provide an accurate and concise description of the given image."
SFT_DRAW = "Please generate an image of {text}."
TEMPLATES = {
    "vicuna": Prompts(
        caption=f"{{bos}}USER: {{images}}{SFT_CAPTION}\nASSISTANT:",
        draw=f"{{bos}}USER: {SFT_DRAW}\nASSISTANT:{{boi}}",
        ask="{bos}USER: {images}{text}\nASSISTANT:",
        edit="{bos}USER: {images}{text}\nASSISTANT:{boi}",
        turn="USER: {images}{text}\nASSISTANT:",
        before_answer=" ",
        between_turns="\n",
    ),
    "llama2": Prompts(
        caption=f"{{bos}}[INST] {{images}}{SFT_CAPTION} [/INST]\n",
        draw=f"{{bos}}[INST] {SFT_DRAW} [/INST]\n{{boi}}",
        ask="{bos}[INST] {images}{text} [/INST]\n",
        edit="{bos}[INST] {images}{text} [/INST]\n{boi}",
        turn="[INST] {images}{text} [/INST]\n",
        between_turns="\n",
    ),
    "plain": Prompts(
        caption="{bos}{images}",
        draw="{bos}{text}{boi}",
        ask="{bos}{images}Question: {text}\nAnswer:",
    ),
    "own": Prompts(caption="{bos}{images}", draw="{bos}{text}{boi}", drawn=DRAWN, lowercase=True),
    "own-talk": Prompts(
        caption="{bos}{images}",
        draw="{bos}{text}{boi}",
        ask="{bos}{images}q: {text} a:",
        edit="{bos}{images}q: {text} a:{boi}",
        turn="{images}q: {text} a:",
        before_answer=" ",
        between_turns=" ",
        drawn=DRAWN,
        lowercase=True,
    ),
}
"""Prompt templates by family: SEED-LLaMA 8B instruction-tuned (`vicuna`), 14B instruction-tuned (`llama2`),
both before instruction tuning (`plain`); models that `seed-edge train llm` trains from scratch (`own`), and
then on dialogues (`own-talk`).
"""


def template_name(prompts: Prompts) -> str | None:
    """Name of the family in `TEMPLATES` that equals `prompts`; None if there is none."""
    return next((name for name, template in TEMPLATES.items() if template == prompts), None)
