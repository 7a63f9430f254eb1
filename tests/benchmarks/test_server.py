"""The benches against a server: the same samples come back, and the table for real weights runs."""

from __future__ import annotations

from dataclasses import replace

import av
import numpy as np
import pytest

from benchmarks import samples, server
from benchmarks.samples import Bench, write_video
from benchmarks.systems import COLD, Request, SmallWan, System, graph
from benchmarks.tables import real
from small_wan import scenes
from tools.demo_graph import only

RED = scenes.Caption("red", "circle", "right", "navy")
GREEN = replace(RED, colour="green")


class Scored(SmallWan):
    """The small Wan under the CLIP score of an untrained CLIP: the path of real weights, without them."""

    def measured(self, frames: np.ndarray, request: Request) -> dict:
        return {"alignment": server.clip_score(frames, request.prompt, "ViT-B-32", "", most=2)}


def asked(caption: scenes.Caption, seed: int) -> Request:
    return Request(caption.text, seed, 4, caption=caption)


def test_a_server_samples_what_it_is_asked(comfy_server, tmp_path):
    bench = Bench(tmp_path, host=server.Server(comfy_server.url))
    cold = bench.sample(asked(RED, 1))
    hit = bench.sample(asked(GREEN, 2), System("stage 1", k1=1, selective=False, strength=0.0), asked(RED, 1))
    assert (cold["outcome"], hit["outcome"], hit["steps_computed"]) == ("cold", "hit", 3)
    assert cold["right"].keys() == {"background", "colour", "direction", "shape"}
    assert Bench(tmp_path).sample(asked(RED, 1)) == cold


def test_the_table_for_real_weights(comfy_server, tmp_path):
    videos = tmp_path / "videos"
    result = real.measure(Bench(tmp_path, Scored(), server.Server(comfy_server.url), videos), full=False)
    rows = {row["system"]: row for row in result.rows}
    assert set(rows) == {"cold", "early start", "Chorus", "NIRVANA at Chorus's cost", "fewer steps at Chorus's cost"}
    assert rows["Chorus"]["step equivalents"]["mean"] < rows["cold"]["step equivalents"]["mean"] == 4.0
    assert all(np.isfinite(row["alignment"]["mean"]) for row in rows.values())
    assert {folder.name for folder in (videos / "4 steps").iterdir()} >= {"cold", "early start", "Chorus", "NIRVANA"}
    assert len(list((videos / "4 steps" / "Chorus").glob("*.mp4"))) == rows["Chorus"]["n"]


def test_a_written_video_shows_what_was_sampled(tmp_path):
    frames = np.linspace(0, 1, 5 * 32 * 49 * 3, dtype=np.float32).reshape(5, 32, 49, 3)
    write_video(frames, tmp_path / "a" / "b.mp4")
    with av.open(str(tmp_path / "a" / "b.mp4")) as video:
        shown = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]) / 255
    assert shown.shape == (5, 32, 48, 3)
    assert np.abs(shown - frames[:, :, :48]).mean() < 0.03


def test_model_names_and_sizes_reach_the_graph():
    subject = server.RealWan(unet="other.safetensors", lora="fast.safetensors", width=480, height=320, length=33)
    made = graph(subject, Request("a fox", 1, 4), COLD, cache=None, mode="off")
    assert made[only(made, "UNETLoader")]["inputs"]["unet_name"] == "other.safetensors"
    assert made[only(made, "LoraLoaderModelOnly")]["inputs"]["lora_name"] == "fast.safetensors"
    assert made[only(made, "EmptyHunyuanLatentVideo")]["inputs"]["width"] == 480
    assert "umt5" in made[only(made, "CLIPLoader")]["inputs"]["clip_name"]  # the template's own


def test_clip_score_knows_prompts_apart():
    frames = np.random.default_rng(0).random((2, 48, 64, 3), np.float32)
    scores = [server.clip_score(frames, prompt, "ViT-B-32", "") for prompt in ("a red fox", "rain at night")]
    assert scores[0] != pytest.approx(scores[1], abs=1e-4)
    assert all(-100 <= score <= 100 for score in scores)


def test_samples_of_real_weights_depend_on_the_template(monkeypatch):
    """All that names a sample has to be known of them, too."""
    few = samples.measured_digest(server.RealWan(), asked(RED, 1))
    many = samples.measured_digest(server.RealWan(), replace(asked(RED, 1), steps=20))
    assert few != many
