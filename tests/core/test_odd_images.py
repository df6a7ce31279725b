import logging

import numpy as np
import pytest
from odd_images import corpus

from seed_edge.errors import ImageError
from seed_edge.preprocess import open_image

FILES = corpus()


def test_there_are_many():
    assert len(FILES) >= 60


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_file_becomes_what_it_shows_or_one_clear_error(name, tmp_path):
    data, wanted = FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    if isinstance(wanted, str) or isinstance(wanted[0], str):
        with pytest.raises(ImageError) as caught:
            open_image(path)
        told = str(caught.value)
        assert any(words in told for words in ([wanted] if isinstance(wanted, str) else wanted)), told
        assert "\n" not in told and name in told
        return
    colours, size = wanted
    image = open_image(path)
    assert image.mode == "RGB" and image.size == size
    if colours is not None:
        middle = size[1] // 2
        for x, colour in zip((0, size[0] - 1), colours, strict=True):
            assert np.abs(np.array(image.getpixel((x, middle))) - colour).max() <= 12, (
                x,
                image.getpixel((x, middle)),
            )


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("moving.gif", 3),
        ("moving.webp", 2),
        ("moving.png", 2),
        ("pages.tif", 2),
        ("two.mpo", 0),
        ("rgb.png", 0),
    ],
)
def test_of_several_frames_the_first_is_taken_and_that_is_said(name, frames, tmp_path, caplog):
    (tmp_path / name).write_bytes(FILES[name][0])
    with caplog.at_level(logging.WARNING, "seed_edge"):
        open_image(tmp_path / name)
    told = [f"{tmp_path / name} has {frames} frames or pages; only the first is used"] if frames else []
    assert [record.getMessage() for record in caplog.records] == told
