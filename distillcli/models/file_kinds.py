"""What a file is, told by how it begins and what its archive holds, never by its name alone; nothing in it is run."""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from distillcli.errors import UserError

HEAD = 512  # bytes that tell every kind below
_STATE_DICT = "save model.state_dict() with torch.save, or as .safetensors"
_KERAS = f"weights of Keras or another HDF5 file, not of PyTorch; convert them, then {_STATE_DICT}"
_NUMPY = "{} of NumPy arrays, not PyTorch weights; turn the arrays into tensors under timm's names, then save them"
_PACKED = "a packed file ({}), not weights themselves; unpack it first"

# How a file begins -> what it is and what to do; the first that matches.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights themselves; run git lfs pull"),
    (b"\x89HDF\r\n\x1a\n", _KERAS),
    (b"\x93NUMPY", _NUMPY.format("a file")),
    (b"GGUF", "a GGUF file, not PyTorch weights; take the original weights"),
    (b"\x1f\x8b", _PACKED.format("gzip")),
    (b"BZh", _PACKED.format("bzip2")),
    (b"\xfd7zXZ\x00", _PACKED.format("xz")),
    (b"7z\xbc\xaf\x27\x1c", _PACKED.format("7z")),
    (b"Rar!", _PACKED.format("rar")),
    (b"\x28\xb5\x2f\xfd", _PACKED.format("zstd")),
    (b"\x89PNG", "an image, not weights; give the file of the weights"),
    (b"\xff\xd8\xff", "an image, not weights; give the file of the weights"),
    (b"%PDF", "a PDF document, not weights; give the file of the weights"),
)
# A file of protocol buffers has no mark of its own: ONNX writes its version, then who made it.
_ONNX = re.compile(rb"\x08[\x01-\x20]\x12[\x01-\x40][\x20-\x7e]")
# The first of the four pickles of torch's own format before 1.6.
_OLD_TORCH = re.compile(rb"\x80[\x02-\x05](?:\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
_PICKLE = re.compile(rb"\x80[\x02-\x05]")


def refuse_other_kinds(path: Path, head: bytes) -> None:
    """Raise UserError, saying what it is, for a file that is known to be something other than weights of PyTorch.

    ``head``: its first bytes.
    """
    kind = next((kind for mark, kind in _BEGINNINGS if head.startswith(mark)), None) or _by_content(head)
    if kind is None and zipfile.is_zipfile(path):
        kind = _of_archive(path)
    if kind is not None:
        raise UserError(f"{path}: {kind}")


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins as a .safetensors file: the length of its header, then the header, which is JSON."""
    return head[8:10] in (b'{"', b"{}") and 2 <= int.from_bytes(head[:8], "little") < 1 << 28


def is_old_torch(head: bytes) -> bool:
    """Whether a file begins in the format of torch.save before 1.6, which has no checksums."""
    return _OLD_TORCH.match(head) is not None


def _by_content(head: bytes) -> str | None:
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite file, not PyTorch weights; take the model it was converted from"
    if head[257:262] == b"ustar":
        return _PACKED.format("tar")
    if _ONNX.match(head):
        return f"an ONNX file, not PyTorch weights; take the model that it was exported from, and {_STATE_DICT}"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not weights; download the file itself"
    if head.lstrip().startswith(b"{"):
        return "a JSON file, not weights; give the file of the weights, in one piece"
    if _PICKLE.match(head) and not is_old_torch(head):
        return f"a plain pickle, which could run code when it is opened; {_STATE_DICT} where it was made"
    return None


def _of_archive(path: Path) -> str | None:
    """What a zip archive is if not a checkpoint of torch.save, which is a zip archive as well."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError):
        return None  # damaged; the caller looks at every member
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return f"a TorchScript archive, which holds code and is not opened; {_STATE_DICT} where it was made"
    if "data.pkl" in inner:
        return None
    if names and all(name.endswith(".npy") for name in names):
        return _NUMPY.format("an NPZ archive")
    if any(name.endswith(".h5") for name in names):
        return _KERAS
    if "archive_format" in {name.rpartition("/")[2] for name in names}:
        return f"a program of torch.export, not weights alone; {_STATE_DICT} where it was made"
    first = f" (it holds {names[0]})" if names else ", and empty"
    return f"a zip archive of other files{first}, not a checkpoint; unpack it first"


def blocked_entry(path: Path, blocked: str) -> str | None:
    """The last text in a checkpoint before it asks for the Python object ``blocked`` (``module.name``).

    That is the name of the entry which holds the object, in the order in which pickles are written; None if there is
    no such text. The pickle is read as a list of opcodes and is not run.
    """
    text: list[str] = []
    for name, argument in _opcodes(path):
        if name == "PROTO":  # the next pickle begins
            text.clear()
        if name == "GLOBAL" and str(argument).replace(" ", ".") == blocked:
            # The old format writes this word before the class of a model.
            text = text[:-1] if text[-1:] == ["module"] and not zipfile.is_zipfile(path) else text
            return text[-1] if text else None
        if name.endswith("UNICODE"):
            text.append(str(argument))
    return None


def _opcodes(path: Path) -> Iterator[tuple[str, object]]:
    """Of a zip checkpoint's one pickle, or of all pickles of an old one, as far as they can be read."""
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as handle:
                for _ in range(4):
                    yield from _pickle(handle)
            return
        with zipfile.ZipFile(path) as archive:
            member = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            with archive.open(member) as inner:
                yield from _pickle(inner)  # type: ignore[arg-type]
    except ValueError:
        return  # not a pickle any more


def _pickle(handle: BinaryIO) -> Iterator[tuple[str, object]]:
    for opcode, argument, _ in pickletools.genops(handle):
        yield opcode.name, argument
