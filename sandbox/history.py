"""What happened in earlier runs, kept in a folder: the chats, pushes, calls, media and the menu.

Knows a file of lines, each an event of the feed, and that the last one may be cut short by a crash. It must not know
what the events mean: the state does. Tokens, faults, rules and the clock are not kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Event = tuple[str, Mapping[str, Any]]


class History:
    """The file `history.jsonl` of `folder`; only this user may read it. `snapshot` gives what is to be kept now."""

    def __init__(self, folder: Path, snapshot: Callable[[], list[Event]]) -> None:
        self._path = folder / "history.jsonl"
        self._snapshot = snapshot

    def read(self) -> Iterator[Event]:
        """All events in the file, oldest first."""
        if not self._path.exists():
            return
        with self._path.open("rb") as lines:  # the last one may end inside a character
            for line in lines:
                try:
                    name, facts = json.loads(line)
                except ValueError:
                    continue  # the end of a run that was killed while it wrote
                yield name, facts

    def rewrite(self) -> None:
        """Replaces the file by the snapshot, so that it does not grow with old pushes and calls for ever."""
        fresh = self._path.with_suffix(".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(map(_line, self._snapshot()))
        fresh.replace(self._path)

    def hear(self, name: str, facts: Mapping[str, Any]) -> None:
        """A listener of the state."""
        if name in ("reset", "cleared"):
            self.rewrite()
        elif name in ("message", "media", "menu", "call") or (name == "push" and facts["ended"]):
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line((name, facts)))


def _line(event: Event) -> str:
    return json.dumps(event, ensure_ascii=False) + "\n"
