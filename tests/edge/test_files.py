"""Digests of files: read once, remembered, and never those of an earlier content."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def files(pack_module):
    return pack_module("chorus.comfy.files")


@pytest.fixture
def read(files) -> Callable[[], int]:
    """The bytes of files and tensors that were read for digests since the last call."""
    last = [files.counter.bytes]

    def since() -> int:
        now = files.counter.bytes
        bytes_read, last[0] = now - last[0], now
        return bytes_read

    return since


@pytest.fixture
def model(tmp_path) -> Path:
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(range(256)) * 1000)
    return file


def changed(file: Path, content: bytes) -> None:
    """Overwrite a file, at another time than before."""
    before = file.stat().st_mtime_ns
    file.write_bytes(content)
    os.utime(file, ns=(before + 10**9, before + 10**9))


def test_the_digest_is_that_of_the_content(files, tmp_path, model):
    copy = tmp_path / "copy"
    copy.write_bytes(model.read_bytes())
    other = tmp_path / "other"
    other.write_bytes(model.read_bytes()[:-1] + b"\0")
    digests = files.FileDigests(None)
    assert digests.of(model) == digests.of(copy) != digests.of(other)
    assert digests.of(str(model)) == digests.of(model)


def test_an_empty_file_has_a_digest(files, tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "zero").write_bytes(b"\0")
    digests = files.FileDigests(None)
    assert digests.of(tmp_path / "empty") != digests.of(tmp_path / "zero")


def test_a_file_is_read_once(files, model, read):
    digests = files.FileDigests(None)
    read()
    first = digests.of(model)
    assert read() == model.stat().st_size
    assert digests.of(model) == first and digests.begin(model).result() == first
    assert read() == 0


def test_a_link_to_a_file_is_the_file(files, tmp_path, model, read):
    link = tmp_path / "link"
    try:
        link.symlink_to(model)
    except OSError:
        pytest.skip("this system lets nobody make links")
    digests = files.FileDigests(None)
    first = digests.of(model)
    read()
    assert digests.of(link) == first and read() == 0


def test_a_changed_file_is_noticed(files, model):
    digests = files.FileDigests(None)
    content = model.read_bytes()
    first = digests.of(model)
    changed(model, content[::-1])
    other = digests.of(model)
    assert other != first
    changed(model, content)
    assert digests.of(model) == first


def test_another_file_under_the_same_name_and_time_but_of_another_size_is_noticed(files, model):
    digests = files.FileDigests(None)
    first, when = digests.of(model), model.stat().st_mtime_ns
    model.write_bytes(model.read_bytes() + b"\0")
    os.utime(model, ns=(when, when))
    assert digests.of(model) != first


@pytest.mark.parametrize("content", [None, b""])
def test_a_missing_file_raises(files, tmp_path, content):
    digests = files.FileDigests(None)
    for ask in (digests.of, digests.begin):
        with pytest.raises(FileNotFoundError):
            ask(tmp_path / "nowhere")
    if content is not None:  # it may come later
        (tmp_path / "nowhere").write_bytes(content)
        assert digests.of(tmp_path / "nowhere")


def test_a_file_that_cannot_be_read_raises_each_time(files, tmp_path):
    digests = files.FileDigests(None)
    for _ in range(2):
        with pytest.raises(OSError):
            digests.of(tmp_path)  # a folder


# -- is a loaded model what its file holds now? ------------------------------------------------------------------


def test_a_file_that_a_graph_named_is_as_it_was_loaded_until_it_changes(files, model):
    digests = files.FileDigests(None)
    digests.note(model)
    assert digests.is_as_loaded(model)
    changed(model, model.read_bytes()[::-1])
    assert not digests.is_as_loaded(model)
    digests.note(model)  # the next graph names it, but the model in memory may be the earlier one
    assert not digests.is_as_loaded(model)


def test_a_replaced_file_is_noticed_though_it_takes_over_size_and_time(files, tmp_path, model):
    digests = files.FileDigests(None)
    digests.note(model)
    found = model.stat()
    replacement = tmp_path / "replacement"
    replacement.write_bytes(model.read_bytes()[::-1])
    os.utime(replacement, ns=(found.st_atime_ns, found.st_mtime_ns))
    os.replace(replacement, model)
    assert (model.stat().st_size, model.stat().st_mtime_ns) == (found.st_size, found.st_mtime_ns)
    assert not digests.is_as_loaded(model)


def test_of_files_that_no_graph_named_only_older_ones_than_the_process_are_sure(files, model, checkout):
    digests = files.FileDigests(None)
    assert not digests.is_as_loaded(model)
    os.utime(model, ns=(0, 0))  # a copy that keeps its time is young all the same
    assert not digests.is_as_loaded(model) or os.name == "nt"
    assert digests.is_as_loaded(checkout / "pyproject.toml")


# -- after a restart --------------------------------------------------------------------------------------------


def test_digests_are_remembered_after_a_restart(files, tmp_path, model, read):
    memory = tmp_path / "private" / "files.json"
    first = files.FileDigests(memory).of(model)
    read()
    assert files.FileDigests(memory).of(model) == first
    assert read() == 0


def test_what_is_remembered_of_a_file_that_changed_since_does_not_count(files, tmp_path, model):
    memory = tmp_path / "files.json"
    first = files.FileDigests(memory).of(model)
    changed(model, model.read_bytes()[::-1])
    assert files.FileDigests(memory).of(model) != first


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b'"text"', b'{"a": 1}', b'{"a": [1, 2]}', b'{"a": ["x", 2, "d"]}'],
)
def test_a_damaged_memory_is_only_a_lost_short_cut(files, tmp_path, model, read, damage):
    memory = tmp_path / "files.json"
    expected = files.FileDigests(None).of(model)
    memory.write_bytes(damage)
    read()
    assert files.FileDigests(memory).of(model) == expected
    assert read() == model.stat().st_size
    assert files.FileDigests(memory).of(model) == expected
    assert read() == 0, "the memory was not mended"


def test_a_memory_that_cannot_be_written_is_said_and_costs_nothing(files, tmp_path, model, caplog):
    (tmp_path / "in the way").write_text("")
    digests = files.FileDigests(tmp_path / "in the way" / "files.json")
    assert digests.of(model) == files.FileDigests(None).of(model)
    assert any("not remembered" in record.message for record in caplog.records)


def test_the_memory_does_not_grow_without_end(files, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_KEPT", 3)
    memory = tmp_path / "files.json"
    digests = files.FileDigests(memory)
    for number in range(5):
        (tmp_path / str(number)).write_text(str(number))
        digests.of(tmp_path / str(number))
    kept = [Path(path).name for path in json.loads(memory.read_text(encoding="utf-8"))]
    assert kept == ["2", "3", "4"]


# -- while it is being read -------------------------------------------------------------------------------------


@pytest.fixture
def held(files, monkeypatch):
    """Reading begins, and waits until `held.go` is set."""

    class Held:
        began, go = threading.Event(), threading.Event()
        reads = 0

        def __call__(self, path):
            self.reads += 1
            self.began.set()
            assert self.go.wait(30)
            return real(path)

    real, made = files._digest, Held()
    monkeypatch.setattr(files, "_digest", made)
    yield made
    made.go.set()


def test_who_asks_for_a_file_that_is_being_read_waits_for_that_reading(files, model, held):
    digests = files.FileDigests(None)
    reading = digests.begin(model)
    assert held.began.wait(30)
    again = digests.begin(model)
    assert not reading.done() and not again.done()
    held.go.set()
    assert reading.result(30) == again.result(30) == digests.of(model)
    assert held.reads == 1


def test_a_file_that_changes_while_it_is_read_is_not_remembered(files, model, held, tmp_path):
    memory = tmp_path / "files.json"
    digests = files.FileDigests(memory)
    reading = digests.begin(model)
    assert held.began.wait(30)
    changed(model, b"another content")
    held.go.set()
    reading.result(30)
    assert not memory.exists()
    assert digests.of(model) == files.FileDigests(None).of(model)


# -- the files that a graph names -------------------------------------------------------------------------------


@pytest.fixture
def in_host(comfy_host, files, monkeypatch, tmp_path):
    """The host's digests, forgetful; gives the base directory with a model and an input picture in it."""
    monkeypatch.setattr(files, "_digests", files.FileDigests(None))
    base = Path(comfy_host.base)
    made = [base / "models" / "loras" / "named.safetensors", base / "input" / "named.png"]
    for file in made:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(file.name.encode())
    import folder_paths

    folder_paths.filename_list_cache.clear()
    yield base
    for file in made:
        file.unlink()


def names(found: list[str]) -> list[str]:
    return [Path(path).name for path in found]


@pytest.mark.parametrize("text", ["named.safetensors", "named.png", "named.png [input]"])
def test_a_widget_names_files_of_the_models_and_input_folders(files, in_host, text):
    assert names(files.named_files(text)) == [text.removesuffix(" [input]")]


def test_a_widget_names_a_file_by_its_whole_path(files, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"")
    assert names(files.named_files(str(tmp_path / "a.safetensors"))) == ["a.safetensors"]


@pytest.mark.parametrize(
    "text",
    ["", "euler", "a red circle.", "no such.safetensors", "x" * 2000 + ".png", "a\nb.png", "a\0b.png", "..", "/"],
)
def test_other_texts_name_none(files, in_host, text):
    assert files.named_files(text) == []


def lookup_and(**inputs) -> dict:
    return {"1": {"class_type": "ChorusCacheLookup", "inputs": {}}, "2": {"class_type": "Loader", "inputs": inputs}}


def test_the_files_of_a_graph_with_chorus_are_read_when_it_is_queued(files, in_host, read):
    files.read_ahead(lookup_and(name="named.safetensors", picture="named.png", seed=3, link=["1", 0]))
    digests = [
        files.file_digests().of(path) for text in ("named.safetensors", "named.png") for path in files.named_files(text)
    ]
    assert len(set(digests)) == 2
    assert read() == len("named.safetensors") + len("named.png"), "they were read again"
    assert all(
        files.file_digests().is_as_loaded(*files.named_files(text)) for text in ("named.safetensors", "named.png")
    )


def test_the_files_of_a_graph_without_chorus_are_noted_but_not_read(files, in_host, read):
    files.read_ahead({"2": {"class_type": "Loader", "inputs": {"name": "named.safetensors"}}})
    [path] = files.named_files("named.safetensors")
    assert not files.file_digests()._reading and path not in files.file_digests()._known
    assert files.file_digests().is_as_loaded(path)
    assert read() == 0


@pytest.mark.parametrize("prompt", [None, [], {"1": None}, {"1": {"class_type": "Chorus", "inputs": 3}}])
def test_a_graph_of_another_form_is_no_error(files, in_host, prompt):
    files.read_ahead(prompt)
    posted = {"prompt": prompt, "client_id": "x"}
    assert files.on_prompt(posted) is posted == {"prompt": prompt, "client_id": "x"}
    assert files.on_prompt({}) == {}
