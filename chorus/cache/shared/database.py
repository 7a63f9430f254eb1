"""Connections to PostgreSQL that never hang: every wait has an end, and every failure is CacheUnavailable."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from ...messages import say
from ..errors import CacheUnavailable
from .breaker import Breaker
from .schema import MIGRATIONS
from .settings import Settings

WAIT = 1.0  # seconds for a connection
DEADLINE = 2.0  # seconds for a look-up, measured here: a stopped server would not end it
CHANGE = 8.0  # seconds for a transaction that changes what can be found, once it has begun
LOCK = 5.0  # seconds for another worker's lock, measured by the server; look-ups need none
STATEMENT = 6.0  # seconds for a statement, measured by the server
MIGRATION = 30.0  # seconds for making tables, at the first transaction of all
PAUSE = 5.0  # seconds after a fault in which nothing is sent
_MIGRATION_LOCK = 0x43485253  # "CHRS": one worker at a time makes tables


class Database:
    """Transactions as one tenant. Safe for any number of threads.

    A fault costs its caller about two seconds; those after it are answered at once for `PAUSE` seconds, then one
    tries again. Connections that broke are replaced, so a restarted server is found without restarting the worker.
    """

    def __init__(self, settings: Settings, *, connections: int = 4):
        self.place = settings.place
        self._settings = settings
        self._breaker = Breaker(PAUSE)
        self._lock = threading.Lock()
        self._migrated = self._closed = False
        self._refusal = ""  # what the server said to the last attempt to connect
        self._pool: ConnectionPool = ConnectionPool(
            settings.url,
            connection_class=_reporting(self._note_attempt),
            kwargs={
                "autocommit": True,
                "connect_timeout": 2,  # the shortest that libpq knows
                "prepare_threshold": None,  # a plan for these very values, which partial indexes need
                "application_name": "chorus",
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 2,
                "tcp_user_timeout": 5000,
            },
            min_size=0,
            max_size=connections,
            timeout=WAIT,
            reconnect_timeout=WAIT,
            configure=self._configure,
            open=False,
            name="chorus",
        )

    @contextmanager
    def transaction(self, seconds: float = DEADLINE) -> Iterator[psycopg.Connection]:
        """All of the changes made in it, or none. seconds: until it is cut off."""
        if not self._breaker.allows():
            raise CacheUnavailable(self.place, self._breaker.reason, say("advice.soon"))
        try:
            with self._begun() as connection, _cut_off_after(seconds, connection):
                yield connection
                connection.execute("COMMIT")
        except (psycopg.Error, PoolTimeout, PoolClosed, OSError) as error:
            raise self._unavailable(error) from None  # whose text may quote what it was given
        except BaseException:
            self._breaker.closed()
            raise
        self._breaker.closed()

    def close(self) -> None:
        """Let go of all connections; whatever follows is CacheUnavailable."""
        with self._lock:
            self._closed = True
            self._pool.close(timeout=1.0)

    # -- connections

    @contextmanager
    def _begun(self) -> Iterator[psycopg.Connection]:
        """A connection in a transaction. Those that a restarted server has cut are thrown away on the way."""
        self._open()
        deadline = time.monotonic() + DEADLINE
        while True:
            connection = self._pool.getconn()
            try:
                with _cut_off_after(deadline - time.monotonic(), connection):
                    connection.execute("BEGIN")
                if not self._migrated:
                    with _cut_off_after(MIGRATION, connection):
                        self._migrate(connection)
                break
            except psycopg.OperationalError:  # not TimeoutError: it has waited long enough
                broken = connection.broken
                self._put_back(connection)
                if not broken or time.monotonic() > deadline - WAIT:
                    raise
            except BaseException:
                self._put_back(connection)
                raise
        try:
            yield connection
        finally:
            self._put_back(connection)

    def _put_back(self, connection: psycopg.Connection) -> None:
        """Undo what was not committed, and give the connection to the pool, which replaces a broken one."""
        with suppress(psycopg.Error, TimeoutError), _cut_off_after(WAIT, connection):
            connection.rollback()
        self._pool.putconn(connection)

    def _open(self) -> None:
        with self._lock:
            if self._closed:
                raise CacheUnavailable(self.place, say("reason.closed"), say("advice.reopen"))
            if self._pool.closed:
                self._pool.open()

    def _configure(self, connection: psycopg.Connection) -> None:
        with _cut_off_after(DEADLINE, connection):
            connection.execute(
                "SELECT set_config('chorus.tenant', %s, false), set_config('statement_timeout', %s, false),"
                " set_config('lock_timeout', %s, false),"
                " set_config('idle_in_transaction_session_timeout', %s, false),"
                " set_config('hnsw.iterative_scan', 'strict_order', false), set_config('hnsw.ef_search', '100', false),"
                " set_config('timezone', 'UTC', false)",
                (self._settings.tenant, f"{STATEMENT}s", f"{LOCK}s", f"{CHANGE}s"),
            )

    def _note_attempt(self, refusal: str) -> None:
        self._refusal = self._settings.redacted(refusal)

    # -- tables

    def _migrate(self, connection: psycopg.Connection) -> None:
        """Make or check the tables, at the first transaction of this worker."""
        version = _version(connection)
        if version > len(MIGRATIONS):
            reason = say("reason.newer", version=version, known=len(MIGRATIONS))
            raise CacheUnavailable(self.place, reason, say("advice.update"))
        if version < len(MIGRATIONS):
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
            try:
                _make_tables(connection, _version(connection))
            except psycopg.errors.InsufficientPrivilege as error:
                reason = say("reason.tables", error=error.diag.message_primary)
                raise CacheUnavailable(self.place, reason, say("advice.owner")) from None
            connection.execute("COMMIT")
            connection.execute("BEGIN")
        self._migrated = True

    def _unavailable(self, error: Exception) -> CacheUnavailable:
        text = self._settings.redacted(" ".join(str(error).split()))
        if isinstance(error, psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected):
            self._breaker.closed()
            return CacheUnavailable(self.place, say("reason.locked_by_worker", seconds=LOCK), say("advice.tried_again"))
        if isinstance(error, psycopg.OperationalError | PoolTimeout | PoolClosed | OSError):
            if isinstance(error, PoolTimeout):
                text = self._refusal or f"no connection within {WAIT:g} s"
            reason = say("reason.database_away", error=text)
            self._breaker.opened(reason)
            return CacheUnavailable(self.place, reason, say("advice.soon"))
        self._breaker.closed()
        return CacheUnavailable(self.place, say("reason.postgres", error=text), say("advice.set_up"))


def _version(connection: psycopg.Connection) -> int:
    """Of the tables, 0 where there are none."""
    ((missing,),) = connection.execute("SELECT to_regclass('chorus.version') IS NULL").fetchall()
    if missing:
        return 0
    ((number,),) = connection.execute("SELECT number FROM chorus.version").fetchall()
    return number


def _make_tables(connection: psycopg.Connection, version: int) -> None:
    if version == 0:
        connection.execute("CREATE SCHEMA IF NOT EXISTS chorus")
        connection.execute("CREATE TABLE chorus.version (number integer NOT NULL)")
        connection.execute("INSERT INTO chorus.version VALUES (0)")
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            connection.execute(statement)
    connection.execute("UPDATE chorus.version SET number = %s", (len(MIGRATIONS),))


def _reporting(note: Callable[[str], None]) -> type[psycopg.Connection]:
    """A connection class that tells why it could not connect; the pool only knows that it took too long."""

    class Reporting(psycopg.Connection):
        @classmethod
        def connect(cls, *arguments: Any, **options: Any) -> Any:
            try:
                connection = super().connect(*arguments, **options)
            except Exception as error:
                note(" ".join(str(error).split()))
                raise
            note("")
            return connection

    return Reporting


def _not_ours(record: logging.LogRecord) -> bool:
    """The pool's warnings say again, at every attempt, what the CacheUnavailable said."""
    return "chorus" not in record.getMessage()


logging.getLogger("psycopg.pool").addFilter(_not_ours)


@contextmanager
def _cut_off_after(seconds: float, connection: psycopg.Connection) -> Iterator[None]:
    """Shut the connection's socket when the body takes longer, which ends every wait for it.

    TimeoutError then, whatever the body raised.
    """
    lock, over, cut_off = threading.Lock(), False, False

    def cut() -> None:
        nonlocal cut_off
        with lock:
            if over or connection.closed:
                return
            cut_off = True
            with suppress(OSError, psycopg.Error):  # the other side was faster
                handle = socket.socket(fileno=connection.fileno())
                try:
                    handle.shutdown(socket.SHUT_RDWR)
                finally:
                    handle.detach()  # it stays the connection's

    timer = threading.Timer(max(0.05, seconds), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except psycopg.Error as error:
        if cut_off:
            raise TimeoutError(f"no answer within {seconds:.3g} s") from error
        raise
    finally:
        timer.cancel()
        with lock:
            over = True
