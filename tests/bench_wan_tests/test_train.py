"""The training of the bench's small Wan: from a pool or from scenes drawn as it goes, by samples or by time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bench_wan import train
from bench_wan.captions import sample_caption
from bench_wan.text import Encoder
from bench_wan.twin import Twin
from small_wan import text_encoder

WEIGHTS = Path(__file__).parents[1] / "small_wan" / "weights" / "small_wan_t2v.safetensors"


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """Compiling takes a minute and changes nothing."""
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)


def run(work: Path, *arguments: str) -> list[dict]:
    """Trains on two scenes a step; returns the curve's new lines."""
    lines: list[dict] = []
    fixed = ["--work", str(work), "--from-weights", str(WEIGHTS), "--batch", "2", "--frames", "1", "--pool", "200"]
    train.main([*fixed, *arguments], lines.append)
    return lines


def test_a_stopped_training_goes_on_where_it_was(tmp_path):
    assert run(tmp_path, "--samples", "100", "--until", "4")[-1]["samples"] == 4
    first = torch.load(tmp_path / "checkpoint.pt")
    assert first.keys() == {"model", "average", "optims", "samples", "seconds"}
    assert run(tmp_path, "--samples", "100", "--until", "6")[-1]["samples"] == 6
    second = torch.load(tmp_path / "checkpoint.pt")
    assert second["samples"] == 6 and second["seconds"] > first["seconds"]
    assert second["optims"][1]["state"][0]["step"] == 3
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [line["samples"] for line in curve] == [4, 6]
    assert run(tmp_path, "--samples", "100", "--until", "6") == []


def test_stills_train_the_network_beside_the_videos(tmp_path, monkeypatch):
    """A step has the gradients of both; samples count videos."""
    batches, plain = [], train.Step.__call__

    def watched(self, x0, *rest):
        before = [p.grad for p in self.model.parameters()]
        told = plain(self, x0, *rest)

        batches.append((len(x0), x0.shape[2], any(grad is not None for grad in before)))
        return told

    monkeypatch.setattr(train.Step, "__call__", watched)
    lines = run(tmp_path, "--samples", "100", "--until", "4", "--frames", "2", "--stills", "3")
    assert lines[-1]["samples"] == 4
    assert batches == [(2, 2, False), (3, 1, True)] * 2


def test_a_training_by_time_writes_weights_that_a_network_takes(tmp_path):
    weights = tmp_path / "out" / "weights.safetensors"
    lines = run(tmp_path, "--minutes", "0.05", "--draw", "--weights", str(weights))
    assert lines and lines[-1]["samples"] >= 2
    written, before = load_file(weights), load_file(WEIGHTS)
    Twin().load_state_dict({name: value.float() for name, value in written.items()})
    assert {value.dtype for value in written.values()} == {torch.float16}
    assert sum(not value.equal(before[name]) for name, value in written.items()) > 100


def test_by_time_the_rate_follows_the_clock(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(train.time, "monotonic", lambda: now)
    clock = train.Clock(200, None, 2.0, spent=30.0)
    assert clock.done(10**9) == 0.25 and not clock.over(10**9)
    now += 90.0
    assert clock.done(0) == 1.0 and clock.over(0)
    by_samples = train.Clock(200, None, None, spent=0.0)
    assert by_samples.done(50) == 0.25 and not by_samples.over(199) and by_samples.over(200)


def test_what_does_not_compile_is_trained_eagerly(monkeypatch, capsys):
    def broken(block: torch.nn.Module, **_: object):
        def call(*given: torch.Tensor) -> None:
            raise RuntimeError("no compiler\nhere")

        block._compiled_call_impl = call  # type: ignore[assignment]

    monkeypatch.setattr(torch.nn.Module, "compile", broken)
    step = train.Step(Twin(train.MARKS).initialise(), torch.device("cpu"), from_image=False)
    source = train.Drawn(4, 2, 1, [1, 0, 0], torch.device("cpu"))
    flow, shown = step(*source.next())
    assert math.isfinite(float(flow)) and math.isfinite(float(shown))
    assert all(p.grad is not None for name, p in step.model.named_parameters() if name.startswith("head"))
    assert "not compiled: RuntimeError: no compiler\n" in capsys.readouterr().out


def test_what_fails_later_is_not_taken_for_a_compiler():
    step = train.Step(Twin(train.MARKS).initialise(), torch.device("cpu"), from_image=False)
    batch = train.Drawn(4, 2, 1, [1, 0, 0], torch.device("cpu")).next()
    step(*batch)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        step(batch[0][:, :8], *batch[1:])


def test_batches_drawn_as_it_goes_are_of_new_scenes_and_say_what_they_show():
    source = train.Drawn(6, 2, 3, [1, 0, 0], torch.device("cpu"))
    torch.manual_seed(0)  # under which the first caption is not left empty
    first, second = source.next(), source.next()
    x0, sigmas, context, marks = first
    assert x0.shape == (2, 16, 3, 24, 24) and sigmas.shape == (2,) and 0 < float(sigmas.min()) < float(sigmas.max()) < 1
    assert marks.shape == (2, 3 * 12 * 12, train.MARKS)
    assert not x0.equal(second[0])
    # The same caption as the pool's: what a token shows of the main object is in the caption's colour.
    texts = source._encoder.encode(source._texts)
    row = next(i for i in range(6) if context[0].equal(texts[i]))
    colour = list(train.COLOURS).index(source._captions[row].colour)
    colours = marks[0, :, train.KINDS : train.KINDS + len(train.COLOURS)]
    assert colours[:, colour].equal(marks[0, :, 0]) and float(colours[:, colour].sum()) > 0
    assert float(colours.sum()) == pytest.approx(float(colours[:, colour].sum()), rel=1e-6)


def test_the_encoder_of_many_prompts_is_that_of_one():
    rng = np.random.default_rng(3)
    texts = ["", *(sample_caption(rng).text for _ in range(5))]
    encoder = Encoder()
    assert torch.allclose(encoder(texts), torch.cat([text_encoder.encode(text) for text in texts]), atol=1e-5)
    kept = encoder.indices(texts)
    encoder(["a word never met before"])
    assert torch.allclose(encoder.encode(kept), encoder(texts))
