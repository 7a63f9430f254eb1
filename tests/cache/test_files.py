"""Files and rows: which goes first, what a kill between them leaves, and files that somebody put there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
from contextlib import contextmanager, suppress

import pytest

from chorus.cache import CacheUnavailable, EntryDamaged, EntryMissing, LocalCache, every
from chorus.cache.blobs import Blobs
from chorus.cache.format import PREFIX, _header_checksum, pack
from chorus.cache.record import write_record

from .sample import EMBEDDER, SPACE, assert_is_entry, new_entry, random_vector
from .test_processes import finish, posix

SECRET = "the lighthouse keeper's secret"


def blob(root, entry_id):
    return root / "blobs" / entry_id[:2] / f"{entry_id}.safetensors"


def held(root):
    """Bytes of all files of entries, in whatever state."""
    folders = [root / name for name in ("blobs", "partial", "quarantine")]
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def written(root):
    """Whether the secret is in any file."""
    return any(SECRET.encode() in path.read_bytes() for path in root.rglob("*") if path.is_file())


# -- the limit


def test_the_limit_holds_while_another_writer_is_deleting(open_cache, root, monkeypatch):
    """Its evicted files count until they are gone: others wait for them, or are refused."""
    limit = 2_000_000
    slow, quick = open_cache(max_bytes=limit, eviction="lru"), open_cache(max_bytes=limit, timeout=0.2)
    slow.put(new_entry(1, kilobytes=1750))
    deleting, go_on = threading.Event(), threading.Event()
    remove = Blobs.remove

    def stalled(self, entry_id):
        if self is slow._blobs:
            deleting.set()
            go_on.wait(30)
        remove(self, entry_id)

    monkeypatch.setattr(Blobs, "remove", stalled)
    thread = threading.Thread(target=slow.put, args=(new_entry(2, kilobytes=300),))
    thread.start()
    assert deleting.wait(30)
    most = held(root)
    for number in range(3, 8):
        with suppress(CacheUnavailable):
            quick.put(new_entry(number, kilobytes=300))
        most = max(most, held(root))
    go_on.set()
    thread.join()
    assert most <= limit
    assert quick.put(new_entry(9, kilobytes=300)).bytes + slow.find_request("request-2").bytes == held(root)


def test_a_file_that_cannot_be_deleted_keeps_its_room_and_goes_later(open_cache, root, monkeypatch):
    """As on Windows, while another program has it open."""
    cache = open_cache(max_bytes=1_000_000, eviction="lru")
    made = [cache.put(new_entry(n, kilobytes=300, prompt=SECRET if n == 0 else "")) for n in range(3)]
    remove = Blobs.remove

    def in_use(self, entry_id):
        if entry_id == made[0].id:
            raise PermissionError("in use")
        remove(self, entry_id)

    with monkeypatch.context() as patch:
        patch.setattr(Blobs, "remove", in_use)
        with pytest.raises(CacheUnavailable, match="in use"):
            cache.forget(made[0].id)
        assert cache.get(made[0].id) is None
        assert not any(SECRET.encode() in path.read_bytes() for path in root.glob("catalog*"))
        cache.put(new_entry(3, kilobytes=300))
        assert [entry.settings["number"] for entry in cache.entries()] == [3, 2]
        assert held(root) == cache.stats().bytes <= 1_000_000
        open_cache()
        assert cache.get(made[0].id) is None  # nor is it taken for a file that somebody put back
    cache.put(new_entry(4, kilobytes=300))
    assert [entry.settings["number"] for entry in cache.entries()] == [4, 3, 2]
    assert not blob(root, made[0].id).exists()


# -- a kill between a row and its file


@posix
@pytest.mark.parametrize("after", [False, True], ids=["before the file went", "after the file went"])
@pytest.mark.parametrize("how", ["forget", "clear"])
def test_what_was_being_forgotten_does_not_come_back(open_cache, root, how, after):
    cache = open_cache()
    secret, other = cache.put(new_entry(1, prompt=SECRET)), cache.put(new_entry(2))
    cache.close()
    child = os.fork()
    if child == 0:
        remove = Blobs.remove

        def killed(self, entry_id):
            if after or entry_id != secret.id:
                remove(self, entry_id)
            if entry_id == secret.id:
                os.kill(os.getpid(), signal.SIGKILL)

        Blobs.remove = killed
        cache = LocalCache(root)
        cache.forget(secret.id) if how == "forget" else cache.clear()
        os._exit(0)
    os.waitpid(child, 0)

    cache = open_cache()
    assert blob(root, secret.id).exists() is not after
    if after:
        with pytest.raises(EntryMissing):
            cache.load(secret.id)
        assert cache.get(secret.id) is None
    else:
        assert_is_entry(1, cache.load(secret.id))  # it has not been forgotten yet, and is shown
    cache.forget(secret.id)
    assert not written(root)
    left = cache.rebuild()
    assert left == 1 or how == "clear"
    assert {entry.id for entry in cache.entries()} <= {other.id}
    cache.close()
    assert len(open_cache().entries()) == left


@posix
def test_a_rebuild_that_was_killed_forgets_no_pins(open_cache, root):
    cache = open_cache()
    entry = cache.put(new_entry(1))
    cache.pin(entry.id)
    cache.record_hit(entry.id, 3.0)
    known = cache.stats()
    cache.close()
    child = os.fork()
    if child == 0:
        Blobs.headers = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
        LocalCache(root).rebuild()
        os._exit(0)
    os.waitpid(child, 0)
    assert (root / "catalog-2.sqlite").exists()
    cache = open_cache()
    assert [(found.id, found.pinned, found.hits) for found in cache.entries()] == [(entry.id, True, 1)]
    assert cache.stats() == known


def test_rows_whose_files_are_gone_go_at_the_next_start_unless_all_are(open_cache, root):
    cache = open_cache()
    made = [cache.put(new_entry(n)) for n in range(3)]
    cache.close()
    blob(root, made[1].id).unlink()
    assert open_cache().entries() == [made[2], made[0]]
    (root / "blobs").rename(root / "unmounted")
    assert open_cache().entries() == [made[2], made[0]]


# -- files that somebody put there


def test_files_that_are_put_back_are_entries_again(cache, open_cache, root, tmp_path):
    made = [cache.put(new_entry(n)) for n in range(3)]
    backup = tmp_path / "backup"
    shutil.copytree(root / "blobs", backup)
    os.utime(next(backup.rglob(f"{made[0].id}*")), (0, 0))
    cache.clear()
    cache.close()
    shutil.copytree(backup, root / "blobs", dirs_exist_ok=True)
    cache = open_cache()
    assert cache.entries() == made[::-1]
    assert cache.stats().bytes == held(root)
    for number, entry in enumerate(made):
        assert_is_entry(number, cache.load(entry.id))
        assert cache.search(random_vector(number), EMBEDDER, SPACE)[0].entry == entry


def test_a_folder_merged_into_another_keeps_to_the_limit_and_leaves_what_is_there(open_cache, root, tmp_path):
    cache = open_cache()
    pinned = cache.put(new_entry(1))
    cache.pin(pinned.id)
    cache.close()
    friend = LocalCache(tmp_path / "friend")
    theirs = [friend.put(new_entry(n)) for n in range(10, 15)]
    friend.close()
    shutil.copytree(tmp_path / "friend" / "blobs", root / "blobs", dirs_exist_ok=True)
    cache = open_cache(max_bytes=4 * pinned.bytes)
    assert cache.get(pinned.id).pinned
    assert {entry.id for entry in every(cache)} - {pinned.id} < {entry.id for entry in theirs}
    assert 3 <= cache.count() <= 4
    assert cache.stats().bytes == held(root) <= 4 * pinned.bytes


def with_header(content, change):
    """A file whose header was changed and has its own checksum again."""
    (length,) = PREFIX.unpack_from(content)
    header = json.loads(content[PREFIX.size : PREFIX.size + length])
    record = json.loads(header["__metadata__"]["record"])
    change(record, header["__metadata__"])
    header["__metadata__"]["record"] = json.dumps(record, sort_keys=True, separators=(",", ":"))
    header["__metadata__"]["header_sha256"] = _header_checksum(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return PREFIX.pack(len(text)) + text + content[PREFIX.size + length :]


@pytest.mark.parametrize(
    "change",
    [
        lambda record, metadata: record.pop("created"),
        lambda record, metadata: record.update(created="yesterday"),
        lambda record, metadata: record.update(space=None),
        lambda record, metadata: record.update(request="half \ud83d"),
        lambda record, metadata: record["space"].update(shape=5),
        lambda record, metadata: metadata.update(vector="AACAfwAAgH8="),  # infinity twice
        lambda record, metadata: metadata.update(vector=""),
    ],
    ids=["no time", "a word for a time", "no space", "half a character", "no shape", "infinite vector", "no vector"],
)
@pytest.mark.parametrize("lost", [False, True], ids=["merged", "catalog lost"])
def test_a_strange_file_costs_only_itself(open_cache, root, change, lost):
    cache = open_cache()
    kept = cache.put(new_entry(1))
    cache.close()
    strange = "5" * 32
    packed = pack(write_record(strange, 1.0, new_entry(2)), new_entry(2).vector, new_entry(2).tensors)
    path = blob(root, strange)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(with_header(packed.to_bytes(), change))
    if lost:
        (root / "catalog-1.sqlite").unlink()
    cache = open_cache()
    assert [entry.id for entry in cache.entries()] == [kept.id]
    assert_is_entry(1, cache.load(kept.id))
    assert not path.exists()
    assert (root / "quarantine" / path.name).exists()


def test_a_file_of_a_newer_chorus_is_left_where_it_is(cache, open_cache, root):
    packed = pack(write_record("5" * 32, 1.0, new_entry(2)), new_entry(2).vector, new_entry(2).tensors)
    path = blob(root, "5" * 32)
    path.parent.mkdir()
    path.write_bytes(with_header(packed.to_bytes(), lambda _, metadata: metadata.update(chorus_format="99")))
    os.utime(path, (0, 0))
    assert open_cache().entries() == []
    assert path.exists()


def test_other_files_in_the_folder_are_left_alone(cache, open_cache, root):
    others = [root / "blobs" / "README.txt", root / "blobs" / "ab" / "notes.safetensors"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        os.utime(path, (0, 0))
    (root / "blobs" / "loop").symlink_to(root / "blobs", target_is_directory=True)
    cache = open_cache()
    assert cache.rebuild() == 0
    assert all(path.exists() for path in others)


# -- what is no file


def fifo(path):
    os.mkfifo(path)


def a_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path may have about a hundred characters
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


def folder(path):
    path.mkdir()
    (path / "inside").write_text("x")


def device(path):
    path.symlink_to("/dev/null")


@contextmanager
def within(seconds):
    """TimeoutError in the body, whatever it waits for, once it takes longer."""

    def over(*arguments):
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@posix
@pytest.mark.parametrize("replace_by", [fifo, a_socket, folder, device])
def test_what_is_no_file_is_damage_and_keeps_nobody_waiting(cache, open_cache, root, replace_by):
    entry, other, third = (cache.put(new_entry(n)) for n in range(3))
    for made in (entry, other):
        blob(root, made.id).unlink()
        replace_by(blob(root, made.id))
    with within(20):
        with pytest.raises(EntryDamaged, match="not a regular file"):
            cache.load(entry.id)
        assert not os.path.lexists(blob(root, entry.id))
        cache.forget(other.id)
        assert not os.path.lexists(blob(root, other.id))
        replace_by(blob(root, other.id))
        assert cache.rebuild() == 1
        assert open_cache().entries() == [third]
        cache.clear()
    assert not any((root / "blobs").glob("*/*"))
    assert not any((root / "quarantine").iterdir())


# -- a full disk


@posix
def test_on_a_full_disk_entries_can_be_read_forgotten_and_cleared_after_a_restart_too(start, tmp_path):
    process = start("full_disk_forget.py", tmp_path / "disk")
    output = finish(process)
    if "no mount" in output:
        pytest.skip("needs the right to mount a small disk")
    assert output.splitlines()[-1] == "done"
