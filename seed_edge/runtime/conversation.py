"""Conversations with images in messages and answers. Ids that the language model has read are not
read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seed_edge.atomic import is_special, replacing
from seed_edge.display import json_line, printable
from seed_edge.errors import CodesError, PromptError, SeedEdgeError
from seed_edge.inputs import read_json
from seed_edge.manifest import Sampling
from seed_edge.preprocess import ImageSource
from seed_edge.prompts import Turn
from seed_edge.runtime.captioning import MAX_ANSWER_IDS, UNFINISHED
from seed_edge.runtime.generation import generate_interleaved, sample_codes
from seed_edge.runtime.pipeline import SeedEdge

if TYPE_CHECKING:
    from seed_edge.runtime.language_model import LlamaCpp

Codes = NDArray[np.int64]
FORMAT = 1
MAX_FILE_BYTES = 16 << 20
"""Maximum size of a saved conversation in bytes."""
TURN_KEYS = {"text", "images", "answer"}


class Conversation:
    """A conversation. The language model keeps a KV cache of the turns, so that only new ids are read."""

    def __init__(self, edge: SeedEdge, *, temperature: float = 0.0, seed: int = 0) -> None:
        """
        Args:
            temperature: sampling temperature of the text; 0 takes the most probable text.
            seed: seed of the first answer; each further answer has the next seed.
        """
        self.turns: list[Turn] = []
        self._edge, self._engine = edge, edge.engine
        self._text_sampling, self._seed = Sampling(temperature, 0, 1.0), seed
        if not edge.bundle.language.prompts.turn:
            raise PromptError(
                f"{edge.bundle.path}: this model was not trained on dialogues; use caption, draw, or another "
                "--bundle"
            )

    def say(
        self, text: str, images: Sequence[ImageSource] = (), *, draw: bool = False
    ) -> Iterator[str | Codes]:
        """Answer a message: yields pieces of text, and codes (codes_per_image,) of images, as they are
        generated.

        The turn is added with the first piece. If the caller stops early, it has the pieces yielded so far.
        If the context is too short for all turns, the oldest are left out.

        Args:
            images: images of the message.
            draw: answer with an image.

        Raises:
            PromptError: `text` is empty, or this turn alone is too long.
        """
        codes, answer = tuple(self._edge.encode(images)) if images else (), list[str | Codes]()
        self.turns.append(Turn(text, codes))
        try:
            for piece in self._in_turn(self._answer(draw)):
                if answer and isinstance(answer[-1], str) and isinstance(piece, str):
                    answer[-1] += piece
                else:
                    answer.append(piece)
                self.turns[-1] = Turn(text, codes, tuple(answer))
                yield piece
        except SeedEdgeError:
            self.turns.pop()
            raise
        except BaseException:  # Ctrl-C, or the caller closed the generator
            if not answer:
                self.turns.pop()
            raise

    def undo(self) -> bool:
        """Remove the last turn; return whether there was one."""
        return bool(self.turns and self.turns.pop())

    def clear(self) -> None:
        """Remove all turns."""
        self.turns.clear()

    def _in_turn(self, pieces: Iterator[str | Codes]) -> Iterator[str | Codes]:
        """Yield the pieces; the engine is locked only while a piece is generated."""
        while True:
            with self._engine.locked():
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    @property
    def _model(self) -> LlamaCpp:
        """The language model context of this conversation."""
        return self._engine.language_model.cached_context(self)

    def close(self) -> None:
        """Free the context of this conversation. The conversation can continue; its turns are then read
        again.
        """
        self._engine.drop_context(self)

    def _answer(self, draw: bool) -> Iterator[str | Codes]:
        model, language = self._model, self._engine.bundle.language
        vocab, seed = language.vocab, self._seed + len(self.turns) - 1
        room = vocab.codes_per_image if draw else min(MAX_ANSWER_IDS, language.context_length // 2)
        ids = self._prompt_that_fits(room + draw)
        if draw:
            yield sample_codes(model, vocab, [*ids, vocab.boi_id], language.sampling, seed)
            return
        text_ids: list[int] = []
        yielded = 0
        sampling = self._text_sampling, language.sampling
        for piece in generate_interleaved(model, vocab, ids, *sampling, seed, room):
            if isinstance(piece, int):
                text_ids.append(piece)
                text = model.detokenize(text_ids)
                if len(text) > yielded and not text.endswith(UNFINISHED):
                    yield text[yielded:]
                    yielded = len(text)
                continue
            text_ids, yielded = [], 0
            yield piece

    def _prompt_that_fits(self, room: int) -> list[int]:
        """Prompt ids of as many of the last turns as fit the context; at least of the last one."""
        model, language = self._model, self._engine.bundle.language
        prompts, vocab = language.prompts, language.vocab
        for first in range(len(self.turns) - 1):
            ids = prompts.for_conversation(vocab, model.tokenize, self.turns[first:])
            if len(ids) + room <= language.context_length:
                return ids
        return prompts.for_conversation(vocab, model.tokenize, self.turns[-1:])

    def save(self, path: Path) -> None:
        """Write the turns to a JSON file. An existing file is replaced only if it is a saved conversation.

        Raises:
            PromptError: there is another file at the path, which is not changed.
            OSError: the folder cannot be written.
        """
        if path.exists() and not is_special(path) and not _is_saved(path):
            raise PromptError(
                f"{printable(str(path))} exists and is not a saved conversation; choose another name"
            )
        turns = [
            {
                "text": turn.text,
                "images": [codes.tolist() for codes in turn.images],
                "answer": [part if isinstance(part, str) else part.tolist() for part in turn.answer],
            }
            for turn in self.turns
        ]
        with replacing(path) as partial:
            partial.write_text(json_line({"format": FORMAT, "turns": turns}), "utf-8")

    def load(self, path: Path) -> None:
        """Replace the turns by those in a file that `save` wrote.

        Raises:
            PromptError: it is not such a file, or its codes do not fit this bundle; the turns are not
                changed.
        """
        space = self._engine.bundle.manifest.codes
        try:
            self.turns = [
                Turn(
                    text,
                    tuple(space.check(codes) for codes in images),
                    tuple(part if isinstance(part, str) else space.check(part) for part in answer),
                )
                for text, images, answer in saved_turns(path)
            ]
        except CodesError as error:
            raise PromptError(
                f"{printable(str(path))} is not a saved conversation of this bundle ({error})"
            ) from error


def saved_turns(path: Path) -> list[tuple[str, list[list[int]], list[str | list[int]]]]:
    """Text, images and answer of each turn in a file that `Conversation.save` wrote.

    Raises:
        PromptError: the file is not a saved conversation.
    """
    name = printable(str(path))
    try:
        content = read_json(path, MAX_FILE_BYTES, PromptError)
    except PromptError as error:
        raise PromptError(f"{name} is not a saved conversation ({error})") from error
    if (
        not isinstance(content, dict)
        or type(content.get("format")) is not int
        or not isinstance(content.get("turns"), list)
    ):
        raise PromptError(f"{name} is not a saved conversation (format or turns are missing)")
    if content["format"] != FORMAT:
        raise PromptError(f"{name} is not a saved conversation (format {content['format']}, not {FORMAT})")
    for number, turn in enumerate(content["turns"], 1):
        if not _is_turn(turn):
            raise PromptError(f"{name} is not a saved conversation (turn {number} is invalid)")
    return [(turn["text"], turn["images"], turn["answer"]) for turn in content["turns"]]


def _is_turn(turn: Any) -> bool:
    return (
        isinstance(turn, dict)
        and turn.keys() == TURN_KEYS
        and isinstance(turn["text"], str)
        and isinstance(turn["images"], list)
        and all(map(_are_codes, turn["images"]))
        and isinstance(turn["answer"], list)
        and all(isinstance(part, str) or _are_codes(part) for part in turn["answer"])
    )


def _are_codes(value: Any) -> bool:
    return isinstance(value, list) and all(type(code) is int for code in value)


def _is_saved(path: Path) -> bool:
    """Whether a file is a saved conversation, of any bundle."""
    try:
        saved_turns(path)
    except PromptError:
        return False
    return True
