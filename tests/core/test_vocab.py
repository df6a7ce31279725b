import numpy as np
import pytest

from seed_edge.errors import BundleError, CodesError
from seed_edge.vocab import CodeSpace, Vocab

SEED = Vocab(
    size=40194,
    first_code_id=32000,
    codebook_size=8192,
    codes_per_image=32,
    bos_id=1,
    eos_id=2,
    boi_id=40192,
    eoi_id=40193,
)


def test_codes_and_ids_round_trip_at_both_ends_of_the_codebook():
    codes = [0, 8191] * 16
    ids = SEED.codes_to_ids(codes)
    assert ids == [40192, *[32000, 40191] * 16, 40193]
    assert SEED.ids_to_codes(ids[1:-1]).tolist() == codes


@pytest.mark.parametrize(
    "codes", [[0] * 31, [0] * 33, [], [[0] * 32], [0.5] * 32, [-1] + [0] * 31, [8192] + [0] * 31]
)
def test_what_is_no_image_is_refused(codes):
    with pytest.raises(CodesError):
        SEED.codes_to_ids(codes)


def test_text_mask_leaves_out_codes_and_image_marks_and_keeps_eos():
    mask = SEED.text_mask()
    assert mask.shape == (40194,)
    assert mask[:32000].sum() == 31999 and not mask[1]  # all text but BOS
    assert not mask[32000:].any()
    assert mask[2]


@pytest.mark.parametrize(
    "change",
    [{"size": 40193}, {"boi_id": 32000}, {"boi_id": 40193}, {"eos_id": -1}, {"first_code_id": 32003}],
)
def test_an_impossible_layout_is_refused(change):
    fields = {name: getattr(SEED, name) for name in SEED.__dataclass_fields__}
    with pytest.raises(BundleError):
        Vocab(**(fields | change))


def test_code_range_is_exact():
    assert [SEED.is_code(i) for i in (31999, 32000, 40191, 40192)] == [False, True, True, False]
    assert np.array_equal(SEED.ids_to_codes([32005] * 32), np.full(32, 5))


def test_ids_of_codes_are_those_of_no_text():
    vocab = Vocab(
        size=20,
        first_code_id=10,
        codebook_size=8,
        codes_per_image=4,
        bos_id=1,
        eos_id=2,
        boi_id=18,
        eoi_id=19,
    )
    assert [int(i) for i in vocab.code_mask().nonzero()[0]] == list(range(10, 18))
    assert not (vocab.code_mask() & vocab.text_mask()).any()


@pytest.mark.parametrize(
    "codes",
    [[[1], 2], [[1, 2], [3]], [10**400] * 4, ["a"] * 4, [1.0] * 4, [None] * 4, [[1, 2, 3, 4]], "1234", {}, 3],
)
def test_what_is_no_list_of_integers_is_no_image(codes):
    with pytest.raises(CodesError, match="an image is 4 integers"):
        CodeSpace(8, 4).check(codes)
