"""Makes a small JPEG of a stranger's picture, in a process of its own: a picture that crashes it does not harm the bot.

Knows Pillow, and what one picture may cost. Must not know the ledger or the store. Its standard input is a
socket: a picture comes in messages, an empty message ends it; the answer is one message, the byte 1 and the thumbnail,
or the byte 0 and the reason why there is none. The end of the input ends the process.
"""

import contextlib
import io
import os
import resource
import signal
import sys
import warnings
from multiprocessing.connection import Connection

from PIL import Image, ImageOps, UnidentifiedImageError

SIDE = 400  # pixels of the longer side: sharp on a dense screen, about 25 kB
MAX_PIXELS = 30_000_000  # PNG and GIF are decoded whole: four bytes a pixel, and as much again to scale them
MAX_JPEG_PIXELS = 250_000_000  # JPEG is decoded at an eighth of its size where that is enough
MEMORY_BYTES = 320 * 1024 * 1024  # of address space; without a picture it needs a tenth of that
SECONDS = 15

Image.MAX_IMAGE_PIXELS = MAX_JPEG_PIXELS  # above it Pillow warns, and the warning is an error here


class UndecodableError(Exception):
    """No thumbnail can be made of this picture; the message says why."""


def thumbnail(picture: bytes) -> bytes:
    """A JPEG of at most SIDE pixels, upright, without metadata; of an animation the first frame.

    Raises UndecodableError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(picture), formats=("JPEG", "PNG", "GIF")) as image:
                return _small(image)
    except UndecodableError:
        raise
    except UnidentifiedImageError:
        raise UndecodableError("not a JPEG, PNG or GIF") from None
    except MemoryError:
        raise UndecodableError("it takes more memory than a thumbnail may") from None
    except Exception as error:  # Pillow's decoders raise all kinds of errors on broken input
        raise UndecodableError(f"{type(error).__name__}: {error}") from None


def _small(image: Image.Image) -> bytes:
    if image.format in ("PNG", "GIF") and image.width * image.height > MAX_PIXELS:
        raise UndecodableError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}")
    if image.mode == "I;16":  # greys of 16 bits: Pillow would make all above 255 white
        image = image.point(lambda grey: grey / 256).convert("L")
    if image.mode not in ("RGB", "RGBA", "L", "LA", "CMYK"):  # palettes cannot be scaled
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image.thumbnail((SIDE, SIDE), reducing_gap=2.0)
    with contextlib.suppress(Exception):  # broken EXIF data: leave it as it is
        image = ImageOps.exif_transpose(image)
    # Only the pixels are kept, no metadata.
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
    # The parent ends this process by closing its input, after the current picture.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # a container may forbid it
        os.nice(10)
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with Connection(sys.stdin.fileno()) as connection, contextlib.suppress(EOFError, OSError):
        while True:
            picture = read_picture(connection)
            signal.alarm(SECONDS)  # SIGALRM ends the process, even inside a C library
            try:
                answer = b"\1" + thumbnail(picture)
            except UndecodableError as error:
                answer = b"\0" + str(error).encode()
            signal.alarm(0)
            connection.send_bytes(answer)


def read_picture(connection: Connection) -> bytes:
    """The next picture. Raises EOFError or OSError at the end of the input."""
    picture = bytearray()
    while chunk := connection.recv_bytes():
        picture += chunk
    return bytes(picture)


if __name__ == "__main__":
    main()
