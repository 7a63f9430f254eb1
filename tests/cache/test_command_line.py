"""`python -m chorus.cache` on a real cache: what it says, what it does, its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .sample import new_entry


@pytest.fixture
def run(checkout: Path):
    """`run("ls", …)`: the command in a process of its own."""

    def run_one(*arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "chorus.cache", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=checkout, timeout=120, check=False)

    return run_one


@pytest.fixture
def filled(open_cache, root: Path) -> Path:
    """A cache of three entries, closed."""
    cache = open_cache()
    for number in range(3):
        cache.put(new_entry(number))
    cache.record_hit(cache.entries()[0].id, 12.5)
    cache.close()
    return root


def test_entries_are_listed_and_filtered_as_a_table_and_as_json(run, filled):
    table = run("ls", filled)
    assert table.returncode == 0 and "3 of 3 entries" in table.stdout
    found = json.loads(run("ls", filled, "--words", "TAKE 1", "--json").stdout)
    assert [e["prompt"] for e in found] == ["a red ball rolls left, take 1"]
    assert len(json.loads(run("ls", filled, "--limit", "2", "--json").stdout)) == 2


@pytest.mark.parametrize(
    "text",
    [
        "nice \x1b]0;OWNED\x07\x1b[31mred\x1b[2J\x1b[1;1H 0 entries \x9b31m",
        "a \ud800 b",
        "[red]x[/red] [link=file:///etc/passwd]click[/link] [/]",
        "abc \u202e txt.exe",
        "a\nb\r\nfake row",
        "日本 👩\u200d🚀",
    ],
    ids=["escapes", "surrogate", "markup", "direction", "lines", "plain"],
)
def test_what_a_prompt_says_does_nothing_to_the_terminal(run, root, open_cache, tmp_path, text):
    cache = open_cache()
    entry = cache.put(new_entry(1, prompt=text, settings={"noise": text}))
    cache.close()
    (record,) = json.loads(run("ls", root, "--json").stdout)
    assert (record["prompt"], record["settings"]) == (text, {"noise": text})
    copied = tmp_path / "one.chorus"
    for command in (
        ("ls", root),
        ("show", root, entry.id),
        ("search", root, "nice a x abc 日本"),
        ("stats", root, "--json"),
        ("ls", root / text[:9].replace("\ud800", "x") if "\x00" not in text else root),
        ("export", root, copied),
        ("import", tmp_path / "other", copied),
        ("forget", root, "--id", entry.id, "--yes"),
    ):
        done = run(*command)
        assert "Traceback" not in done.stderr
        for told in (done.stdout, done.stderr):
            assert all(c.isprintable() or c in "\n\u200d" for c in told), ascii(told)
        if command[0] == "show":
            assert ascii(text[0])[1:-1] in ascii(done.stdout)


def test_one_entry_is_shown_by_the_beginning_of_its_id(run, filled):
    known = json.loads(run("ls", filled, "--json").stdout)[0]
    assert json.loads(run("show", filled, known["id"][:10], "--json").stdout) == known
    assert known["id"] in run("show", filled, known["id"]).stdout.replace("\n", "")
    nobody = run("show", filled, "zzz")
    assert nobody.returncode == 2 and "no entry" in nobody.stderr


def test_stats_tell_what_was_kept_and_saved(run, filled):
    known = json.loads(run("stats", filled, "--json").stdout)
    assert (known["entries"], known["hits"], known["seconds_saved"]) == (3, 1, 12.5)
    assert "3 entries" in run("stats", filled).stdout


def test_a_flipped_bit_is_found_and_the_rest_goes_on(run, filled):
    assert run("check", filled).returncode == 0
    victim = next(p for p in sorted((filled / "blobs").rglob("*")) if p.is_file())
    content = bytearray(victim.read_bytes())
    content[-3] ^= 4
    victim.write_bytes(content)
    found = run("check", filled, "--fix")
    assert found.returncode == 1 and "1 damaged" in found.stdout and victim.stem in found.stderr.replace("\n", "")
    again = run("check", filled)
    assert again.returncode == 0 and "2 entries read" in again.stdout


def test_what_is_forgotten_is_gone_from_disk(run, filled, checkout):
    assert run("forget", filled).returncode == 2
    refused = subprocess.run(
        [sys.executable, "-m", "chorus.cache", "forget", str(filled), "--words", "take 1"],
        input="n\n",
        capture_output=True,
        text=True,
        cwd=checkout,
        check=False,
    )
    assert refused.returncode == 1 and "Delete 1 entries?" in refused.stdout
    assert len(json.loads(run("ls", filled, "--json").stdout)) == 3
    assert run("forget", filled, "--words", "take 1", "--yes").returncode == 0
    left = json.loads(run("ls", filled, "--json").stdout)
    assert sorted(e["prompt"][-1] for e in left) == ["0", "2"]
    assert not any(b"take 1" in p.read_bytes() for p in filled.rglob("*") if p.is_file())
    assert "0 entries deleted" in run("forget", filled, "--older", "1", "--yes").stdout
    assert "2 entries deleted" in run("clear", filled, "--yes").stdout


def ids(run, folder, *options):
    return [e["id"] for e in json.loads(run("ls", folder, "--json", *options).stdout)]


def test_search_finds_what_means_the_same(run, open_cache, root):
    cache = open_cache()
    for number, prompt in enumerate(("a dog sleeps on a green sofa", "coffee is poured into a cup", "", "…")):
        cache.put(new_entry(number, prompt=prompt))
    cache.close()
    found = run("search", root, "a cat naps on a couch", "--json")
    matches = json.loads(found.stdout)
    assert matches[0]["prompt"] == "a dog sleeps on a green sofa"
    assert len(matches) == 4 and matches[0]["score"] > 0.2 > matches[1]["score"]
    assert not found.stderr
    assert "coffee" in run("search", root, "espresso", "--limit", "1").stdout


def test_search_without_the_package_lists_what_shares_most_words_and_says_so(checkout, filled):
    def search(*words: str) -> subprocess.CompletedProcess:
        hidden = "import sys; sys.modules['wordllama'] = None; from chorus.cache.__main__ import app; app()"
        command = [sys.executable, "-c", hidden, "search", str(filled), *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=checkout, timeout=120, check=False)

    found = search("left take 2", "--json")
    matches = json.loads(found.stdout)
    assert matches[0]["prompt"].endswith("take 2") and matches[0]["score"] == 1.0
    assert all(m["score"] < 1.0 for m in matches[1:]) and len(matches) == 3
    assert "by words, not by meaning: pip install wordllama" in found.stderr
    assert "take 2" in search("take 2", "--limit", "1").stdout
    assert json.loads(search("zebra", "--json").stdout) == []


def test_pinned_entries_are_told_and_survive_pruning(run, filled):
    oldest = ids(run, filled, "--sort", "oldest")[0]
    assert run("pin", filled, oldest[:8]).returncode == 0
    assert ids(run, filled, "--pinned") == [oldest]
    pruned = run("prune", filled, "--entries", "1")
    assert pruned.returncode == 0 and "2 entries evicted" in pruned.stdout
    assert ids(run, filled) == [oldest]
    assert "1 entries unpinned" in run("pin", filled, oldest, "--off").stdout
    assert "1 entries evicted" in run("prune", filled, "--gb", "0").stdout
    assert run("pin", filled, oldest).returncode == 2


def test_looking_evicts_nothing_whatever_limit_the_environment_sets(run, filled, monkeypatch):
    monkeypatch.setenv("CHORUS_CACHE_ENTRIES", "1")
    monkeypatch.setenv("CHORUS_CACHE_GB", "0.000001")
    assert len(ids(run, filled)) == 3
    assert json.loads(run("stats", filled, "--json").stdout)["entries"] == 3
    assert "3 entries evicted" in run("prune", filled).stdout


def test_stats_and_forget_by_model(run, filled):
    (model,) = json.loads(run("stats", filled, "--json").stdout)["models"]
    assert (model["weights"], model["entries"], model["hits"]) == ("weights-a", 3, 1)
    assert "by model" in run("stats", filled).stdout
    assert "0 entries deleted" in run("forget", filled, "--model", "weights-b", "--yes").stdout
    assert "3 entries deleted" in run("forget", filled, "--model", "weights-a", "--yes").stdout


def test_a_bundle_goes_from_one_cache_to_another(run, filled, tmp_path):
    bundle, other = tmp_path / "some.chorus", tmp_path / "other"
    written = run("export", filled, bundle, "--words", "take 1")
    assert written.returncode == 0 and "1 entries" in written.stdout
    assert run("export", filled, bundle).returncode == 2
    assert run("export", filled, tmp_path / "none.chorus", "--words", "zebra").returncode == 2
    taken = run("import", other, bundle)
    assert taken.returncode == 0 and "1 entries taken, 0 were there, 0 refused" in taken.stdout
    assert json.loads(run("import", other, bundle, "--json").stdout)["present"] == ids(run, other)
    bundle.write_bytes(bundle.read_bytes()[:-40])
    refused = run("import", other, bundle)
    assert refused.returncode == 1 and "zip file" in refused.stderr


def test_an_entry_that_a_bundle_has_damaged_is_named_and_refused(run, filled, tmp_path):
    bundle, other = tmp_path / "some.chorus", tmp_path / "other"
    run("export", filled, bundle)
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 1
    bundle.write_bytes(content)
    refused = run("import", other, bundle)
    assert refused.returncode == 1 and "2 entries taken, 0 were there, 1 refused" in refused.stdout
    assert "is refused" in refused.stderr


def test_migrate_tells_the_versions(run, filled):
    assert json.loads(run("migrate", filled, "--json").stdout)["entries"] == {"1": 0, "2": 3}
    assert "3 of format 2" in run("migrate", filled).stdout


def test_every_command_explains_itself(run):
    commands = (
        "ls",
        "search",
        "show",
        "stats",
        "check",
        "pin",
        "prune",
        "forget",
        "clear",
        "export",
        "import",
        "migrate",
    )
    overview = run("--help").stdout
    for command in commands:
        assert command in overview
        assert "Usage" in run(command, "--help").stdout


def test_a_folder_without_a_cache_is_refused_and_left_alone(run, tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        refused = run("stats", place)
        assert refused.returncode == 2 and "no cache" in refused.stderr
    assert list(tmp_path.iterdir()) == []
