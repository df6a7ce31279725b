import numpy as np
import pytest
from PIL import Image

from seed_edge.contact_sheet import ImageGrid, captioned, columns_and_rows, contact_sheet, save_contact_sheet


def squares(*colours):
    return [Image.new("RGB", (8, 8), colour) for colour in colours]


@pytest.mark.parametrize(
    ("count", "shape"), [(1, (1, 1)), (2, (2, 1)), (5, (3, 2)), (9, (3, 3)), (10, (4, 3))]
)
def test_a_sheet_is_as_nearly_square_as_possible(count, shape):
    assert columns_and_rows(count) == shape
    assert contact_sheet(squares(*["red"] * count)).size == (8 * shape[0], 8 * shape[1])


def test_images_stand_row_after_row_and_empty_places_are_white():
    sheet = contact_sheet(squares("red", "lime", "blue"), columns=2)
    assert [sheet.getpixel(place) for place in ((4, 4), (12, 4), (4, 12), (12, 12))] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 255),
    ]


def test_a_text_stands_below_its_image():
    image = Image.new("RGB", (128, 128), "red")
    cell = captioned(image, "a long text " * 20)
    pixels = np.asarray(cell)
    assert cell.size == (140, 176)
    assert (pixels[4:132, 6:134] == (255, 0, 0)).all() and (pixels[132:] < 128).any()
    assert (np.asarray(captioned(image, ""))[132:] == 255).all()


@pytest.mark.parametrize(("name", "kind"), [("a/b/sheet.jpg", "JPEG"), ("sheet.png", "PNG")])
def test_the_name_of_a_sheet_decides_its_format(tmp_path, name, kind):
    save_contact_sheet(tmp_path / name, contact_sheet(squares("red", "blue")))
    with Image.open(tmp_path / name) as image:
        assert image.format == kind and image.size == (16, 8)


@pytest.mark.parametrize("images", [[], [Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))]])
def test_no_images_or_images_of_different_sizes_are_refused(images):
    with pytest.raises(ValueError, match="contact sheet"):
        contact_sheet(images)


def test_a_grid_of_fewer_images_than_expected_is_laid_out_for_these_alone():
    grid, images = ImageGrid(9), squares("red", "lime")
    for image in images:
        grid.add(image)
    assert grid.image().tobytes() == contact_sheet(images).tobytes() and grid.image().size == (16, 8)
