"""Makes the thumbnails that the ledger says are due, one by one: what a worker does when it has nothing better to do.

Knows the order of it: claim, make, mark. Does not know how a picture is decoded, SQL or threads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from storage.gallery import GalleryRows
from thumbnails.shelf import Thumbnails
from thumbnails.wire import NoThumbnail

log = logging.getLogger(__name__)

CLAIM_SECONDS = 120.0  # much longer than a picture may take; a claim that a dead process left is over then


class ThumbnailMaker:
    """For one thread of a process."""

    def __init__(
        self, rows: GalleryRows, thumbnails: Thumbnails, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._rows, self._thumbnails, self._clock = rows, thumbnails, clock

    def step(self) -> bool:
        """Makes one; False when none is due. Raises OSError when a store is away: the claim then runs out by itself,
        and DatabaseUnavailableError."""
        picture = self._rows.claim_picture(self._clock(), CLAIM_SECONDS)
        if picture is None:
            self._thumbnails.rest()
            return False
        made = True
        try:
            self._thumbnails.make(picture.media_key)
        except NoThumbnail as error:
            log.warning("no thumbnail: %s", error, extra={"ledger_id": picture.id})
            made = False
        if not self._rows.mark_thumbnail(picture, made=made):  # purged meanwhile
            self._thumbnails.delete(picture.media_key.rpartition(".")[0])
        return True

    def close(self) -> None:
        """Ends what `step` keeps running in between."""
        self._thumbnails.close()
