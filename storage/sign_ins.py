"""How often the gallery's password was tried, and which sessions were signed out: one truth for all processes.

Knows counters that begin anew when their time is over. Must not know passwords, cookies or who is asking: an address
is a name to count under.
"""

from sqlalchemy import ColumnElement, Connection, Double, bindparam, case, delete, not_, or_, select, update

from storage.database import Database
from storage.models import ended_sessions, sign_in_attempts

WINDOW_SECONDS = 900.0
PER_ADDRESS, IN_ALL = 10, 100
"""How many tries one address has within a window, and everybody together."""

_EVERYBODY = "*"
_columns = sign_in_attempts.c


class SignIns:
    """Every method raises DatabaseUnavailableError when the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database
        now: ColumnElement[float] = bindparam("now", type_=Double)
        over = _over(now)
        counted = database.insert(sign_in_attempts).values(address=bindparam("who"), first_at=now, count=1)
        self._count = counted.on_conflict_do_update(
            index_elements=[_columns.address],
            set_={
                "first_at": case((over, now), else_=_columns.first_at),
                "count": case((over, 1), else_=_columns.count + 1),
            },
        ).returning(_columns.count)
        self._end = database.insert(ended_sessions).on_conflict_do_nothing()

    def try_one(self, address: str, now: float) -> float:
        """Count a try before it is made. Returns 0 when it may be made, else in how many seconds there is one again.

        What is refused is not counted and writes nothing: however often somebody knocks, the database has no work
        by it, and nobody else is kept out.
        """
        seconds = self._database.run(lambda connection: _wait(connection, address, now))
        if seconds:
            return seconds

        def count(connection: Connection) -> float:
            connection.execute(delete(sign_in_attempts).where(_over(now)))
            tries = [
                connection.execute(self._count, {"who": who, "now": now}).scalar_one()
                for who in (_EVERYBODY, address)  # in this order everywhere, or two could wait for each other
            ]
            # Others may have come in between: of those at the border the first ones counted are let through.
            return 0.0 if tries[0] <= IN_ALL and tries[1] <= PER_ADDRESS else WINDOW_SECONDS

        return self._database.transact(count)

    def forgive(self, address: str) -> None:
        """The password was right: this address begins anew, and the try does not count for the others."""

        def forget(connection: Connection) -> None:
            connection.execute(
                update(sign_in_attempts)
                .where(_columns.address == _EVERYBODY)
                .values({_columns.count: _columns.count - 1})
            )
            connection.execute(delete(sign_in_attempts).where(_columns.address == address))

        self._database.transact(forget)

    def end(self, session: str, until: float, now: float) -> None:
        """This session is signed out; it is remembered until it would have ended by itself."""

        def remember(connection: Connection) -> None:
            connection.execute(delete(ended_sessions).where(ended_sessions.c.until <= now))
            connection.execute(self._end, {"session": session, "until": until})

        self._database.transact(remember)

    def has_ended(self, session: str) -> bool:
        """Whether this session was signed out."""
        statement = select(ended_sessions.c.session).where(ended_sessions.c.session == session)
        return self._database.run(lambda connection: connection.execute(statement).first() is not None)


def _wait(connection: Connection, address: str, now: float) -> float:
    """In how many seconds there is a try again; 0 for now."""
    statement = select(_columns.address, _columns.first_at, _columns.count).where(
        _columns.address.in_((address, _EVERYBODY)), not_(_over(now))
    )
    seconds = 0.0
    for who, first_at, tries in connection.execute(statement):
        if tries >= (IN_ALL if who == _EVERYBODY else PER_ADDRESS):
            seconds = max(seconds, first_at + WINDOW_SECONDS - now)
    return seconds


def _over(now: float | ColumnElement[float]) -> ColumnElement[bool]:
    """The window's end has come; or a clock that ran ahead began it, and nobody is kept out until that time."""
    return or_(_columns.first_at <= now - WINDOW_SECONDS, _columns.first_at > now + WINDOW_SECONDS)
