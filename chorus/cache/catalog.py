"""The SQLite file that is the truth about what the cache holds: opening, migrating, recovering it.

The file is `catalog-<n>.sqlite`, and the highest n counts. A damaged one is never renamed over or rebuilt in
place, because another process may still have it open and SQLite finds a database's journal by its name; its
successor gets the next number, takes over the entries' files as if it found them, and what the old one still
tells of pins and hits.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..log import logger
from ..messages import say
from .errors import CacheUnavailable
from .recollection import recollect
from .schema import MIGRATIONS, expected_tables, tables
from .transaction import Transaction

log = logger(__name__)

APPLICATION_ID = 0x43485253  # "CHRS", so that no other program's database is taken for a catalog
POLL = 0.01  # seconds between two tries to write while another process does
_NAME = re.compile(r"catalog-(\d+)\.sqlite(-wal|-shm)?")


class _Damaged(Exception):
    """The file cannot be used as a catalog and can be replaced without loss."""


class Catalog:
    """Transactions on the newest catalog file of a cache folder.

    root: the cache folder. timeout: longest wait for another process's lock, in seconds.
    adopt: adds rows for the files that have none; called when a new catalog is begun.

    One connection, one lock: any number of threads may use it, one transaction at a time. A thread that waits for
    another process to write does not keep the others from reading. Other processes are noticed at every transaction,
    a replaced catalog too. All failures are CacheUnavailable. In a folder that cannot be written to, a catalog that
    nobody has open is read as it is.
    """

    def __init__(self, root: Path, timeout: float, adopt: Callable[[Transaction], None]):
        self._root = root
        self._timeout = timeout
        self._adopt = adopt
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._path = root
        self._successor = root
        self._inode: int | None = None
        self._suspect = False
        self._passing = False  # the connection is for one transaction
        self._closed = False
        self.generation = 0  # changes whenever another file became the catalog
        with self._lock:
            self._connection()

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """A consistent view of the catalog; never waits for writers."""
        with self._lock, self._explained():
            db = self._connection()
            db.execute("BEGIN")
            with self._transaction(db) as transaction:
                yield transaction

    @contextmanager
    def writing(self) -> Iterator[Transaction]:
        """All of the changes made in it, or none; one writer at a time among all processes."""
        with self._lock, self._explained(), self._transaction(self._begun_to_write()) as transaction:
            yield transaction

    def shrink_journal(self) -> None:
        """Empty the write-ahead log, so that deleted text is nowhere on disk. Open readers may delay it."""
        with self._lock, self._explained():
            self._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def rebuild(self) -> None:
        """Begin a new catalog from the blobs, whatever the state of this one; pins and hits that it tells stay."""
        with self._lock:
            self._connection()
            self._disconnect()
            with self._alone():
                self._db = self._replace()
                self._set_aside_older()
            self.generation += 1

    def close(self) -> None:
        """Close the file. Every later call raises CacheUnavailable."""
        with self._lock:
            self._disconnect()
            self._closed = True

    # -- transactions

    @contextmanager
    def _transaction(self, db: sqlite3.Connection) -> Iterator[Transaction]:
        try:
            yield Transaction(db)
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
            if self._passing:
                self._disconnect()

    def _begun_to_write(self) -> sqlite3.Connection:
        """A connection whose transaction may write; only while `_lock` is held, which is lent out while waiting."""
        end = time.monotonic() + self._timeout
        while True:
            db = self._connection()
            try:
                db.execute("PRAGMA busy_timeout = 0")
                db.execute("BEGIN IMMEDIATE")
                return db
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= end:
                    raise
            finally:
                db.execute(f"PRAGMA busy_timeout = {round(1000 * self._timeout)}")
            self._lock.release()
            try:
                time.sleep(POLL)
            finally:
                self._lock.acquire()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn SQLite's errors into CacheUnavailable; after damage the next transaction checks the file."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if _is_damage(error):
                self._disconnect()
                self._suspect = True
            raise self._unavailable(error) from error
        except OSError as error:
            raise CacheUnavailable.of_disk(self._path, error) from error
        except _Damaged as error:
            raise CacheUnavailable(self._path, str(error), say("advice.disk")) from error

    def _unavailable(self, error: sqlite3.Error | UnicodeDecodeError) -> CacheUnavailable:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return CacheUnavailable(self._path, say("reason.locked", seconds=self._timeout), say("advice.tried_again"))
        if _is_damage(error):
            return CacheUnavailable(self._path, say("reason.catalog", error=error), say("advice.rebuilt"))
        if code == sqlite3.SQLITE_FULL:
            return CacheUnavailable(self._path, say("reason.disk_full", error=error), say("advice.space"))
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            return CacheUnavailable(self._path, say("reason.not_permitted", error=error), say("advice.permissions"))
        return CacheUnavailable(self._path, say("reason.sqlite", error=error), say("advice.disk"))

    # -- opening

    def _connection(self) -> sqlite3.Connection:
        if self._closed:
            raise CacheUnavailable(self._root, say("reason.closed"), say("advice.reopen"))
        if self._db is not None and (self._successor.exists() or self._inode != _inode(self._path)):
            self._disconnect()
        if self._db is None:
            with self._alone():
                try:
                    self._db = self._open(self._newest())
                except _Damaged as damage:
                    log.error(
                        "The catalog %s is damaged (%s): a new one is made from the cached files",
                        self._path,
                        damage,
                    )
                    self._db = self._replace()
                self._set_aside_older()
            self.generation += 1
        return self._db

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """A lock between processes: only one at a time opens, migrates or rebuilds. It ends with the process."""
        if not _writable(self._root):  # nothing is migrated or rebuilt there, and so nobody to wait for
            with self._explained():
                yield
            return
        with self._explained():
            self._root.mkdir(parents=True, exist_ok=True)
            guard = sqlite3.connect(self._root / "opening.lock", timeout=self._timeout, isolation_level=None)
            try:
                guard.execute("PRAGMA journal_mode = MEMORY")  # a full disk has no room for another
                guard.execute("BEGIN EXCLUSIVE")
                yield
            finally:
                guard.close()

    def _newest(self) -> int:
        return max((number for path in self._root.iterdir() if (number := _number(path))), default=1)

    def _open(self, number: int, passing: bool = False) -> sqlite3.Connection:
        """passing: without the file (`-shm`) by which processes share a catalog, so only for one transaction."""
        self._path = self._root / f"catalog-{number}.sqlite"
        self._successor = self._root / f"catalog-{number + 1}.sqlite"
        target, uri = str(self._path), False
        if not _writable(self._root) and not self._path.with_name(f"{self._path.name}-wal").exists():
            # SQLite cannot make the files that it shares with others; without a journal there is nothing in them.
            target, uri = f"{self._path.absolute().as_uri()}?immutable=1", True
        db = sqlite3.connect(target, uri=uri, timeout=self._timeout, isolation_level=None, check_same_thread=False)
        try:
            # Flipped bits may not be UTF-8; they are for the row's checksum to find.
            db.text_factory = lambda raw: raw.decode("utf-8", "replace")
            if passing:
                db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._prepare(db)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            db.close()
            if _is_damage(error):
                raise _Damaged(error) from error
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHMSIZE and not passing:
                return self._open(number, passing=True)  # a full disk: what is there can be read and deleted
            raise
        except BaseException:
            db.close()
            raise
        self._inode = _inode(self._path)
        self._suspect, self._passing = False, passing
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        def pragma(name: str):
            return db.execute(f"PRAGMA {name}").fetchone()[0]

        version, application = pragma("user_version"), pragma("application_id")
        empty = not db.execute("SELECT 1 FROM sqlite_master").fetchone()
        if not empty and application != APPLICATION_ID:
            raise CacheUnavailable(self._path, say("reason.foreign"), say("advice.other_folder"))
        if version > len(MIGRATIONS):
            reason = say("reason.newer", version=version, known=len(MIGRATIONS))
            raise CacheUnavailable(self._path, reason, say("advice.update"))
        if not _writable(self._root):
            if version < len(MIGRATIONS) or self._suspect:
                raise CacheUnavailable(self._path, say("reason.old"), say("advice.permissions"))
            return
        if self._suspect and (found := pragma("integrity_check(1)")) != "ok":
            raise _Damaged(found)
        if pragma("journal_mode = WAL") != "wal":
            raise CacheUnavailable(self._path, say("reason.file_system"), say("advice.local_disk"))
        db.execute("PRAGMA synchronous = NORMAL")  # a power cut may undo the last commits, never damage the file
        db.execute("PRAGMA secure_delete = ON")  # a forgotten prompt is overwritten
        db.execute(f"PRAGMA journal_size_limit = {4 * 2**20}")
        if empty or version < len(MIGRATIONS):
            self._migrate(db, version, empty)
        if tables(db) != expected_tables():
            raise _Damaged("its tables are not those of this version")
        for table in ("totals", "usage", "eviction"):
            if db.execute(f"SELECT count(*) FROM {table}").fetchone() != (1,):
                raise _Damaged(f"its table {table} does not have one row")

    def _migrate(self, db: sqlite3.Connection, version: int, empty: bool) -> None:
        db.execute("BEGIN IMMEDIATE")
        try:
            for statements in MIGRATIONS[version:]:
                for statement in statements:
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            transaction = Transaction(db)
            if empty:
                past = recollect(self._root / f"catalog-{_number(self._path) - 1}.sqlite", self._timeout)
                if past.version:
                    transaction.start_above(past.version)
                self._adopt(transaction)
                transaction.recall(past)
            else:
                transaction.relist()
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")

    def _replace(self) -> sqlite3.Connection:
        """Begin the next catalog; only while `_alone`."""
        self._suspect = False
        return self._open(_number(self._path) + 1)

    def _set_aside_older(self) -> None:
        current = _number(self._path)
        for path in self._root.glob("catalog-*.sqlite*"):
            if 0 < _number(path) < current:
                try:
                    os.replace(path, self._root / "quarantine" / path.name)
                except OSError as error:  # Windows, while another process has it open
                    log.warning("%s stays where it is, unused: %s", path, error)

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def _number(path: Path) -> int:
    """The n of a catalog's files, 0 for any other file."""
    found = _NAME.fullmatch(path.name)
    return int(found[1]) if found else 0


def _writable(folder: Path) -> bool:
    """Whether files can be made there, or the folder itself where there is none yet."""
    return os.access(folder, os.W_OK) or not folder.exists()


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _is_damage(error: sqlite3.Error | UnicodeDecodeError) -> bool:
    if isinstance(error, UnicodeDecodeError):  # SQLite's own message quoted flipped bits
        return True
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
