"""Embedders compared: does the score predict what a hit loses? Pairs from unlike to nearly equal prompts.

Half of 20 steps are saved. The same hits are grouped by each embedder's own scores. Beside the embedders of the nodes,
the plain mean of the text encoder's tokens and WordLlama (general static vectors) are measured; open_clip only if its
weights are on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from scipy.stats import spearmanr

from chorus.prompt.embedding import OpenClipEmbedder, pool_encoding
from chorus.prompt.sentence import embed_sentences
from chorus.prompt.tokens import unit_tokens
from small_wan import scenes
from small_wan.text_encoder import encode

from .. import report
from ..pairs import CANDIDATES, TUNED, Pair, request, some_edits
from ..prompts import vectors
from ..rivals import details_loss
from ..samples import Bench, of
from ..systems import CHORUS, System

STEPS = 20
K1 = 10
GROUPS = 4
LEAST, MOST = 0.2, 0.98  # of the scores sampled, by the graph's own encodings
SHARED = 0.5  # of its words a request should find in a match
MATCH = f"score with {SHARED:.0%} of the words shared"
HIT = replace(CHORUS, k1=K1, k2=K1 + 2, method="early start")
AT_K1 = System("state taken at K1", k1=K1, start=1.0, selective=False, strength=0.0)


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by embedder and group of its scores, rising; `all` has what is told over all pairs."""
    pairs = pairs_of_any_score(128 if full else 16, TUNED)
    cold = [bench.sample(p.target) for p in pairs]
    hits = [bench.sample(p.target, HIT, p.source) for p in pairs]
    late = [bench.sample(p.target, AT_K1, p.source) for p in pairs]
    fewer = [bench.sample(replace(p.target, steps=STEPS - K1)) for p in pairs]
    shared = np.array([1 - len(p.changed) / len(p.target.caption.attributes()) for p in pairs])
    losses = {name: of(cold, "alignment") - of(some, "alignment") for name, some in (("hits", hits), ("late", late))}
    rows = []
    for name, embed in embedders().items():
        points = [(embed(p.target.prompt), embed(p.source.prompt)) for p in pairs]
        scores = np.array([float(a @ b) for a, b in points])
        groups = [("all", np.arange(len(pairs)))]
        groups += [("", np.sort(g)) for g in np.array_split(np.argsort(scores, kind="stable"), GROUPS)]
        for label, group in groups:
            rows.append(
                {
                    "embedder": name,
                    "scores": label or f"{scores[group].min():.2f} to {scores[group].max():.2f}",
                    "n": len(group),
                    "words shared": report.estimate(shared[group]),
                    "alignment loss": report.estimate(losses["hits"][group]),
                    "alignment loss, state taken at K1": report.estimate(losses["late"][group]),
                    "details loss": details_loss([hits[i] for i in group], [cold[i] for i in group]),
                    "details loss of fewer steps": details_loss([fewer[i] for i in group], [cold[i] for i in group]),
                    "score with words shared": _correlation(scores, shared) if label else "",
                    "score with loss at K1": _correlation(scores, losses["late"]) if label else "",
                    MATCH: report.combined(_matching, scores, shared) if label else "",
                }
            )
    return report.Result(
        name="embedders",
        title="What the score tells, embedders side by side",
        columns=list(rows[0]),
        rows=rows,
        seeds=[TUNED],
    )


def pairs_of_any_score(count: int, seed: int) -> list[Pair]:
    """Pairs whose scores by the graph's own encodings are spread evenly, as far as the grammar has such prompts."""
    rng = np.random.default_rng(seed)
    found = []
    for index, wanted in enumerate(np.linspace(LEAST, MOST, count)):
        source = scenes.sample_caption(rng, held_out=True)
        targets = [some_edits(source, rng) for _ in range(CANDIDATES)]
        targets += [scenes.sample_caption(rng, held_out=True) for _ in range(CANDIDATES)]
        points = vectors([source, *targets])
        scores = points[1:] @ points[0]
        best = int(np.abs(scores - wanted).argmin())
        first = 30_000 * seed + 2 * index
        earlier, later = request(source, first, STEPS), request(targets[best], first + 1, STEPS)
        found.append(Pair(earlier, later, float(scores[best])))
    return found


def embedders() -> Mapping[str, Callable[[str], np.ndarray]]:
    """Name → prompt to unit vector."""
    known = {
        "conditioning": lambda prompt: pool_encoding(encode(prompt)).vector,
        "mean of the encodings": _mean,
        "WordLlama": lambda prompt: embed_sentences([prompt])[0],
    }
    if OpenClipEmbedder.available() is None:
        clip = OpenClipEmbedder()
        known["open_clip"] = lambda prompt: clip(prompt).vector
    return known


def _mean(prompt: str) -> np.ndarray:
    mean = unit_tokens(encode(prompt)).mean(0).numpy()
    return mean / np.linalg.norm(mean)


def _matching(scores: np.ndarray, shared: np.ndarray) -> float:
    """The score at which a line through (score, share of words) reaches SHARED."""
    slope, level = np.polyfit(scores, shared, 1)
    return float((SHARED - level) / slope)


def _correlation(scores: np.ndarray, values: np.ndarray) -> dict:
    return report.combined(lambda a, b: float(spearmanr(a, b).statistic), scores, values)
