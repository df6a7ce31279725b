"""Token ids of image codes in the language model's vocabulary; only this module computes `code + offset`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seed_edge.errors import BundleError, CodesError

MAX_VOCAB, MAX_CODES = 1 << 22, 4096
"""Maximum number of token ids of a language model, and of codes of an image."""


@dataclass(frozen=True)
class CodeSpace:
    """Number and range of an image's codes."""

    codebook_size: int
    codes_per_image: int

    def __post_init__(self) -> None:
        for name, value, maximum in (
            ("codebook_size", self.codebook_size, MAX_VOCAB),
            ("codes_per_image", self.codes_per_image, MAX_CODES),
        ):
            if not 1 <= value <= maximum:
                raise BundleError(f"{name} is {value}; it must be 1 to {maximum:,}; export again")

    def check(self, codes: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Check the codes of one image, and return them as an array (codes_per_image,).

        Raises:
            CodesError: wrong count, not integers, or outside [0, codebook_size).
        """
        try:
            array = np.asarray(codes)
        except ValueError as error:
            raise CodesError(
                f"an image is {self.codes_per_image} integers, not lists of several lengths"
            ) from error
        if array.shape != (self.codes_per_image,) or array.dtype.kind not in "iu":
            raise CodesError(
                f"an image is {self.codes_per_image} integers, got {array.dtype} of shape {array.shape}; "
                "give the codes as `seed-edge encode --json` prints them"
            )
        if array.min() < 0 or array.max() >= self.codebook_size:
            raise CodesError(
                f"codes must lie in [0, {self.codebook_size}), got {array.min()} to {array.max()}; "
                "they may come from another bundle"
            )
        return array.astype(np.int64)


@dataclass(frozen=True)
class Vocab:
    """Ids of the special tokens and range of the codes."""

    size: int
    """Number of token ids; the language model has one logit for each."""
    first_code_id: int
    """Token id of code 0; the other codes follow without gaps."""
    codebook_size: int
    codes_per_image: int
    bos_id: int
    eos_id: int
    boi_id: int
    """Begin of image."""
    eoi_id: int
    """End of image."""

    def __post_init__(self) -> None:
        _ = self.codes  # checks its ranges
        if not 1 <= self.size <= MAX_VOCAB:
            raise BundleError(f"vocabulary of {self.size} ids; it must have 1 to {MAX_VOCAB:,}; export again")
        special = {"bos_id": self.bos_id, "eos_id": self.eos_id, "boi_id": self.boi_id, "eoi_id": self.eoi_id}
        outside = [name for name, value in special.items() if not 0 <= value < self.size]
        if self.first_code_id < 0 or self.first_code_id + self.codebook_size > self.size:
            outside.append("first_code_id + codebook_size")
        if outside:
            raise BundleError(
                f"vocabulary of {self.size} ids: {', '.join(outside)} lies outside it; export again"
            )
        if len(set(special.values())) < 4 or any(self.is_code(value) for value in special.values()):
            raise BundleError(
                "vocabulary: BOS, EOS, BOI and EOI must be four ids outside the codes; export again"
            )

    def is_code(self, token_id: int) -> bool:
        """Whether a token id is an image code."""
        return 0 <= token_id - self.first_code_id < self.codebook_size

    @property
    def codes(self) -> CodeSpace:
        """Number and range of an image's codes."""
        return CodeSpace(self.codebook_size, self.codes_per_image)

    def check_codes(self, codes: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """See `CodeSpace.check`."""
        return self.codes.check(codes)

    def codes_to_ids(self, codes: Sequence[int] | NDArray[np.int64]) -> list[int]:
        """Token ids of one image, including BOI and EOI."""
        return [self.boi_id, *(self.check_codes(codes) + self.first_code_id).tolist(), self.eoi_id]

    def ids_to_codes(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """Codes (codes_per_image,) of token ids without BOI and EOI."""
        return self.check_codes(np.asarray(ids, dtype=np.int64) - self.first_code_id)

    def code_mask(self) -> NDArray[np.bool_]:
        """Boolean mask (size,), True for ids of codes."""
        mask = np.zeros(self.size, dtype=bool)
        mask[self.first_code_id : self.first_code_id + self.codebook_size] = True
        return mask

    def text_mask(self) -> NDArray[np.bool_]:
        """Boolean mask (size,), True for text ids: all but codes, BOI, EOI and BOS."""
        mask = np.ones(self.size, dtype=bool)
        mask[self.first_code_id : self.first_code_id + self.codebook_size] = False
        mask[[self.boi_id, self.eoi_id, self.bos_id]] = False
        return mask
