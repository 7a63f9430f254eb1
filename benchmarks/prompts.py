"""Streams of prompts over the small Wan's grammar that are as alike as real ones: `python -m benchmarks.prompts`.

How alike a prompt is: its cosine to the nearest earlier prompt of the stream, by the vectors that the nodes give it
(embedding "conditioning"). The grammar is small: however the prompts are chosen, the nearest of many earlier ones
cannot be far (`floor`). A long stream of unlike prompts therefore needs style words, which name nothing in the scene
and are in no caption of the training; without them, `achieved` shows what is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from rich.console import Console
from rich.table import Table

from chorus.prompt.embedding import pool_encoding
from small_wan import scenes
from small_wan.text_encoder import encode

THRESHOLDS = (0.60, 0.70, 0.75, 0.80, 0.90)
LEVELS = (0.60, 0.70, 0.75, 0.80, 0.90)  # of the Chorus paper's study of locality
VIDPROM_MEAN = 0.769
# Share of requests below → similarity. Inner points from the Chorus paper (arXiv 2604.04451); a prompt again is the
# upper end, and the lower one gives the paper's mean.
_SHARES = (0.0, 0.071, 0.259, 0.404, 0.577, 0.897, 1.0)
_SIMILARITIES = (0.4634, 0.60, 0.70, 0.75, 0.80, 0.90, 1.0)
# At most so wide about its mean, in units of VidProM's: then the shares at or above 0.70 are 10, 53, 73, 86 and 100 %,
# near the paper's hit rates of 7, 48, 72, 84 and 98 %. Chosen here.
_WIDTH = 0.75

STYLE = (  # noqa: SIM905 - a word a line would be no clearer
    "candid cinematic crisp detailed dramatic dreamy earthy elegant epic faded foggy frosty gentle glossy grainy "
    "handheld hazy intimate luminous macro minimal misty modern moody neon noir ornate painterly pastel playful "
    "polished quiet rainy realistic retro rustic serene shadowy sharp sketchy smooth soft somber spacious sparkling "
    "stormy subtle sunlit surreal symmetrical tender timeless tranquil vibrant vintage vivid whimsical wintry"
).split()
MOST_STYLE = 10  # with the longest caption's 22 words all that the text encoder reads

_CANDIDATES = 250  # at the start, beside one a request
_MORE = 100  # later, beside one a request
_FRESH = 0.4  # share of the candidates at the start that are no edit of another one
_STOP = 0.6  # chance that an edit of a candidate is the last one
_PROPOSALS = 8  # more of them, when none fits
_TRIES = 100  # edits, to find one that stays held out
_FLOOR_OF = 3000  # prompts among which the floor is looked for
_TIE = 0.004  # candidates this close to the wanted similarity are as good


@dataclass(frozen=True)
class Wanted:
    """A distribution of nearest-prior similarity: VidProM's shape about another mean, `width` times as wide."""

    name: str
    mean: float
    width: float = 1.0

    def __call__(self, shares: np.ndarray) -> np.ndarray:
        """The quantile function: shares of requests in [0, 1], any shape → similarities."""
        return self.mean + self.width * (np.interp(shares, _SHARES, _SIMILARITIES) - VIDPROM_MEAN)

    def at_or_above(self, similarity: float) -> float:
        """The share of requests at or above a similarity."""
        return 1.0 - float(np.interp((similarity - self.mean) / self.width + VIDPROM_MEAN, _SIMILARITIES, _SHARES))


def vidprom() -> Wanted:
    """VidProM's 1.67 million prompts, from the shares that the Chorus paper gives; linear in between."""
    return Wanted("VidProM", VIDPROM_MEAN)


def locality(mean: float) -> Wanted:
    """A workload of the paper's locality levels. It gives only their means; the shape is chosen here.

    Raises ValueError outside [0.25, 1).
    """
    if not 0.25 <= mean < 1.0:
        raise ValueError(f"mean similarity {mean}: expected at least 0.25 and less than 1")
    return Wanted(f"locality {mean:.2f}", mean, min(_WIDTH, (1.0 - mean) / (1.0 - VIDPROM_MEAN)))


@dataclass(frozen=True)
class Styled(scenes.Caption):
    """A caption followed by words that name nothing in the scene."""

    style: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return ", ".join([super().text, *self.style])


@dataclass(frozen=True)
class Request:
    """One prompt of a stream.

    similarity: cosine to the nearest earlier prompt, −1 for the first. nearest: that prompt's index in the stream.
    wanted: the similarity it was chosen for.
    """

    caption: scenes.Caption
    similarity: float
    nearest: int | None
    wanted: float


def vectors(captions: Sequence[scenes.Caption]) -> np.ndarray:
    """The vectors that ChorusCacheLookup gives these prompts with embedding "conditioning": [N, D], unit norm."""
    return np.stack([_vector(caption.text) for caption in captions])


@lru_cache(maxsize=16_384)
def _vector(text: str) -> np.ndarray:
    return pool_encoding(encode(text)).vector


def edited(caption: scenes.Caption, rng: np.random.Generator, names: Sequence[str] | None = None) -> scenes.Caption:
    """The caption with one attribute changed, of all that it names or of `names`.

    Names are those of `Caption.attributes`. The result may be one that training has seen.
    Raises ValueError when the caption has none of `names`.
    """
    named = caption.attributes()
    open_names = [name for name in named if names is None or name in names]
    if not open_names:
        raise ValueError(f"attributes {names}: {caption.text!r} has only {', '.join(named)}")
    name = str(rng.choice(open_names))
    choices = [value for value in _VALUES[name] if value != named[name]]
    if name in ("colour", "second colour"):  # the two objects differ in colour
        choices = [value for value in choices if value not in (named["colour"], named.get("second colour"))]
    value = str(rng.choice(choices))
    if not name.startswith("second"):
        return replace(caption, **{name: value})
    assert caption.second is not None
    colour, shape, side = (value if part == name else named[part] for part in _SECOND)
    return replace(caption, second=(colour, shape, side))


_SECOND = ("second colour", "second shape", "second side")
_VALUES: dict[str, Sequence[str]] = {
    "colour": tuple(scenes.COLOURS),
    "shape": scenes.SHAPES,
    "direction": tuple(scenes.DIRECTIONS),
    "background": tuple(scenes.BACKGROUNDS),
    **dict(zip(_SECOND, (tuple(scenes.COLOURS), scenes.SHAPES, scenes.SIDES), strict=True)),
}


def stream(
    wanted: Wanted, count: int, seed: int, *, warm: int = 0, held_out: bool = True, style: int = 0
) -> list[Request]:
    """`count` prompts whose similarities to their nearest earlier ones are distributed as wanted, where that can be.

    Each is the candidate whose similarity comes closest to the one drawn for it. The first `warm` prompts are for
    filling a cache; the others' similarities are drawn evenly over the whole distribution all the same. held_out:
    prompts from the combinations that training never sees, or only from those that it does. style: most style words
    a prompt.

    Raises ValueError for counts and numbers of words out of range.
    """
    if not 0 <= warm <= count:
        raise ValueError(f"{warm} prompts to warm up of {count} in all")
    if not 0 <= style <= MOST_STYLE:
        raise ValueError(f"{style} style words: expected 0 to {MOST_STYLE}, more the text encoder does not read")
    rng = np.random.default_rng([seed, count])
    first = _CANDIDATES + count
    candidates = _Candidates(_some_prompts(first, seed, held_out, style))
    requests: list[Request] = []
    similarities = np.concatenate([_evenly(wanted, warm, rng), _evenly(wanted, count - warm, rng)])
    for number, similarity in enumerate(similarities.tolist()):
        miss = abs(candidates.scores[candidates.closest(similarity, rng)] - similarity)
        # As many more as there are requests so far and a few: a stream is as free at its end as at its start.
        if requests and miss > _TIE and len(candidates.captions) < first + _MORE + number:
            if candidates.scores.min() > similarity:
                proposed = [_fresh(rng, held_out, style) for _ in range(_PROPOSALS)]
            else:
                earlier = rng.integers(len(requests), size=4 * _PROPOSALS)
                proposed = [_varied(requests[i].caption, rng, style) for i in earlier]
            candidates.add([caption for caption in proposed if caption.held_out == held_out][:_PROPOSALS])
        requests.append(candidates.ask(candidates.closest(similarity, rng), similarity))
    return requests


def _evenly(wanted: Wanted, count: int, rng: np.random.Generator) -> np.ndarray:
    """Similarities in random order, one of each 1/count of the distribution: [count]."""
    return wanted((rng.permutation(count) + rng.random(count)) / max(1, count))


class _Candidates:
    """The prompts that may be asked for next. scores: [N] similarities to the nearest of those asked for so far."""

    def __init__(self, captions: Sequence[scenes.Caption]):
        self.captions = list(captions)
        self.scores = np.full(len(captions), -1.0, np.float32)
        self._nearest = np.zeros(len(captions), int)  # number of that nearest request
        self._points = vectors(captions)
        self._asked: list[int] = []

    def add(self, captions: Sequence[scenes.Caption]) -> None:
        """More of them; those that are there already do not count. At least one must have been asked for."""
        known = set(self.captions)
        new = [caption for caption in dict.fromkeys(captions) if caption not in known]
        if not new:
            return
        points = vectors(new)
        scores = points @ self._points[self._asked].T
        self.captions += new
        self.scores = np.concatenate([self.scores, scores.max(axis=1)])
        self._nearest = np.concatenate([self._nearest, scores.argmax(axis=1)])
        self._points = np.concatenate([self._points, points])

    def closest(self, similarity: float, rng: np.random.Generator) -> int:
        """One of the candidates whose score is as near to `similarity` as there is, or all but."""
        miss = np.abs(self.scores - similarity)
        return int(rng.choice(np.flatnonzero(miss <= max(miss.min(), _TIE))))

    def ask(self, chosen: int, wanted: float) -> Request:
        """Ask for a candidate, which stays one: it may be asked for again."""
        number = len(self._asked)
        score, nearest = float(self.scores[chosen]), int(self._nearest[chosen])
        request = Request(self.captions[chosen], min(1.0, score), nearest if number else None, wanted)
        scores = self._points @ self._points[chosen]
        nearer = scores > self.scores
        self.scores[nearer], self._nearest[nearer] = scores[nearer], number
        self._asked.append(chosen)
        return request


@lru_cache(maxsize=4)
def _some_prompts(count: int, seed: int, held_out: bool, style: int) -> tuple[scenes.Caption, ...]:
    """Different prompts, most of them edits of others."""
    rng = np.random.default_rng([seed, count])
    captions: dict[scenes.Caption, None] = {}
    while len(captions) < count:
        if not captions or rng.random() < _FRESH:
            caption = _fresh(rng, held_out, style)
        else:
            caption = _varied(list(captions)[int(rng.integers(len(captions)))], rng, style)
        if caption.held_out == held_out:
            captions[caption] = None
    return tuple(captions)


def _fresh(rng: np.random.Generator, held_out: bool, style: int) -> scenes.Caption:
    caption = scenes.sample_caption(rng, held_out=held_out)
    if not style:
        return caption
    words = rng.choice(STYLE, int(rng.integers(style + 1)), replace=False)
    return Styled(**vars(caption), style=tuple(words.tolist()))


def _varied(caption: scenes.Caption, rng: np.random.Generator, style: int) -> scenes.Caption:
    """A few edits: of attributes, of the wording, of the style words, or of whether there is a second object."""
    for _ in range(int(rng.geometric(_STOP))):
        kind = rng.random()
        if kind < 0.6:
            caption = edited(caption, rng)
        elif kind < 0.7:
            caption = replace(caption, template=int(rng.integers(len(scenes.TEMPLATES))))
        elif kind < 0.85 and isinstance(caption, Styled):
            caption = replace(caption, style=_restyled(caption.style, rng, style))
        elif caption.second:
            caption = replace(caption, second=None)
        else:
            colour = str(rng.choice([value for value in _VALUES["second colour"] if value != caption.colour]))
            shape, side = (str(rng.choice(_VALUES[name])) for name in _SECOND[1:])
            caption = replace(caption, second=(colour, shape, side))
    return caption


def _restyled(words: tuple[str, ...], rng: np.random.Generator, most: int) -> tuple[str, ...]:
    """One word put in, left out or exchanged."""
    kept = list(words)
    if kept and (len(kept) == most or rng.random() < 0.6):
        kept.pop(int(rng.integers(len(kept))))
    if len(kept) < most and rng.random() < 0.8:
        kept.append(str(rng.choice([word for word in STYLE if word not in words])))
    return tuple(kept)


def with_repeats(
    requests: Sequence[Request],
    share: float,
    seed: int,
    *,
    edits: float = 0.5,
    recent: bool = False,
    exponent: float = 1.0,
) -> list[Request]:
    """The stream with earlier prompts coming back, so that `share` of all requests are such repeats.

    Of the repeats, the share `edits` has one attribute changed; the others are the same prompt again. Which one comes
    back follows Zipf's law: the prompt of rank r with a weight of r to the power of −`exponent`. Ranks are the
    prompts' popularity, drawn once and for all; with `recent`, how recently they were new. All similarities are those
    in the new stream, which is more alike than `requests`; a repeat's `wanted` is its similarity.

    Raises ValueError for a share outside [0, 1).
    """
    if not 0.0 <= share < 1.0:
        raise ValueError(f"share of repeats {share}: expected at least 0 and less than 1")
    rng = np.random.default_rng([seed, len(requests)])
    repeats = round(len(requests) / (1.0 - share)) - len(requests)
    comes_back = np.zeros(len(requests) + repeats, bool)
    comes_back[1 + rng.permutation(len(comes_back) - 1)[:repeats]] = True
    popularity = 1.0 + rng.permutation(len(requests))
    captions: list[scenes.Caption] = []
    wanted: list[float | None] = []
    new = 0
    for is_repeat in comes_back.tolist():
        if is_repeat:
            ranks = np.arange(new, 0.0, -1.0) if recent else popularity[:new]
            weights = ranks**-exponent
            caption = requests[int(rng.choice(new, p=weights / weights.sum()))].caption
            captions.append(_edited_within(caption, rng) if rng.random() < edits else caption)
            wanted.append(None)
        else:
            captions.append(requests[new].caption)
            wanted.append(requests[new].wanted)
            new += 1
    scores, nearest = nearest_earlier(vectors(captions))
    return [
        Request(caption, score, index if number else None, score if asked is None else asked)
        for number, (caption, score, index, asked) in enumerate(
            zip(captions, scores.tolist(), nearest.tolist(), wanted, strict=True)
        )
    ]


def _edited_within(caption: scenes.Caption, rng: np.random.Generator) -> scenes.Caption:
    """One attribute changed, so that the combination is one that training sees exactly if the caption's is.

    The caption itself where no such change is found: some of one object have none.
    """
    for _ in range(_TRIES):
        changed = edited(caption, rng)
        if changed.held_out == caption.held_out:
            return changed
    return caption


def nearest_earlier(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each prompt of a stream, the similarity to the nearest earlier one, and that one's index.

    Shapes:
        points: [N, D] → [N] in [−1, 1], −1 for the first; [N], 0 for the first
    """
    scores = np.where(np.tri(len(points), k=-1, dtype=bool), points @ points.T, -1.0)
    return np.clip(scores.max(axis=1), -1.0, 1.0), scores.argmax(axis=1)


def achieved(requests: Sequence[Request]) -> dict[str, dict[str, float]]:
    """What was wanted beside what was achieved, by measure: mean, shares at or above THRESHOLDS, quantiles.

    A stream's first request, which has no earlier one, is left out. Raises ValueError when no other is left.
    """
    pairs = np.array([(r.wanted, r.similarity) for r in requests if r.nearest is not None])
    if not len(pairs):
        raise ValueError("no request that has an earlier one")
    measures = {"mean": pairs.mean(axis=0)}
    measures |= {f"share ≥ {t:.2f}": (pairs >= t).mean(axis=0) for t in THRESHOLDS}
    measures |= {f"quantile {q:.2f}": np.quantile(pairs, q, axis=0) for q in (0.05, 0.25, 0.5, 0.75, 0.95)}
    return {name: dict(zip(("wanted", "achieved"), both.tolist(), strict=True)) for name, both in measures.items()}


def floor(points: np.ndarray, count: int) -> np.ndarray:
    """Similarities to the nearest earlier prompt when each is the least like all earlier ones that there is, greedily.

    Shapes:
        points: [N, D] vectors of all prompts there are → [count], of the second prompt on; count < N
    """
    nearest, chosen, found = np.full(len(points), -1.0, np.float32), 0, np.empty(count)
    for index in range(count):
        nearest = np.maximum(nearest, points @ points[chosen])
        chosen = int(nearest.argmin())
        found[index] = nearest[chosen]
    return found


def main(arguments: Sequence[str]) -> int:
    """Print wanted beside achieved for all six distributions, and the floor; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prompts", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="prompts a stream")
    parser.add_argument("--warm", type=int, default=0, help="how many of these fill the cache and do not count")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--style", type=int, default=0, help="most style words a prompt")
    parser.add_argument("--trained", action="store_true", help="only combinations that training sees, not the others")
    options = parser.parse_args(arguments)
    among = {"held_out": not options.trained, "style": options.style}
    title = f"{options.count} prompts, of these {options.warm} before counting, at most {options.style} style words"
    table = Table("wanted/achieved", "mean", *(f"≥ {t:.2f}, %" for t in THRESHOLDS), title=title)
    for wanted in (vidprom(), *map(locality, LEVELS)):
        made = stream(wanted, options.count, options.seed, warm=options.warm, **among)
        figures = achieved(made[options.warm :])
        cells = [figures["mean"], *(figures[f"share ≥ {t:.2f}"] for t in THRESHOLDS)]
        mean, *shares = ((cell["wanted"], cell["achieved"]) for cell in cells)
        table.add_row(wanted.name, f"{mean[0]:.3f}/{mean[1]:.3f}", *(f"{100 * w:.0f}/{100 * a:.0f}" for w, a in shares))
    console = Console(width=100)
    console.print(table)
    points = vectors(_some_prompts(_FLOOR_OF, options.seed, **among))
    numbers = (25, 50, 100, 200, 400, 700, 1000)
    lowest = floor(points, numbers[-1] - 1)
    shown = Table(
        *map(str, numbers), title=f"similarity of the n-th prompt chosen as unlike as can be of {len(points)}"
    )
    shown.add_row(*(f"{lowest[n - 2]:.3f}" for n in numbers))
    console.print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
