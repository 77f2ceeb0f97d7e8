"""Every kind of image becomes the RGB a person sees, or an error that names the file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distillcli.errors import UserError
from distillcli.sources.decode import decode_file, show_path, to_rgb

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


def write_png(path: Path, values: np.ndarray, color_type: int, bits: int, extra: bytes = b"") -> None:
    """A PNG that Pillow cannot write itself, e.g. 16 bits per channel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    transparency = chunk(b"tRNS", extra) if extra else b""
    body = chunk(b"IHDR", header) + transparency + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def mode_of(path: Path) -> str:
    with Image.open(path) as image:
        return image.mode


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        decode_file(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(show_path(path))
    return message


def test_rgb_is_unchanged_and_may_be_written_to(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (5, 7, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = decode_file(tmp_path / "a.png")
    assert read.dtype == np.uint8
    assert read.flags.writeable
    np.testing.assert_array_equal(read, pixels)


@pytest.mark.fault("R23")
@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "pgm", "gif"])
def test_grayscale_is_repeated(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(decode_file(tmp_path / f"a.{suffix}"), gray(RAMP))


@pytest.mark.fault("R23")
def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(RAMP).point(lambda value: 255 * (value > 99), mode="1").save(tmp_path / "a.png")
    assert mode_of(tmp_path / "a.png") == "1"
    np.testing.assert_array_equal(decode_file(tmp_path / "a.png"), gray(255 * (RAMP > 99)))


@pytest.mark.fault("R23")
def test_transparency_is_composited_on_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)).save(
        tmp_path / "rgba.png"
    )
    expected = np.array([[[200, 100, 0], [255, 255, 255], [244, 224, 204]]])
    np.testing.assert_allclose(decode_file(tmp_path / "rgba.png").astype(int), expected, atol=1)

    Image.fromarray(np.array([[[100, 255], [100, 0]]], np.uint8)).save(tmp_path / "la.png")
    assert mode_of(tmp_path / "la.png") == "LA"
    np.testing.assert_array_equal(decode_file(tmp_path / "la.png"), gray([[100, 255]]))


@pytest.mark.fault("R23")
def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "plain.png")
    np.testing.assert_array_equal(decode_file(tmp_path / "plain.png"), [[[10, 20, 30], [40, 50, 60]]])
    image.save(tmp_path / "index.png", transparency=1)
    np.testing.assert_array_equal(decode_file(tmp_path / "index.png"), [[[10, 20, 30], [255, 255, 255]]])
    image.save(tmp_path / "bytes.png", transparency=b"\x00\xff")
    np.testing.assert_array_equal(decode_file(tmp_path / "bytes.png"), [[[255, 255, 255], [40, 50, 60]]])


def test_a_transparent_colour_of_an_opaque_mode(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)).save(tmp_path / "a.png", transparency=(1, 2, 3))
    np.testing.assert_array_equal(decode_file(tmp_path / "a.png"), [[[255, 255, 255], [4, 5, 6]]])


@pytest.mark.fault("R23")
def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert mode_of(tmp_path / "a.jpg") == "CMYK"
    np.testing.assert_allclose(decode_file(tmp_path / "a.jpg")[0, 0].astype(int), [255, 0, 0], atol=3)


@pytest.mark.fault("R24")
@pytest.mark.parametrize("kind", ["png", "tif", "big-endian tif", "pgm"])
def test_16_bit_is_scaled_by_the_range_of_its_type(tmp_path: Path, kind: str) -> None:
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    path = tmp_path / f"a.{kind[-3:]}"
    if kind == "png":
        write_png(path, values, color_type=0, bits=16)
    elif kind == "pgm":
        path.write_bytes(b"P5 4 1 65535\n" + values.astype(">u2").tobytes())
    elif kind == "tif":
        Image.fromarray(values).save(path)
    else:
        entries = [(256, 4), (257, 1), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 8)]
        table = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in entries)
        head = b"MM\0*" + struct.pack(">I", 16) + values.astype(">u2").tobytes()
        path.write_bytes(head + struct.pack(">H", len(entries)) + table + b"\0\0\0\0")
        assert mode_of(path) == "I;16B"
    np.testing.assert_array_equal(decode_file(path), gray([[0, 1, 128, 255]]))


def test_16_bit_png_with_a_transparent_value_and_with_three_channels(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.array([[5, 257]], np.uint16), color_type=0, bits=16, extra=struct.pack(">H", 5))
    np.testing.assert_array_equal(decode_file(tmp_path / "a.png"), gray([[255, 1]]))
    write_png(tmp_path / "b.png", np.array([[[0, 32768, 65535]]], np.uint16), color_type=2, bits=16)
    np.testing.assert_array_equal(decode_file(tmp_path / "b.png"), [[[0, 128, 255]]])


@pytest.mark.fault("R24")
def test_float_and_32_bit_images_are_refused(tmp_path: Path) -> None:
    for dtype, word in ((np.float32, "float"), (np.int32, "32-bit integer")):
        Image.fromarray(np.array([[0, 1]], dtype)).save(tmp_path / "a.tif")
        message = refused(tmp_path / "a.tif")
        assert word in message
        assert "8 or 16 bits" in message


@pytest.mark.fault("R25")
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255  # white in the top left corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", exif=exif, quality=100)
    read = decode_file(tmp_path / f"a.{suffix}")
    assert read.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3))
    row, column = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[
        orientation
    ]
    corners = [(0, 0), (0, -1), (-1, 0), (-1, -1)]
    assert [bool(read[corner].min() > 200) for corner in corners] == [corner == (row, column) for corner in corners]


def test_a_damaged_exif_block_leaves_the_pixels(tmp_path: Path) -> None:
    Image.fromarray(gray(RAMP)).save(tmp_path / "a.png", exif=b"Exif\0\0nonsense")
    np.testing.assert_array_equal(decode_file(tmp_path / "a.png"), gray(RAMP))


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for suffix in ("gif", "webp", "png"):
        path = tmp_path / f"a.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        np.testing.assert_array_equal(decode_file(path)[0, 0], [255, 0, 0])


@pytest.mark.fault("R22")
def test_the_wrong_extension_does_not_matter(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(decode_file(tmp_path / "a.jpg"), gray(RAMP))


@pytest.mark.fault("R21")
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif", "bmp", "ppm"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a.{suffix}"
    pixels = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    message = refused(path)
    assert ("the file is empty" in message) == (share == 0.0)
    assert "replace or remove" in message


@pytest.mark.fault("R22")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"just text", "not an image"),
    ],
)
def test_what_is_not_an_image_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    assert said in refused(tmp_path / "a.jpg")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert "cannot be read" in refused(tmp_path / "folder.jpg")


@pytest.mark.fault("R26")
def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "more than 2000 pixels" in refused(tmp_path / "a.png")


def test_hostile_names_stay_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "two\nlines\x1b[31m.jpg"
    path.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        decode_file(path)
    assert str(caught.value).isprintable()
    assert r"two\nlines" in str(caught.value)


def test_images_that_are_open_already() -> None:
    np.testing.assert_array_equal(to_rgb(Image.fromarray(RAMP), "set[3]"), gray(RAMP))
    with pytest.raises(UserError, match=r"^set\[3\]: float images"):
        to_rgb(Image.new("F", (2, 2)), "set[3]")


# --- smaller than it is -------------------------------------------------------------------------------------------


def smooth(width: int, height: int) -> np.ndarray:
    """Red grows from left to right, green from top to bottom."""
    y, x = np.mgrid[0 : 255 : height * 1j, 0 : 255 : width * 1j]
    return np.stack([x, y, np.full_like(x, 128)], axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("least", "expected"),
    [
        ((80, 60), (80, 60)),
        ((81, 60), (160, 120)),
        ((80, 61), (160, 120)),
        ((160, 1), (160, 120)),
        ((161, 120), (320, 240)),
        ((321, 1), (640, 480)),
        ((9999, 9999), (640, 480)),
    ],
)
def test_a_jpeg_is_decoded_at_the_smallest_size_that_will_do(
    tmp_path: Path, least: tuple[int, int], expected: tuple[int, int]
) -> None:
    Image.fromarray(smooth(640, 480)).save(tmp_path / "a.jpg", quality=95)
    read = decode_file(tmp_path / "a.jpg", lambda width, height: least)
    assert read.shape == (*expected[::-1], 3)
    np.testing.assert_allclose(read.astype(int), smooth(*expected).astype(int), atol=6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_least_is_that_of_the_upright_image(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(smooth(641, 481)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = (641, 481) if orientation < 5 else (481, 641)
    asked = []

    def least(width: int, height: int) -> tuple[int, int]:
        asked.append((width, height))
        return width // 4, height // 4

    read = decode_file(tmp_path / "a.jpg", least)
    assert asked == [upright]
    assert read.shape[:2] == tuple(-(-side // 4) for side in reversed(upright))
    whole = np.asarray(Image.fromarray(decode_file(tmp_path / "a.jpg")).resize(read.shape[1::-1], Image.Resampling.BOX))
    np.testing.assert_allclose(read.astype(int), whole.astype(int), atol=6)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpegs_of_other_modes_are_reduced_as_well(tmp_path: Path, mode: str) -> None:
    Image.fromarray(smooth(64, 48)).convert(mode).save(tmp_path / "a.jpg", quality=95)
    read, whole = decode_file(tmp_path / "a.jpg", lambda width, height: (16, 12)), decode_file(tmp_path / "a.jpg")
    assert read.shape == (12, 16, 3)
    np.testing.assert_allclose(read.mean((0, 1)), whole.mean((0, 1)), atol=1)


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "gif", "bmp"])
def test_other_formats_keep_their_size(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(smooth(64, 48)).save(tmp_path / f"a.{suffix}")
    whole = decode_file(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(decode_file(tmp_path / f"a.{suffix}", lambda width, height: (1, 1)), whole)


def test_a_truncated_jpeg_is_refused_when_reduced_too(tmp_path: Path) -> None:
    Image.fromarray(smooth(640, 480)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:3000])
    with pytest.raises(UserError, match="truncated or damaged"):
        decode_file(tmp_path / "a.jpg", lambda width, height: (8, 8))
