"""Makes a small JPEG of a stranger's picture, in a process of its own: a bomb, a broken file or a fault of a library
costs this process and nothing else.

Knows Pillow, and what one picture may cost. Must not know the ledger, the store or who asks: it reads one picture after
the other from its standard input and answers on its standard output. The end of the input ends the process.
"""

import contextlib
import io
import os
import resource
import signal
import sys
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from thumbnails.wire import NoThumbnail, read_picture, send_answer

SIDE = 400  # pixels of the longer side: sharp on a dense screen, about 25 kB
MAX_PIXELS = 30_000_000  # PNG and GIF are decoded whole: four bytes a pixel, and as much again to scale them
MAX_JPEG_PIXELS = 250_000_000  # JPEG is decoded at an eighth of its size where that is enough
MEMORY_BYTES = 320 * 1024 * 1024  # of address space; without a picture it is a tenth of that
SECONDS = 15

Image.MAX_IMAGE_PIXELS = MAX_JPEG_PIXELS  # above it comes a warning that is an error here


def thumbnail(picture: bytes) -> bytes:
    """A JPEG of at most SIDE pixels, upright, without metadata; of an animation the first frame. Raises NoThumbnail."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(picture), formats=("JPEG", "PNG", "GIF")) as image:
                return _small(image)
    except NoThumbnail:
        raise
    except UnidentifiedImageError:
        raise NoThumbnail("not a JPEG, PNG or GIF") from None
    except MemoryError:
        raise NoThumbnail("it takes more memory than a thumbnail may") from None
    except Exception as error:  # Pillow's decoders raise what they like on broken input
        raise NoThumbnail(f"{type(error).__name__}: {error}") from None


def _small(image: Image.Image) -> bytes:
    if image.format in ("PNG", "GIF") and image.width * image.height > MAX_PIXELS:
        raise NoThumbnail(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}")
    if image.mode not in ("RGB", "RGBA", "L", "LA", "CMYK"):  # palettes cannot be scaled
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image.thumbnail((SIDE, SIDE), reducing_gap=2.0)
    with contextlib.suppress(Exception):  # broken EXIF data: then it lies as it lies
        image = ImageOps.exif_transpose(image)
    # Pixels alone go on: what else the file told stays behind.
    bare = Image.new("RGB", image.size, "white")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        bare.paste(image, mask=image)
    else:
        bare.paste(image.convert("RGB"))
    out = io.BytesIO()
    bare.save(out, "JPEG", quality=80, optimize=True)
    return out.getvalue()


def main() -> None:
    # Who started this process ends it by closing its input, when the picture in hand is done.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # a container may forbid it
        os.nice(10)
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    while (picture := read_picture(sys.stdin.buffer)) is not None:
        signal.alarm(SECONDS)  # it ends the process, also in the middle of a library
        answer: bytes | NoThumbnail
        try:
            answer = thumbnail(picture)
        except NoThumbnail as error:
            answer = error
        signal.alarm(0)
        send_answer(sys.stdout.buffer, answer)


if __name__ == "__main__":
    main()
