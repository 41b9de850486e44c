"""Image files of every mode and fault."""

import numpy as np
import pytest
import torch
from PIL import Image

from modalities.vision.files import from_tensor, grid, read_image, to_tensor, write_png


def save(path, mode, colour, size=(6, 4), **options):
    Image.new(mode, size, colour).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 90, [90]),
        ("1", 1, [255]),
        ("RGB", (10, 20, 30), [10, 20, 30]),
        ("RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("RGBA", (10, 20, 30, 0), [255, 255, 255]),
        ("LA", (40, 255), [40]),
        ("LA", (40, 0), [255]),
        ("I;16", 65535, [255]),
        ("I;16", 257 * 7, [7]),
    ],
)
def test_modes_become_grey_or_colour(tmp_path, mode, colour, expected):
    image = read_image(save(tmp_path / "a.png", mode, colour))
    assert image.dtype == np.uint8 and image.shape == (4, 6, len(expected))
    assert image[0, 0].tolist() == expected


def test_palette_with_and_without_transparency(tmp_path):
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.save(tmp_path / "p.png")
    palette.save(tmp_path / "t.png", transparency=1)
    assert read_image(tmp_path / "p.png")[0, 0].tolist() == [200, 100, 50]
    assert read_image(tmp_path / "t.png")[0, 0].tolist() == [255, 255, 255]


def test_cmyk_becomes_rgb(tmp_path):
    assert read_image(save(tmp_path / "a.jpg", "CMYK", (0, 0, 0, 255))).shape == (4, 6, 3)


def test_orientation_tag_turns_the_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_image(save(tmp_path / "a.jpg", "RGB", (1, 2, 3), exif=exif)).shape == (6, 4, 3)


def test_faulty_files_are_named(tmp_path):
    whole = save(tmp_path / "whole.png", "RGB", (1, 2, 3), size=(64, 64)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "words.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    for name, reason in (("cut.png", "corrupt"), ("words.png", "not an image"), ("empty.png", "is empty")):
        with pytest.raises(ValueError, match=rf"{name}: .*{reason}"):
            read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        read_image(tmp_path / "gone.png")


def test_floating_point_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.tif: .*floating-point"):
        read_image(save(tmp_path / "a.tif", "F", 0.5))


def test_resizing_covers_and_keeps_the_centre():
    image = np.zeros((8, 16, 1), np.uint8)
    image[:, 4:12] = 255
    out = to_tensor(image, size=4, channels=1)
    assert out.shape == (1, 4, 4) and out.mean() > 0.7  # the black sides are cut off
    assert to_tensor(np.full((3, 5, 3), 200, np.uint8), 8, 3).shape == (3, 8, 8)


def test_channels_are_converted():
    green = np.zeros((2, 2, 3), np.uint8)
    green[..., 1] = 255
    torch.testing.assert_close(to_tensor(green, 2, 1), torch.full((1, 2, 2), 2 * 0.587 - 1))
    grey = to_tensor(np.full((2, 2), 255, np.uint8), 2, 3)
    assert grey.shape == (3, 2, 2) and (grey == 1).all()


@pytest.mark.parametrize("bad", [np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2, 3)), np.zeros((0, 2, 1), np.uint8)])
def test_arrays_of_another_kind_are_refused(bad):
    with pytest.raises(ValueError, match=r"image: got .*expected uint8"):
        to_tensor(bad, 2, 3)


def test_tensors_return_to_the_same_pixels():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    assert np.array_equal(from_tensor(to_tensor(image, 16, 1)).numpy(), image)


def test_grid_and_png(tmp_path):
    images = np.zeros((5, 8, 8, 1), np.uint8)
    images[4] = 7
    sheet = grid(images, columns=2, tile=16, gap=1)
    assert sheet.shape == (3 * 17 + 1, 2 * 17 + 1, 1)
    path = write_png(tmp_path / "new" / "sheet.png", sheet)
    assert np.array_equal(read_image(path), sheet)
    assert sheet[-2, 1, 0] == 7 and sheet[-2, -2, 0] == 255
    assert [p.name for p in path.parent.iterdir()] == ["sheet.png"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_png(tmp_path / "a.png", np.zeros((2, 2, 1), np.uint8))
    before = path.read_bytes()

    def full_disk(self, target, format):
        target.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_png(path, np.ones((2, 2, 1), np.uint8))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
