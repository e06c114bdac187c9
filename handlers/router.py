"""Router: a table of answers to words. The first route that fits wins.

Knows how words are compared, and nothing else: it is as pure as the handlers in it. The words are a text's content,
the recognised text of a voice, a menu button's key, or a QR code's scene.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from handlers.calls import Handler, HandlerError, Outcome, Recall, call, takes_memory
from wechat.messages import Event, Message, TextMessage, VoiceMessage


@dataclass(frozen=True)
class Route:
    """A test of the words: `arguments` returns the handler's further arguments, or None if the words do not fit."""

    arguments: Callable[[str], tuple[str, ...] | None]
    count: int
    """How many arguments there are."""


def exact(*words: str) -> Route:
    """Exactly one of these words; capitals do not matter. The handler gets no argument."""
    known = set(_folded(words))
    return Route(lambda said: () if said.casefold() in known else None, 0)


def prefix(*words: str) -> Route:
    """Words that begin with one of these. The handler gets the rest as one argument, which may be empty.

    `weather` fits "weather", "Weather Oslo" and "weather奥斯陆", but not "weatherman".
    """
    known = _folded(words)

    def arguments(said: str) -> tuple[str, ...] | None:
        for word in known:
            if said[: len(word)].casefold() != word:
                continue
            following = said[len(word) :]
            if not (_latin(word[-1:]) and _latin(following[:1])):
                return (following.strip(),)
        return None

    return Route(arguments, 1)


def pattern(expression: str) -> Route:
    """Words that the regular expression matches as a whole. The handler gets its groups; a group without a match is
    empty."""
    compiled = re.compile(expression)

    def arguments(said: str) -> tuple[str, ...] | None:
        found = compiled.fullmatch(said)
        return None if found is None else tuple(group or "" for group in found.groups())

    return Route(arguments, compiled.groups)


class Router:
    """A handler that passes the message to the first route that fits, or else to `default`, if there is one."""

    def __init__(self, *routes: tuple[Route, Handler], default: Handler | None = None) -> None:
        """Raises HandlerError for what is no route, and for a handler that does not take its route's arguments."""
        self.routes, self._default = routes, default
        for each in routes:
            if not (isinstance(each, tuple) and len(each) == 2 and isinstance(each[0], Route)):
                raise HandlerError(f'{each!r:.80} is no route: write (exact("help"), answer)')
            route, handler = each
            takes_memory(handler, route.count)
        if default is not None:
            takes_memory(default)

    def answer(self, message: Message, recall: Recall) -> Outcome:
        """The outcome of the first handler that fits. Raises as `call()` does."""
        said = words_of(message)
        for route, handler in self.routes:
            arguments = route.arguments(said)
            if arguments is not None:
                return call(handler, message, recall, *arguments)
        return None if self._default is None else call(self._default, message, recall)


def words_of(message: Message) -> str:
    """The words that the routes compare, without white space around them."""
    if isinstance(message, TextMessage):
        return message.content.strip()
    if isinstance(message, VoiceMessage):
        return (message.recognition or "").strip().rstrip("。.!?！？")
    if isinstance(message, Event):
        return message.event_key.removeprefix("qrscene_").strip()
    return ""


def _folded(words: tuple[str, ...]) -> list[str]:
    for word in words:
        if not isinstance(word, str):
            raise HandlerError(f'{word!r:.80} is no word: write exact("help", "帮助"), for example')
    return [word.strip().casefold() for word in words]


def _latin(character: str) -> bool:
    return character.isascii() and character.isalnum()
