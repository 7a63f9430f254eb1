"""The SQLite file that is the truth about what the cache holds: opening, migrating, recovering it.

The file is `catalog-<n>.sqlite`, and the highest n counts. A damaged one is never renamed over or rebuilt in
place, because another process may still have it open and SQLite finds a database's journal by its name; its
successor gets the next number, and is filled from the headers of the blobs and what the old one still tells of
pins and hits.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .blobs import Header
from .errors import CacheUnavailable
from .recollection import Recollection, recollect
from .schema import MIGRATIONS, expected_tables, tables
from .transaction import Transaction

log = logging.getLogger(__name__)

APPLICATION_ID = 0x43485253  # "CHRS", so that no other program's database is taken for a catalog
_NAME = re.compile(r"catalog-(\d+)\.sqlite(-wal|-shm)?")


class _Damaged(Exception):
    """The file cannot be used as a catalog and can be replaced without loss."""


class Catalog:
    """Transactions on the newest catalog file of a cache folder.

    root: the cache folder. timeout: longest wait for another process's lock, in seconds.
    refill: yields the headers of all blobs; called when a new catalog is begun.

    One connection, one lock: any number of threads may use it, one transaction at a time. Other processes are
    noticed at every transaction, a replaced catalog too. All failures are CacheUnavailable.
    """

    def __init__(self, root: Path, timeout: float, refill: Callable[[], Iterable[Header]]):
        self._root = root
        self._timeout = timeout
        self._refill = refill
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._path = root
        self._successor = root
        self._inode: int | None = None
        self._suspect = False
        self._past = Recollection()  # of the catalog that is being replaced
        self._closed = False
        self.generation = 0  # changes whenever another file became the catalog
        with self._lock:
            self._connection()

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """A consistent view of the catalog; never waits for writers."""
        with self._transaction("BEGIN") as transaction:
            yield transaction

    @contextmanager
    def writing(self) -> Iterator[Transaction]:
        """All of the changes made in it, or none; one writer at a time among all processes."""
        with self._transaction("BEGIN IMMEDIATE") as transaction:
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
        """Let go of the file; whatever follows is CacheUnavailable."""
        with self._lock:
            self._disconnect()
            self._closed = True

    # -- transactions

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Transaction]:
        with self._lock, self._explained():
            db = self._connection()
            db.execute(begin)
            try:
                yield Transaction(db)
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

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
        except (_Damaged, OSError) as error:
            raise CacheUnavailable(self._path, str(error), "Check the disk and the folder's permissions.") from error

    def _unavailable(self, error: sqlite3.Error | UnicodeDecodeError) -> CacheUnavailable:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            reason = f"another process kept it locked for more than {self._timeout:g} s"
            return CacheUnavailable(self._path, reason, "It is tried again with the next request.")
        if _is_damage(error):
            advice = "It is checked, and rebuilt from the cached files, with the next request."
            return CacheUnavailable(self._path, f"the catalog is damaged ({error})", advice)
        return CacheUnavailable(self._path, f"SQLite says: {error}", "Check free space and permissions of the folder.")

    # -- opening

    def _connection(self) -> sqlite3.Connection:
        if self._closed:
            raise CacheUnavailable(self._root, "it was closed", "Open it again.")
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
        """Only one process at a time opens, migrates or rebuilds. The lock ends with the process."""
        with self._explained():
            self._root.mkdir(parents=True, exist_ok=True)
            guard = sqlite3.connect(self._root / "opening.lock", timeout=self._timeout, isolation_level=None)
            try:
                guard.execute("BEGIN EXCLUSIVE")
                yield
            finally:
                guard.close()

    def _newest(self) -> int:
        return max((number for path in self._root.iterdir() if (number := _number(path))), default=1)

    def _open(self, number: int) -> sqlite3.Connection:
        self._path = self._root / f"catalog-{number}.sqlite"
        self._successor = self._root / f"catalog-{number + 1}.sqlite"
        db = sqlite3.connect(self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False)
        try:
            # Flipped bits may not be UTF-8; they are for the row's checksum to find.
            db.text_factory = lambda raw: raw.decode("utf-8", "replace")
            self._prepare(db)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            db.close()
            if _is_damage(error):
                raise _Damaged(error) from error
            raise
        except BaseException:
            db.close()
            raise
        self._inode = _inode(self._path)
        self._suspect = False
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        def pragma(name: str):
            return db.execute(f"PRAGMA {name}").fetchone()[0]

        version, application = pragma("user_version"), pragma("application_id")
        empty = not db.execute("SELECT 1 FROM sqlite_master").fetchone()
        if not empty and application != APPLICATION_ID:
            raise CacheUnavailable(self._path, "the file is another program's database", "Choose another cache folder.")
        if version > len(MIGRATIONS):
            reason = f"a newer Chorus made it (catalog version {version}, this one knows {len(MIGRATIONS)})"
            raise CacheUnavailable(self._path, reason, "Update Chorus, or choose another cache folder.")
        if self._suspect and (found := pragma("integrity_check(1)")) != "ok":
            raise _Damaged(found)
        if pragma("journal_mode = WAL") != "wal":
            reason = "its file system cannot hold a shared SQLite database"
            raise CacheUnavailable(self._path, reason, "Choose a cache folder on a local disk.")
        db.execute("PRAGMA synchronous = NORMAL")  # a power cut may undo the last commits, never damage the file
        db.execute("PRAGMA secure_delete = ON")  # a forgotten prompt is overwritten
        db.execute(f"PRAGMA journal_size_limit = {4 * 2**20}")
        if empty or version < len(MIGRATIONS):
            self._migrate(db, version, empty)
        if tables(db) != expected_tables():
            raise _Damaged("its tables are not those of this version")

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
                headers = sorted(self._refill(), key=lambda header: json.loads(header.record)["created"])
                if self._past.version:
                    transaction.start_above(self._past.version)
                for header in headers:
                    transaction.insert(header.record, header.vector, header.digest, header.size)
                transaction.recall(self._past)
                if headers:
                    log.warning("The catalog %s was rebuilt from %d cached files", self._path, len(headers))
            else:
                transaction.relist()
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")

    def _replace(self) -> sqlite3.Connection:
        """Begin the next catalog; only while `_alone`."""
        self._suspect = False
        self._past = recollect(self._path, self._timeout)
        try:
            return self._open(_number(self._path) + 1)
        finally:
            self._past = Recollection()

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
