"""A conversation with pictures in and out, turn by turn; what was read before is not read again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seed_edge.errors import CodesError, PromptError, SeedEdgeError
from seed_edge.atomic import replacing
from seed_edge.manifest import Sampling
from seed_edge.prompts import Turn
from seed_edge.runtime.decoding import write_answer, write_codes
from seed_edge.runtime.pipeline import ImageSource, SeedEdge

if TYPE_CHECKING:
    from seed_edge.runtime.language_model import LlamaCpp

Codes = NDArray[np.int64]
FORMAT = 1
LARGEST_FILE = 16 << 20
MOST_ANSWER_IDS = 512
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What the beginning of a letter of several bytes is read as."""


class Conversation:
    """Turns of one conversation, whose ids stay in the language model's memory: only what is new is read."""

    def __init__(self, edge: SeedEdge, *, temperature: float = 0.0, seed: int = 0) -> None:
        """
        Args:
            temperature: of words; 0 takes the likeliest.
            seed: of the first answer; it counts up.
        """
        self.turns: list[Turn] = []
        self._edge, self._words, self._seed = edge, Sampling(temperature, 0, 1.0), seed
        if not edge.bundle.language.prompts.turn:
            raise PromptError(
                f"{edge.bundle.path}: this model was not taught to converse; use caption, draw, or another --bundle"
            )

    def say(self, text: str, images: Sequence[ImageSource] = (), *, draw: bool = False) -> Iterator[str | Codes]:
        """Answer a message: pieces of text, and codes of pictures, as they are written.

        The turn is part of the conversation from the first piece on; where the caller stops early, with what was written.
        Where the context is too short for all turns, the oldest are forgotten.

        Args:
            images: shown with the message.
            draw: the answer is a picture.

        Raises:
            PromptError: `text` is empty, or this turn alone is too long.
        """
        shown, answer = tuple(self._edge.encode(images)) if images else (), list[str | Codes]()
        self.turns.append(Turn(text, shown))
        try:
            for piece in self._in_turn(self._answer(draw)):
                if answer and isinstance(answer[-1], str) and isinstance(piece, str):
                    answer[-1] += piece
                else:
                    answer.append(piece)
                self.turns[-1] = Turn(text, shown, tuple(answer))
                yield piece
        except SeedEdgeError:
            self.turns.pop()
            raise

    def undo(self) -> bool:
        """Forget the last turn; whether there was one."""
        return bool(self.turns and self.turns.pop())

    def clear(self) -> None:
        """Forget all turns."""
        self.turns.clear()

    def _in_turn(self, pieces: Iterator[str | Codes]) -> Iterator[str | Codes]:
        """The same pieces; other threads are kept out while one is made, and may have their turn in between."""
        while True:
            with self._edge.held():
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    @property
    def _model(self) -> LlamaCpp:
        """The language model with what this conversation had read into it."""
        return self._edge._language_model.kept(self)

    def close(self) -> None:
        """Free what this conversation keeps in memory; it can be gone on with, and is read anew then."""
        with self._edge.held():
            if self._edge._residents.is_open(self._edge.bundle.language.file):
                self._edge._language_model.drop(self)

    def _answer(self, draw: bool) -> Iterator[str | Codes]:
        model, language = self._model, self._edge.bundle.language
        vocab, seed = language.vocab, self._seed + len(self.turns) - 1
        room = vocab.codes_per_image if draw else min(MOST_ANSWER_IDS, language.context_length // 2)
        ids = self._fitting(room + draw)
        if draw:
            yield write_codes(model, vocab, [*ids, vocab.boi_id], language.sampling, seed)
            return
        written: list[int] = []
        told = 0
        for each in write_answer(model, vocab, ids, self._words, language.sampling, seed, room):
            if isinstance(each, int):
                written.append(each)
                text = model.text_of(written)
                if len(text) > told and not text.endswith(UNFINISHED):
                    yield text[told:]
                    told = len(text)
                continue
            written, told = [], 0
            yield each

    def _fitting(self, room: int) -> list[int]:
        """Ids of the last turns that fit, of the last one at least."""
        model, language = self._model, self._edge.bundle.language
        prompts, vocab = language.prompts, language.vocab
        for first in range(len(self.turns) - 1):
            ids = prompts.for_conversation(vocab, model.tokenize, self.turns[first:])
            if len(ids) + room <= language.context_length:
                return ids
        return prompts.for_conversation(vocab, model.tokenize, self.turns[-1:])

    def save(self, path: Path) -> None:
        """Write the turns to a file, as JSON."""
        turns = [
            {
                "text": turn.text,
                "images": [codes.tolist() for codes in turn.images],
                "answer": [part if isinstance(part, str) else part.tolist() for part in turn.answer],
            }
            for turn in self.turns
        ]
        with replacing(path) as partial:
            partial.write_text(json.dumps({"format": FORMAT, "turns": turns}, ensure_ascii=False), "utf-8")

    def load(self, path: Path) -> None:
        """Take the turns from a file that `save` wrote; what was said before is forgotten.

        Raises:
            PromptError: it is no such file, or its codes are not this bundle's.
        """
        space = self._edge.bundle.manifest.codes
        try:
            if path.stat().st_size > LARGEST_FILE:
                raise ValueError(f"over {LARGEST_FILE:,} bytes")
            told: Any = json.loads(path.read_text("utf-8"))
            if told["format"] != FORMAT:
                raise ValueError(f"format {told['format']}")
            self.turns = [
                Turn(
                    str(turn["text"]),
                    tuple(space.check(codes) for codes in turn["images"]),
                    tuple(part if isinstance(part, str) else space.check(part) for part in turn["answer"]),
                )
                for turn in told["turns"]
            ]
        except (CodesError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise PromptError(f"{path} is no conversation that was saved here ({error})") from error
