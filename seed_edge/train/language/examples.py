"""Training examples of a language model: prompts as the runtime assembles them, followed by the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seed_edge.data.code_shards import CodeSample
from seed_edge.data.phrasing import caption, plain, request, without
from seed_edge.data.samples import IMAGE_MARK
from seed_edge.errors import DataError
from seed_edge.prompts import Prompts, Tokenize, Turn
from seed_edge.vocab import Vocab

IGNORED_LABEL = -100
"""Label of a position that is not predicted."""


@dataclass(frozen=True)
class Example:
    """Ids of a prompt and its answer; the last `answer` ids are predicted."""

    ids: list[int]
    answer: int

    def cut(self, max_length: int) -> Example:
        """The first `max_length` ids of the example."""
        cut = max(0, len(self.ids) - max_length)
        return Example(self.ids[: len(self.ids) - cut], max(0, self.answer - cut))


@dataclass(frozen=True)
class ExampleBuilder:
    """Makes examples from samples, with the vocabulary, the text tokenizer and the prompts of one model."""

    vocab: Vocab
    tokenize: Tokenize
    prompts: Prompts
    end_with_full_stop: bool = False
    """Add a full stop to answers that end without one, as SEED's instruction tuning does."""
    uncond_prob: float = 0.0
    """Share of drawing examples without a prompt in [0, 1], for classifier-free guidance."""
    code_noise: float = 0.0
    """Share of the input codes of captioning examples that are replaced with random ones, in [0, 1]."""

    def captioned(self, sample: CodeSample, rng: np.random.Generator) -> Example:
        """Make an example of captioning: an image, then a caption of it."""
        text = caption(sample.sample, rng, not self.prompts.lowercase) or ""
        answer = [*self._answer_ids(text), self.vocab.eos_id]
        return Example(self.prompt_for_caption(sample, rng) + answer, len(answer))

    def prompt_for_caption(self, sample: CodeSample, rng: np.random.Generator) -> list[int]:
        """Return the prompt ids for a caption of an image, with a random view of it and `code_noise`."""
        views = (sample.images[0], *sample.views)
        codes = views[int(rng.integers(len(views)))]
        if self.code_noise:
            others = rng.integers(0, self.vocab.codebook_size, len(codes))
            codes = np.where(rng.random(len(codes)) < self.code_noise, others, codes)
        return self.prompts.for_caption(self.vocab, self.tokenize, codes)

    def drawn(self, sample: CodeSample, rng: np.random.Generator) -> Example:
        """Make an example of drawing: a request, then the codes of the image.

        An example without a request does not end with EOS: its ids could also begin a captioning example, and
        the model would then predict an empty caption.
        """
        text = request(sample.sample, rng, not self.prompts.lowercase)
        image_ids = self.vocab.codes_to_ids(sample.images[0])[1:]
        if text and rng.random() >= self.uncond_prob:
            prompt = self.prompts.for_drawing(self.vocab, self.tokenize, text)
            answer = [*image_ids, self.vocab.eos_id]
        else:
            prompt = self.prompts.for_unconditional_drawing(self.vocab, self.tokenize)
            answer = image_ids
        return Example(prompt + answer, len(answer))

    def paired(self, sample: CodeSample, rng: np.random.Generator) -> Example:
        """Make an example of an image and its text in random order, all ids predicted: SEED-LLaMA's
        pre-training.
        """
        image_ids = self.vocab.codes_to_ids(sample.images[0])
        text = self.tokenize(caption(sample.sample, rng, not self.prompts.lowercase) or "")
        parts = (image_ids, text) if rng.random() < 0.5 else (text, image_ids)
        ids = [self.vocab.bos_id, *parts[0], *parts[1], self.vocab.eos_id]
        return Example(ids, len(ids) - 1)

    def conversed(self, sample: CodeSample, rng: np.random.Generator) -> Example:
        """Make an example of a conversation about the images up to a random answer, which is predicted.

        The last images are the answers that are `<image>`; the images before them belong to the first
        question.
        """
        number = int(rng.integers(len(sample.sample.turns)))
        drawn = sum(answer == IMAGE_MARK for _, answer in sample.sample.turns)
        given = len(sample.images) - drawn
        question_images, answer_images = sample.images[:given], iter(sample.images[given:])
        turns = [
            Turn(
                question,
                images=() if index else question_images,
                answer=(next(answer_images) if answer == IMAGE_MARK else answer,),
            )
            for index, (question, answer) in enumerate(sample.sample.turns[: number + 1])
        ]
        if self.prompts.turn:
            prompt = self.prompts.for_conversation(self.vocab, self.tokenize, turns)
        else:
            prompt = self.prompts.for_question(self.vocab, self.tokenize, turns[-1].text, question_images)
        (content,) = turns[-1].answer
        ids = self._answer_ids(content) if isinstance(content, str) else self.vocab.codes_to_ids(content)
        answer = [*ids, self.vocab.eos_id]
        return Example(prompt + answer, len(answer))

    def _answer_ids(self, text: str) -> list[int]:
        text = text.strip()
        if self.end_with_full_stop and text and text[-1] not in ".!?":
            text += "."
        return self.tokenize(plain_or_as_is(text, self.prompts))


def plain_or_as_is(text: str, prompts: Prompts) -> str:
    """Lower-case text without a full stop for models of lower-case text; other text unchanged."""
    return plain(text) if prompts.lowercase else text


def has_text(sample: CodeSample) -> bool:
    """Whether the sample has exactly one image and a caption, a label or phrases."""
    texts = sample.sample
    return len(sample.images) == 1 and bool(texts.captions or texts.label or texts.phrases)


TASKS: Mapping[
    str,
    tuple[Callable[[CodeSample], bool], Callable[[ExampleBuilder, CodeSample, np.random.Generator], Example]],
] = {
    "caption": (has_text, ExampleBuilder.captioned),
    "draw": (has_text, ExampleBuilder.drawn),
    "pair": (has_text, ExampleBuilder.paired),
    "converse": (lambda sample: bool(sample.sample.turns), ExampleBuilder.conversed),
}
"""Tasks by name: which samples have what the task needs, and how an example is made of one."""


class Mixture:
    """Draws random examples: a task by its weight, then a pool by its weight, then a sample."""

    def __init__(
        self,
        builder: ExampleBuilder,
        tasks: Mapping[str, float],
        pools: Mapping[str, Sequence[tuple[Sequence[CodeSample], float]]],
    ) -> None:
        """
        Args:
            tasks: weight of each task, by its name in `TASKS`.
            pools: for each task, lists of samples with the weight of each list.

        Raises:
            DataError: a task is unknown, or no sample has what one of the tasks needs.
        """
        unknown = sorted(set(tasks) - set(TASKS))
        if unknown:
            raise DataError(f"tasks: {unknown[0]} is none of {', '.join(TASKS)}")
        self.builder, self.tasks = builder, []
        for name, weight in tasks.items():
            usable, make = TASKS[name]
            chosen = [([s for s in samples if usable(s)], share) for samples, share in pools[name]]
            chosen = [(samples, share) for samples, share in chosen if samples and share > 0]
            if chosen and weight > 0:
                self.tasks.append((make, chosen, weight))
        if not self.tasks:
            raise DataError(
                f"no sample has what {' or '.join(tasks)} needs: a caption, a label, or a conversation"
            )

    def example(self, rng: np.random.Generator) -> tuple[str, Example]:
        """Return the key of a random sample, and an example made of it."""
        weights = np.array([weight for _, _, weight in self.tasks])
        make, pools, _ = self.tasks[rng.choice(len(weights), p=weights / weights.sum())]
        shares = np.array([share for _, share in pools])
        samples = pools[rng.choice(len(shares), p=shares / shares.sum())][0]
        sample = samples[int(rng.integers(len(samples)))]
        return sample.sample.key, make(self.builder, sample, rng)


def collated(examples: Sequence[Example], max_length: int) -> tuple[Tensor, Tensor]:
    """Return ids and labels, both (examples, length) int64; labels are `IGNORED_LABEL` where nothing is
    predicted.
    """
    cut = [example.cut(max_length) for example in examples]
    length = max(len(example.ids) for example in cut)
    ids = torch.zeros(len(cut), length, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED_LABEL)
    for row, example in enumerate(cut):
        end = len(example.ids)
        ids[row, :end] = torch.tensor(example.ids)
        labels[row, end - example.answer : end] = torch.tensor(example.ids[end - example.answer :])
    return ids, labels


def without_blocked_terms(samples: Sequence[CodeSample], blocked: Sequence[str]) -> list[CodeSample]:
    """Return samples without the texts that contain one of the terms `blocked`; samples that lose all texts
    are left out.
    """
    cleaned = ((item, without(item.sample, blocked)) for item in samples)
    return [dataclasses.replace(item, sample=sample) for item, sample in cleaned if sample is not None]
