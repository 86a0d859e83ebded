"""Decode an image from any source as upright RGB, within limits of memory; refuse others with the reason."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from ..errors import ImageError, describe_pixel_limit
from ..text import clean_line
from .formats import WHITE_16, PixelFormat, check_format, check_ico, check_parts

if TYPE_CHECKING:
    import numpy.typing as npt  # slow to import, and the runtime has to start fast

ImageSource: TypeAlias = (
    os.PathLike[str]
    | str
    | bytes
    | bytearray
    | memoryview
    | Image.Image
    | np.ndarray[Any, np.dtype[np.uint8]]
)

MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a gibibyte of RGB
_MANY_BYTES = 2**20  # from here on a file may have parts enough to take Pillow seconds
_LARGE = 2**24  # pixels, 64 MiB of RGB in Pillow
_IMAGES = (os.PathLike, str, bytes, bytearray, memoryview, Image.Image, np.ndarray)
_ORIENTATION = 0x0112  # the EXIF tag
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def decode_image(
    image: ImageSource,
    *,
    max_pixels: int,
    exif: bool,
    draft_edge: int | None,
    white_level: int = WHITE_16,
    take_size: Callable[[tuple[int, int]], object] | None = None,
) -> Iterator[Image.Image]:
    """Open an image, decode it, and yield it as a Pillow image of mode RGB that the end of the block closes.

    Args:
        image: a path, the bytes of a file, a Pillow image, or a uint8 array as in `Preprocess`.
        max_pixels: an image with more is refused before it is decoded.
        exif: rotate it by its EXIF orientation.
        draft_edge: a JPEG may be decoded at 1/2, 1/4 or 1/8 as long as both edges have this many pixels;
            None decodes all of it.
        white_level: the value of a 16-bit gray pixel that is white.
        take_size: called with (width, height) of the upright image, as if all of it had been decoded.

    Yields:
        The image; one of the caller's own that is RGB and upright is yielded as it is, and not closed.

    Raises:
        ImageError: when it cannot be read or decoded, or the block raises an error.
        TypeError: when `image` is none of these.
    """
    if not isinstance(image, _IMAGES):
        kinds = "a path, bytes, a Pillow image or a uint8 array"
        raise TypeError(f"an image is {kinds}, found {type(image).__name__}")
    try:
        with _open(image, max_pixels) as opened:
            _check_size(size := opened.size, max_pixels)
            if draft_edge and opened is not image:  # an image of the caller's stays as it is
                opened.draft(None, (draft_edge, draft_edge))
            found = check_format(opened, white_stated=white_level != WHITE_16, max_pixels=max_pixels)
            with reserve_memory(opened.size, max_pixels), _close_after(opened, image):
                opened.load()
                if found.check_pixels is not None:
                    found.check_pixels(opened)
                rotation = _TRANSPOSITIONS.get(_read_orientation(opened)) if exif else None
                with _close_after(_to_rgb(opened, found, white_level), image) as color:
                    upright = color if rotation is None else color.transpose(rotation)
                    with _close_after(upright, image):
                        if take_size is not None:  # a draft is smaller, and Pillow rotates some files itself
                            long, short = max(size), min(size)
                            take_size((long, short) if upright.width >= upright.height else (short, long))
                        yield upright
    except ImageError as error:
        raise _with_file(error, image) from error.__cause__
    except MemoryError:
        raise _with_file(ImageError("not enough memory to decode it"), image) from None
    except Exception as error:  # Pillow's plugins raise whatever a broken file makes them trip over
        from .other_formats import explain_failure  # loaded with the first failure

        raise _with_file(ImageError(explain_failure(error, "decoded", max_pixels)), image) from error


def _with_file(error: ImageError, image: ImageSource) -> ImageError:
    if isinstance(image, os.PathLike | str):
        error.file = clean_line(os.fspath(image))
    return error


def _to_rgb(image: Image.Image, found: PixelFormat, white_level: int) -> Image.Image:
    if found.opaque and image.has_transparency_data:
        return image.convert("RGB")
    if not found.may_be_blank and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        raise ImageError("its alpha is 0 everywhere, which most programs ignore; convert it to RGB")
    return convert_to_rgb(image, found.white or white_level)


_one_large_image = threading.RLock()  # resizing asks for it again while decoding holds it


def _after_fork() -> None:
    global _one_large_image
    _one_large_image = threading.RLock()  # a thread that held the old one is not here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def reserve_memory(size: tuple[int, int], max_pixels: int) -> AbstractContextManager[object]:
    """Return a lock to hold while Pillow has an image of this (width, height) in memory.

    Large images are decoded and resized one at a time, however many threads: each may take half a gibibyte.

    Raises:
        ImageError: when it takes more memory than an image of `max_pixels` pixels may, and is large.
    """
    if _memory(size) > 1.25 * max(max_pixels, _LARGE):
        found = f"{size[0]} x {size[1]} pixels between its two passes"
        raise ImageError(f"resizing it takes {found}, too many rows for {describe_pixel_limit(max_pixels)}")
    return _one_large_image if _memory(size) > _LARGE else nullcontext()


def _memory(size: tuple[int, int]) -> int:
    """Memory that Pillow needs for (width, height), in pixels; each row adds an overhead of about two."""
    return (size[0] + 2) * size[1]


@contextmanager
def _close_after(opened: Image.Image, image: ImageSource) -> Iterator[Image.Image]:
    """Free an image's pixels at the end of the block, also where the frames of an error still refer to it.

    An image of the caller's own stays open.
    """
    try:
        yield opened
    finally:
        if opened is not image:
            opened.close()


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    found = f"{size[0]} x {size[1]}"
    if min(size) < 1:
        raise ImageError(f"it has no pixels ({found})")
    if size[0] * size[1] > max_pixels:
        raise ImageError(f"it has {found} pixels, more than {describe_pixel_limit(max_pixels)}")
    if _memory(size) > 1.25 * max_pixels:
        raise ImageError(
            f"it has {found} pixels, too narrow for so many rows and {describe_pixel_limit(max_pixels)}"
        )


@contextmanager
def _open(image: ImageSource, max_pixels: int) -> Iterator[Image.Image]:
    """Yield a Pillow image whose header is read, and whose pixels mostly are not yet."""
    if isinstance(image, Image.Image):
        yield image
    elif isinstance(image, np.ndarray):
        yield _from_array(image)
    elif isinstance(image, bytes | bytearray | memoryview):
        yield _open_file(BytesIO(image), memoryview(image).nbytes, max_pixels)
    else:
        with _open_path(Path(image)) as file:
            yield _open_file(file, os.fstat(file.fileno()).st_size, max_pixels)


def _open_path(path: Path) -> IO[bytes]:
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):  # opening a pipe would wait for ever
            return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise ImageError(f"it cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    raise ImageError(_describe_irregular(path, mode))


def _describe_irregular(path: Path, mode: int) -> str:
    if not stat.S_ISDIR(mode):
        return "it is a device, pipe or socket, not an image"
    if not os.access(path, os.R_OK | os.X_OK):
        return "a folder that may not be read"
    try:
        os.scandir(path).close()
    except OSError as error:
        return f"a folder that cannot be listed: {error.strerror or error}"
    return "it is a folder, not an image"


def _open_file(file: IO[bytes], length: int, max_pixels: int) -> Image.Image:
    if length == 0:
        raise ImageError("it is empty (zero bytes)")
    if length > 2**20 + 8 * max_pixels:  # more than 16-bit RGBA without compression takes
        raise ImageError(
            f"it has {length:,} bytes, more than an image of {describe_pixel_limit(max_pixels)} needs"
        )
    check_ico(file, lambda size: _check_size(size, max_pixels))
    if length > _MANY_BYTES:
        check_parts(file, length)
    try:
        image = Image.open(file)
    except Exception as error:
        from .other_formats import explain_failure

        raise ImageError(explain_failure(error, "read", max_pixels, file)) from error
    if image.format == "EPS":  # Pillow would start Ghostscript and let the file run as a program in it
        raise ImageError("it is PostScript, a program and not an image; convert it to PNG")
    return image


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        expected = "uint8 [height, width], [height, width, 3] or [height, width, 4]"
        raise ImageError(f"an array must be {expected}, found {array.dtype} {list(array.shape)}")
    if array.size == 0:
        raise ImageError(f"an array without pixels, found {list(array.shape)}")
    plane = array[:, :, 0] if array.ndim == 3 and channels == 1 else array
    return Image.fromarray(np.ascontiguousarray(plane))


# --- Pixels: orientation, and RGB from every mode of Pillow ---


def _read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8.

    It is read after the pixels: PNG may store it behind them, and Pillow rotates a TIFF itself.
    """
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block is no reason to refuse the image it came with
        return 1
    return found if isinstance(found, int) else 1


def convert_to_rgb(image: Image.Image, white_level: int = WHITE_16) -> Image.Image:
    """Convert a loaded image of any of Pillow's modes to RGB: transparency over white, 16 bits scaled to 8.

    An opaque RGB image is returned as it is. Gray values above `white_level` are white, too.

    Raises:
        ImageError: for pixels whose range no standard fixes.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _convert_16_bits(np.asarray(image), white_level, image.info.get("transparency")).convert("RGB")
    if image.mode == "F":
        raise ImageError("its pixels are floats, whose range no standard fixes; convert it to 8 or 16 bits")
    if image.mode == "LAB":
        from PIL import ImageCms  # rare, and it loads the color management library

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert converted is not None  # only in place gives None
        return converted
    if image.has_transparency_data:
        color = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(color, mask=color.getchannel("A"))
        return white
    return image.convert("RGB")


def _convert_16_bits(values: npt.NDArray[Any], white: int, clear: object) -> Image.Image:
    """Convert gray values; pixels that have the value `clear`, an int in PNG, are transparent."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > WHITE_16:
        raise ImageError(f"its values run from {low} to {high}, which is neither 8 nor 16 bits")
    # Rounded to the nearest.
    scaled = (255 * np.minimum(values, white).astype(np.uint32) + white // 2) // white
    if isinstance(clear, int):
        scaled[values == clear] = 255
    return Image.fromarray(scaled.astype(np.uint8))
