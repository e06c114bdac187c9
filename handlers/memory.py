"""Remember: a reply, and what the bot is to know of this fan when the next message comes.

Knows what a memory may be: a mapping that is JSON, of 8 kB at most. Must not know where it is kept, or that message,
reply and memory share one commit: `answers/` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from wechat.replies import Reply

MAX_MEMORY_BYTES = 8192  # as JSON in UTF-8, whatever form it is kept in

Memory: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Remember:
    """`reply` is the answer (None for none), `memory` replaces what was known of the fan; an empty one forgets it.

    Raises TypeError for a memory that is not JSON, and ValueError for more than MAX_MEMORY_BYTES.
    """

    reply: Reply | None
    memory: Memory

    def __post_init__(self) -> None:
        if self.reply is not None and not isinstance(self.reply, Reply):
            raise TypeError(f"Remember takes a reply or None first, not {self.reply!r:.80}")
        if not isinstance(self.memory, Mapping) or not all(isinstance(key, str) for key in self.memory):
            raise TypeError("Remember takes a mapping with text as keys second, for example {'step': 2}")
        size = len(_json(self.memory, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        if size > MAX_MEMORY_BYTES:
            raise ValueError(f"a fan's memory has {size} bytes as JSON; {MAX_MEMORY_BYTES} is the most")


def as_json(memory: Memory) -> str:
    """The memory as it is kept: in ASCII, so that half a character can be kept too. Raises TypeError or ValueError for
    one that is not JSON."""
    return _json(memory, ensure_ascii=True)


def _json(memory: Memory, *, ensure_ascii: bool) -> str:
    return json.dumps(
        dict(memory), allow_nan=False, ensure_ascii=ensure_ascii, separators=(",", ":"), sort_keys=True
    )
