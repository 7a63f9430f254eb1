"""Looks a request up: makes a plan of what is connected to the node, and tells when to look up again."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..cache import Cache, CacheError, Entry, Match, Query, Space
from ..messages import Message, said_by, say
from ..prompt.embedding import PromptVector
from ..reuse.calibration import calibration_of
from ..reuse.plan import Plan, Refused, Source
from .caches import open_cache, warn
from .content import NotUnderstood
from .embed import NoText, embed
from .faults import Unsuitable
from .networks import network_of
from .noise_mask import kept_cells, mask_digest
from .place import Place, current
from .signature import RunningNode
from .space import expert, models_signed, space_of, start_latent
from .text import text_of_request

ALIKE = 16  # entries that are compared where several have the same score, as takes of one prompt have
SAME_SCORE = 1e-6
MODES = ("read and write", "read only", "write only", "off")
TAKES = ("keep the match's composition", "another take")


@dataclass(frozen=True)
class LookupSettings:
    """The widgets of a look-up."""

    prompt: str  # "" also when the host asks for a fingerprint while the prompt is linked
    threshold: float  # 0: the calibrated one
    mode: str
    cache_name: str
    embedding: str
    source: str = ""  # id of the entry to start from; "": the nearest
    take: str = TAKES[0]
    place: Place = field(default_factory=current)  # of the cache, when the request began


def look_up(
    models: list[Any],
    latent: dict[str, Any],
    settings: LookupSettings,
    clip: Any | None = None,
    conditioning: list[Any] | None = None,
    start_image: torch.Tensor | None = None,
) -> Plan:
    """The plan of a request. models: one MODEL, or two for a model of two experts.

    A request that is not understood gives a plan that declines with the reason; a fault of the cache is a miss that
    says so.
    """

    try:
        return _looked_up(models, latent, settings, clip, conditioning, start_image)
    except NotUnderstood as error:
        return declined(settings, say("bypassed.not_understood", why=str(error)))
    except Unsuitable as error:
        return declined(settings, error.why)
    except NoText as error:
        return declined(settings, error.said)


def declined(settings: LookupSettings, why: Message) -> Plan:
    """The plan of a request that is sampled as if no Chorus node were there."""
    return Plan(
        id=uuid.uuid4().hex,
        cache_name=settings.cache_name,
        place=settings.place,
        reads=False,
        writes=False,
        prompt=settings.prompt,
        explanation=why,
        declined=why,
    )


def _looked_up(
    models: list[Any],
    latent: dict[str, Any],
    settings: LookupSettings,
    clip: Any | None,
    conditioning: list[Any] | None,
    start_image: torch.Tensor | None,
) -> Plan:
    began = time.perf_counter()
    if settings.mode not in MODES:
        raise ValueError(f"mode {settings.mode!r}: expected one of {', '.join(MODES)}")
    if settings.take not in TAKES:
        raise ValueError(f"take {settings.take!r}: expected one of {', '.join(TAKES)}")
    node = _running_node()
    text = text_of_request(node, settings.prompt, clip, conditioning)
    links = [link for name in ("model", "low_noise_model") if node and (link := node.link(name))]
    space = space_of(models, latent, start_image, conditioning, node, links, text.encoders)
    # A text that nobody knows cannot be embedded; its encoding can.
    way = settings.embedding if text.prompt or conditioning is None else "conditioning"
    embedded = embed(text.prompt, way, clip, conditioning)
    vector, mask = embedded.vector, latent.get("noise_mask")
    plan = Plan(
        id=uuid.uuid4().hex,
        cache_name=settings.cache_name,
        place=settings.place,
        reads=settings.mode in MODES[:2],
        writes=settings.mode in (MODES[0], MODES[2]),
        prompt=text.prompt,
        explanation=say("lookup.off") if settings.mode == MODES[3] else say("lookup.write_only"),
        embedder=vector.embedder,
        vector=vector.vector,
        space=space,
        token_size=network_of(models[0]).token_size,
        experts=(experts := tuple(expert(model) for model in models)),
        models_signed=tuple(models_signed(node, links, text.encoders))
        if node and any(one.foreign for one in experts)
        else (),
        prompt_nodes=text.encoders,
        threshold=settings.threshold or calibration_of(vector.embedder).threshold,
        start_latent=start_latent(latent["samples"]),
        noise_mask=mask_digest(None if mask is None else kept_cells(mask, space.shape)),
        tokens=embedded.tokens,
        encoded=embedded.encoded,
        token_labels=embedded.labels,
        chosen=settings.source,
        another_take=settings.take == TAKES[1],
        notes=text.notes,
    )
    if plan.reads:
        plan = _searched(plan)
    answers.remember(settings, vector, space, plan)
    return replace(plan, lookup_seconds=time.perf_counter() - began)


def _running_node() -> RunningNode | None:
    try:
        return RunningNode()
    except NotUnderstood:  # a look-up without a graph, as in a script
        return None


def _searched(plan: Plan) -> Plan:
    """The plan with what its cache answers now."""
    try:
        find = _take if plan.chosen else _search
        source, alike, score, explanation, nearest = find(open_cache(plan.cache_name, plan.place), plan)
    except CacheError as error:
        explanation = say("lookup.unreadable", error=said_by(error))
        warn(str(explanation))
        return replace(plan, explanation=explanation)
    return replace(plan, source=source, alike=alike, score=score, explanation=explanation, nearest=nearest)


def refreshed(plan: Plan) -> Plan:
    """A plan that was a miss, looked up again in what the cache holds now; any other plan as it is.

    The host does not run a look-up again for the entry that its own request has stored (`Answers`); a request that
    differs in its seed or sampler meets that entry here.
    """
    return _searched(plan) if plan.reads and plan.declined is None and plan.source is None else plan


def with_source(plan: Plan, entry: Entry) -> Plan:
    """The plan with another source of the same score. Raises CacheError."""
    source = _source(open_cache(plan.cache_name, plan.place), Match(entry, plan.score))
    why = say("lookup.hit", score=plan.score, threshold=plan.threshold, prompt=entry.prompt)
    return replace(plan, source=source, explanation=why)


# The source, others of its very score, that score, the sentence that explains it, and on a miss the nearest entries.
_Found = tuple[Source | None, tuple[Entry, ...], float, Message, tuple[Refused, ...]]


def _search(cache: Cache, plan: Plan) -> _Found:
    assert plan.vector is not None
    found = cache.search(plan.vector, plan.embedder, plan.space, k=ALIKE)
    best = found[0] if found else None
    if best is not None and best.score >= plan.threshold:
        why = say("lookup.hit", score=best.score, threshold=plan.threshold, prompt=best.entry.prompt)
        alike = tuple(m.entry for m in found[1:] if m.score > best.score - SAME_SCORE)
        return _source(cache, best), alike, best.score, why, ()
    elsewhere = cache.search_elsewhere(plan.vector, plan.embedder, plan.space, k=2)
    nearest = tuple(Refused(m.entry, m.score, plan.space.differing(m.entry.space)) for m in [*found[:3], *elsewhere])
    if not nearest:
        return None, (), -1.0, say("miss.empty"), ()
    lines = [say("miss.near", score=r.score, prompt=r.entry.prompt, why=_reasons(r, plan)) for r in nearest[:4]]
    return None, (), best.score if best else -1.0, say("miss.nearest", nearest=lines), nearest


def _take(cache: Cache, plan: Plan) -> _Found:
    """The entry that was chosen, whatever its score; a miss with the reason where it cannot be started from."""
    assert plan.vector is not None
    entry = cache.get(plan.chosen)
    if entry is None:
        return None, (), -1.0, say("miss.chosen_gone", entry=plan.chosen), ()
    same_space = Query(weights=plan.space.weights, shape=plan.space.shape, source=True)
    found = cache.search(plan.vector, plan.embedder, plan.space, max(1, cache.count(same_space)))
    scores = {m.entry.id: m.score for m in found}
    # Another embedder gives no score: reuse as little as a match at the threshold would.
    match = Match(entry, scores.get(entry.id, plan.threshold))
    if differs := plan.space.differing(entry.space):
        refused = Refused(entry, match.score, differs)
        why = say("miss.chosen_differs", prompt=entry.prompt, why=_reasons(refused, plan))
        return None, (), match.score, why, (refused,)
    if not entry.is_source:
        return None, (), match.score, say("miss.chosen_reused", prompt=entry.prompt), ()
    return _source(cache, match), (), match.score, say("lookup.chosen", score=match.score, prompt=entry.prompt), ()


def _source(cache: Cache, match: Match) -> Source:
    tensors = cache.load(match.entry.id, {"tokens", "attention"} & set(match.entry.tensor_names))
    return Source(match.entry, match.score, tensors.get("tokens"), tensors.get("attention"))


def _reasons(refused: Refused, plan: Plan) -> tuple[Message, ...]:
    return plan.space.differences(refused.entry.space) or (say("miss.below", threshold=plan.threshold),)


def source_preview(plan: Plan) -> torch.Tensor:
    """The matched video's frames as IMAGE [F, H, W, 3] in [0, 1]; one black frame on a miss."""
    if plan.source is not None and "preview" in plan.source.entry.tensor_names:
        try:
            frames = open_cache(plan.cache_name, plan.place).load(plan.source.entry.id, ["preview"])["preview"]
            return frames.float() / 255.0
        except Exception as error:  # only the picture on the node is lost
            warn(f"the source's preview cannot be shown: {type(error).__name__}: {error}")
    return torch.zeros(1, 64, 64, 3)


@dataclass
class _Answer:
    """The last look-up under some settings, and the token by which the host knows it."""

    token: str
    asked: tuple[PromptVector, Space] | None = None  # None: not looked up yet
    source: str | None = None  # entry id
    made_by: str = ""  # plan id of the look-up


class Answers:
    """Tells the host when a look-up has to run again: only if its answer would be another one.

    The entry that a run stores would be the best match of its own look-up; it does not count there.
    """

    def __init__(self, kept: int = 256):
        self._kept = kept
        self._answers: OrderedDict[LookupSettings, _Answer] = OrderedDict()

    def remember(self, settings: LookupSettings, vector: PromptVector, space: Space, plan: Plan) -> None:
        for known in (settings, replace(settings, prompt="")):
            answer = self._answers.setdefault(known, _Answer(uuid.uuid4().hex))
            answer.asked, answer.made_by = (vector, space), plan.id
            answer.source = plan.source.entry.id if plan.source else None
            self._answers.move_to_end(known)
        while len(self._answers) > self._kept:
            self._answers.popitem(last=False)

    def token(self, settings: LookupSettings) -> str:
        """A text that stays the same as long as the look-up's answer does."""
        answer = self._answers.setdefault(settings, _Answer(uuid.uuid4().hex))
        if settings.mode not in MODES[:2] or answer.asked is None:
            return answer.token
        source = self._source_now(settings, answer, *answer.asked)
        if source != answer.source:
            answer.token, answer.source = uuid.uuid4().hex, source
        return answer.token

    @staticmethod
    def _source_now(settings: LookupSettings, answer: _Answer, vector: PromptVector, space: Space) -> str | None:
        threshold = settings.threshold or calibration_of(vector.embedder).threshold
        try:
            if settings.source:
                chosen = open_cache(settings.cache_name, settings.place).get(settings.source)
                return chosen.id if chosen and chosen.space == space and chosen.is_source else None
            found = open_cache(settings.cache_name, settings.place).search(vector.vector, vector.embedder, space, k=4)
        except CacheError:
            return answer.source
        others = [m for m in found if m.entry.settings.get("plan") != answer.made_by]
        return others[0].entry.id if others and others[0].score >= threshold else None


answers = Answers()
