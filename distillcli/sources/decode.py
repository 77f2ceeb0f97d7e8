"""From an image file to H x W x 3 RGB, uint8: the same rules for training, evaluation and prediction.

- The EXIF orientation is applied.
- Transparency is composited on white.
- Grayscale, 1-bit, palette and CMYK images become RGB; of an animation the first frame is taken.
- 16-bit grayscale is scaled by the range of its type: 0..65535 becomes 0..255. Pillow's own conversion clips it.
- Float images and 32-bit integers have no agreed range: they are refused rather than turned white or black.
- Where fewer pixels are enough (``MinimumSize``), a JPEG is decoded at 1/2, 1/4 or 1/8 of its width and height.
- A single channel (``dataset.channels=1``) is the luma of this RGB: gray images keep their values.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from distillcli.errors import UserError
from distillcli.sources.source import MinimumSize

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def show_path(path: Path | str) -> str:
    """A path for a one-line message: escaped if it contains line breaks, control characters or undecodable bytes."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def decode_file(path: Path, minimum_size: MinimumSize | None = None) -> NDArray[np.uint8]:
    """The image in ``path`` as H x W x 3 RGB. Raises UserError naming the file if it cannot be decoded."""
    return decode_bytes(read_file(path), show_path(path), minimum_size)


def read_file(path: Path) -> bytes:
    """The content of ``path``. Raises UserError naming it if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{show_path(path)}: no such file; restore it, or start a new run without it") from error
    except OSError as error:
        raise UserError(
            f"{show_path(path)}: cannot be read ({error.strerror}); check its permissions and the disk, or remove it"
        ) from error


def decode_bytes(content: bytes, name: str, minimum_size: MinimumSize | None = None) -> NDArray[np.uint8]:
    """An encoded image as H x W x 3 RGB. Raises UserError naming it if it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return to_rgb(image, name, minimum_size)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # for a damaged file Pillow's plugins raise almost anything, not only OSError
        raise UserError(f"{name}: {_reason(content, error)}") from error


def to_rgb(image: Image.Image, name: str, minimum_size: MinimumSize | None = None) -> NDArray[np.uint8]:
    """An opened image as H x W x 3 RGB by the rules of this module.

    Raises UserError naming it if its values have no agreed range; Pillow's errors for damaged data pass through.
    """
    kind = image.format  # a transposed copy no longer knows its format
    if minimum_size is not None and kind in ("JPEG", "MPO"):
        _reduce(image, minimum_size)
    image.load()
    image = _upright(image)
    if _is_16_bit(image, kind):
        return _from_16_bit(image)
    if image.mode in ("I", "F"):
        what = "32-bit integer" if image.mode == "I" else "float"
        raise UserError(f"{name}: {what} images have no agreed range; save it with 8 or 16 bits per channel")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.array(image.convert("RGB"))


def largest_of_16_bit(content: bytes) -> int | None:
    """The largest value in a 16-bit grayscale image; None for an image of another kind, or one that is damaged."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return int(np.asarray(image).max()) if _is_16_bit(image, image.format) else None
    except Exception:  # whoever reads the image says what is wrong with it
        return None


def luma(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB to one channel, ... x H x W x 3 to ... x H x W x 1, weighted as in ITU-R BT.601; gray keeps its values."""
    rows = pixels.reshape(-1, *pixels.shape[-2:])
    return np.array(Image.fromarray(rows).convert("L")).reshape(*pixels.shape[:-1], 1)


def _is_16_bit(image: Image.Image, kind: str | None) -> bool:
    """Some versions of Pillow read 16-bit PNG and PGM as "I", with values in 0..65535."""
    return image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM"))


def _reduce(image: Image.Image, minimum_size: MinimumSize) -> None:
    """Let libjpeg decode each block of 8 x 8 into fewer pixels, as long as the image keeps its ``minimum_size``."""
    sideways = _orientation(image) in (5, 6, 7, 8)
    width, height = image.size[::-1] if sideways else image.size
    wanted = minimum_size(width, height)
    image.draft(None, wanted[::-1] if sideways else wanted)


def _orientation(image: Image.Image) -> int:
    try:
        orientation: int = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block; the pixels are fine
        return 1
    return orientation


def _upright(image: Image.Image) -> Image.Image:
    orientation = _orientation(image)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _from_16_bit(image: Image.Image) -> NDArray[np.uint8]:
    values = np.asarray(image).astype(np.uint32)  # H x W; also converts a big-endian layout
    gray = ((values * 255 + 32767) // 65535).astype(np.uint8)
    if "transparency" in image.info:  # a PNG may declare one gray value transparent
        gray[values == image.info["transparency"]] = 255
    return np.repeat(gray[..., None], 3, axis=2)


def _reason(content: bytes, error: Exception) -> str:
    """What is wrong with an image and what to do about it, in one line."""
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels; scale the image down or remove it"
    head = content[:64].lstrip()
    if not head:
        return "the file is empty; replace or remove it"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not an image; run 'git lfs pull'"
    if head.startswith(b"<"):
        return "a web page (HTML or XML), not an image; download the image again or remove the file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read; replace or remove it"
    detail = " ".join(str(error).split()) or type(error).__name__
    return f"truncated or damaged ({detail}); replace or remove it"
