"""Procedural scenes for captions, laid out and drawn in batches on any device.

A caption fixes a few attributes; all else is open, so that a sampler has something to decide and needs its steps: where
everything is, sizes and speeds, one or two further objects, six small details of several tints, sizes and textures that
drift, and a wave in the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from .captions import BACKGROUNDS, COLOURS, COUNTS, DIRECTIONS, PANS, PLACES, SHAPES, Caption

SIZE = 96  # pixels a side
FRAMES = 5  # one RGB frame a latent frame
TOKEN = 8  # pixels a side
OBJECTS = 3
AREA = (0.05, 0.07)  # of an object, as a share of the frame
SPEED = (4.0, 5.2)  # pixels a frame, of the main object
DRIFT = 1.0  # pixels a frame at most, of an object that no prompt names
PAN = 4.0  # pixels a frame, one cell of the latent
# The exponent of random positions: 1 is anywhere on the way. Below 1 the main object starts rather far along its way
# (or rather at the beginning, where the second object is ahead), and a second object lies rather far out on its side.
LEAN = 0.4
WHITE = (0.97, 0.97, 0.97)
DOT_RADIUS = (5.4, 6.2)
MOST_DOTS = max(COUNTS.values())
DOT_GAP = 3.0  # pixels between dots
# Where dots lie about their middle, by how many there are: as on a die, in distances from one dot's centre to the next.
DIE = (
    ((0.0, 0.0),) * 4,
    ((0.0, 0.0),) * 4,
    ((-0.5, 0.0), (0.5, 0.0), (0.0, 0.0), (0.0, 0.0)),
    ((0.0, -0.58), (-0.5, 0.29), (0.5, 0.29), (0.0, 0.0)),
    ((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)),
)
DICE = 16  # places tried for the dots of a layout
DETAILS = 6
TINTS = ((1.00, 0.58, 0.12), (0.62, 0.28, 0.95), (0.68, 1.00, 0.78))  # orange, violet, mint
TEXTURES = ("disc", "ring", "bar")
DETAIL_RADIUS = (2.4, 4.0)
DETAIL_DRIFT = 2.5  # pixels a frame at most, on either axis
TRIES = 256  # layouts drawn at once for each scene; the first without overlap is taken
MOST_TRIES = 2**15  # layouts drawn at once for a scene whose caption leaves little room, when few others are open

# Area of a shape of radius 1, by which the radius follows from the area.
_UNIT_AREA = {"circle": np.pi, "square": 4 * 0.86**2, "triangle": 1.95, "cross": 4 * 0.36 * 2 - 4 * 0.36**2}
# How far a shape reaches from its centre, in radii.
_REACH = {"circle": 1.0, "square": 0.9, "triangle": 1.05, "cross": 1.0}


@dataclass
class Layout:
    """Everything about B scenes. Places are pixels, [..., 2] as (x, y), at the first frame; drifts are pixels a frame.

    Objects: main, second, third. `dots` counts what is named; `shape`, `colour` are indices.
    """

    background: Tensor  # [B]
    shape: Tensor  # [B, OBJECTS]
    colour: Tensor  # [B, OBJECTS]
    radius: Tensor  # [B, OBJECTS]
    place: Tensor  # [B, OBJECTS, 2]
    drift: Tensor  # [B, OBJECTS, 2]
    dots: Tensor  # [B]
    dot_place: Tensor  # [B, MOST_DOTS, 2]
    dot_radius: Tensor  # [B]
    detail_place: Tensor  # [B, DETAILS, 2]
    detail_drift: Tensor  # [B, DETAILS, 2]
    detail_radius: Tensor  # [B, DETAILS]
    detail_tint: Tensor  # [B, DETAILS]
    detail_texture: Tensor  # [B, DETAILS]
    pan: Tensor  # [B] pixels a frame to the right
    wave: Tensor  # [B, 4] angle, period, phase, amplitude

    def __getitem__(self, rows: slice) -> Layout:
        return Layout(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def lay_out(captions: Sequence[Caption], seed: int, device: str | torch.device = "cpu") -> Layout:
    """Draw everything that the captions leave open.

    Raises RuntimeError where a caption finds no layout without overlap, which does not happen with these sizes.
    """
    rng = torch.Generator(device).manual_seed(seed)
    count = len(captions)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=rng, device=device)

    def index(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=rng, device=device)

    def known(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=device)

    shapes, colours = index(len(SHAPES), count, OBJECTS), torch.rand(count, len(COLOURS), generator=rng, device=device)
    named = known([2 if c.second else 1 for c in captions])
    main_colour = known([list(COLOURS).index(c.colour) for c in captions])
    second_colour = known([list(COLOURS).index(c.second[0]) if c.second else -1 for c in captions])
    rows = torch.arange(count, device=device)
    colours[rows, main_colour] = 9.0
    colours[rows[named > 1], second_colour[named > 1]] = 8.0
    colour = colours.argsort(1, descending=True)[:, :OBJECTS]  # all differ; the named ones come first
    shapes[:, 0] = known([SHAPES.index(c.shape) for c in captions])
    second_shape = known([SHAPES.index(c.second[1]) if c.second else 0 for c in captions])
    shapes[:, 1] = torch.where(named > 1, second_shape, shapes[:, 1])
    unit_area = known([_UNIT_AREA[s] for s in SHAPES]).float()[shapes]
    shape_reach = known([_REACH[s] for s in SHAPES]).float()[shapes]
    pan = known([PANS[c.pan] if c.pan else 0 for c in captions]).float() * PAN
    ways = known([list(DIRECTIONS.values()).index(DIRECTIONS[c.direction]) for c in captions])
    way = known(list(DIRECTIONS.values())).float()[ways]
    places = known([list(PLACES).index(c.second[2]) if c.second else -1 for c in captions])
    dots = known([COUNTS[c.dots] if c.dots else 0 for c in captions])
    dot_radius = between(*DOT_RADIUS, count)

    fixed = (unit_area, shape_reach, way, named, places, dots, dot_radius, pan)
    radius = torch.zeros(count, OBJECTS, device=device)
    place, drift = torch.zeros(count, OBJECTS, 2, device=device), torch.zeros(count, OBJECTS, 2, device=device)
    dot_place = torch.zeros(count, MOST_DOTS, 2, device=device)
    open_rows = rows
    for _ in range(1000):
        tries = min(MOST_TRIES, TRIES * (count // len(open_rows)))
        found, good = _tries(between, tries, *(part[open_rows] for part in fixed))
        first, done = good.float().argmax(1), good.any(1)
        for target, part in zip((radius, place, drift, dot_place), found, strict=True):
            target[open_rows[done]] = part[torch.arange(len(open_rows), device=device), first][done]
        open_rows = open_rows[~done]
        if not len(open_rows):
            break
    else:
        raise RuntimeError(f"no room for {captions[int(open_rows[0])].text!r}")
    detail_drift = between(-DETAIL_DRIFT, DETAIL_DRIFT, count, DETAILS, 2)
    detail_drift[..., 0] += pan[:, None]
    wave = torch.stack(
        [
            between(0, np.pi, count),
            between(10.0, 20.0, count),
            between(0, 2 * np.pi, count),
            between(0.05, 0.11, count),
        ],
        1,
    )
    return Layout(
        background=known([list(BACKGROUNDS).index(c.background) for c in captions]),
        shape=shapes,
        colour=colour,
        radius=radius,
        place=place,
        drift=drift,
        dots=dots,
        dot_place=dot_place,
        dot_radius=dot_radius,
        detail_place=_details(between, detail_drift, count),
        detail_drift=detail_drift,
        detail_radius=between(*DETAIL_RADIUS, count, DETAILS),
        detail_tint=index(len(TINTS), count, DETAILS),
        detail_texture=index(len(TEXTURES), count, DETAILS),
        pan=pan,
        wave=wave,
    )


def _tries(between, tries, unit_area, shape_reach, way, named, places, dots, dot_radius, pan):  # type: ignore[no-untyped-def]
    """`tries` layouts of R scenes: ((radii, places, drifts, places of dots), which of them are good [R, tries])."""
    n, device = len(way), way.device
    radius = (between(*AREA, n, tries, OBJECTS) * SIZE * SIZE / unit_area[:, None]).sqrt()
    reach = radius * shape_reach[:, None]
    drift = torch.zeros(n, tries, OBJECTS, 2, device=device)
    drift[:, :, 0] = way[:, None] * between(*SPEED, n, tries)[..., None]
    drift[:, :, 1:, 0] = pan[:, None, None]
    free = torch.stack((named < 2, torch.ones_like(named, dtype=torch.bool)), 1)  # the named second object rests
    drift[:, :, 1:] += between(-DRIFT, DRIFT, n, tries, OBJECTS - 1, 2) * free[:, None, :, None]
    last = drift * (FRAMES - 1)
    low = reach[..., None] + 0.5 - last.clamp(max=0)
    high = SIZE - reach[..., None] - 0.5 - last.clamp(min=0)
    share = between(0, 1, n, tries, OBJECTS, 2)
    side = torch.tensor([*PLACES.values(), (0, 0)], device=device).float()[places]
    towards = torch.where((side * way).sum(1, keepdim=True) > 0, -way, way)  # then the words tell something of places
    share[:, :, 0] = _leaning(share[:, :, 0], towards[:, None])
    share[:, :, 1] = _leaning(share[:, :, 1], side[:, None])
    place = low + (high - low) * share
    good = (high > low).all(3).all(2)
    moments = torch.arange(FRAMES, device=device)
    path = place[:, :, None] + drift[:, :, None] * moments[:, None, None]  # [n, tries, FRAMES, OBJECTS, 2]
    dot_place, fits = _dots(between, path, reach, dots, dot_radius, pan)
    return (radius, place, drift, dot_place), good & _apart(path, reach) & _beside(path, places) & fits


def _apart(path: Tensor, reach: Tensor) -> Tensor:
    """Whether no object touches another one. path: [n, tries, FRAMES, OBJECTS, 2]; reach: [n, tries, OBJECTS]."""
    gaps = [
        (path[:, :, :, a] - path[:, :, :, b]).norm(dim=-1).amin(2) - reach[..., a] - reach[..., b]
        for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    return torch.stack(gaps).amin(0) > 1.0


def _beside(path: Tensor, places: Tensor) -> Tensor:
    """Whether the second object is where it is named, seen from the main one. places: [n] in PLACES, -1 for none."""
    side = torch.tensor([*PLACES.values(), (0, 0)], device=path.device).float()[places]
    away = (path[:, :, :, 1] - path[:, :, :, 0]).mean(2)
    along = (away * side[:, None]).sum(-1)
    across = (away * (1 - side.abs())[:, None]).sum(-1).abs()
    return (places < 0)[:, None] | ((along > 16.0) & (along > 1.3 * across))


def going_on(layout: Layout, captions: Sequence[Caption]) -> tuple[Layout, Tensor]:
    """The scenes with the same first frame that go on as other captions say, and whether they show these, [B] bool.

    A caption may name another direction, another pan, and the second object or not; what it names is there already.
    """
    device = layout.pan.device
    pan = torch.tensor([PANS[c.pan] if c.pan else 0 for c in captions], device=device).float() * PAN
    way = torch.tensor([DIRECTIONS[c.direction] for c in captions], device=device).float()
    drift, detail_drift = layout.drift.clone(), layout.detail_drift.clone()
    drift[:, 0] = way * drift[:, 0].norm(dim=-1, keepdim=True)
    more = (pan - layout.pan)[:, None]
    drift[:, 1:, 0] += more
    detail_drift[..., 0] += more
    shape_reach = torch.tensor([_REACH[s] for s in SHAPES], device=device)[layout.shape]
    reach = (layout.radius * shape_reach)[:, None]
    moments = torch.arange(FRAMES, device=device)
    path = (layout.place[:, None] + drift[:, None] * moments[:, None, None])[:, None]
    inside = ((path - reach[..., None] >= 0.5) & (path + reach[..., None] <= SIZE - 0.5)).flatten(1).all(1)
    panning = torch.stack((pan, torch.zeros_like(pan)), 1)[:, None, None]
    dots = layout.dot_place[:, None] + panning * moments[:, None, None]
    edge = layout.dot_radius[:, None, None] + 1.0
    there = torch.arange(MOST_DOTS, device=device) < layout.dots[:, None]
    fits = ((dots >= edge[..., None]) & (dots <= SIZE - edge[..., None])).all(-1)
    for o in range(OBJECTS):
        away = (dots - path[:, 0, :, o, None]).norm(dim=-1)
        fits &= away > reach[:, 0, o, None, None] + edge
    places = torch.tensor([list(PLACES).index(c.second[2]) if c.second else -1 for c in captions], device=device)
    good = _apart(path, reach)[:, 0] & _beside(path, places)[:, 0] & inside & (fits | ~there[:, None]).flatten(1).all(1)
    return replace(layout, drift=drift, detail_drift=detail_drift, pan=pan), good


def _leaning(share: Tensor, towards: Tensor) -> Tensor:
    """Random shares [..., 2] of the way along both axes, moved in the direction `towards` [..., 2]."""
    ahead = share**LEAN
    return torch.where(towards > 0, ahead, torch.where(towards < 0, 1 - ahead, share))


def _dots(between, path, reach, dots, dot_radius, pan):  # type: ignore[no-untyped-def]
    """Places of the white dots, as on a die and beside objects on their paths, and whether there is room for them."""
    (n, tries), device = path.shape[:2], dots.device
    apart = (2 * dot_radius + DOT_GAP)[:, None, None, None, None]
    offset = torch.tensor(DIE, device=device)[dots][:, None, None] * apart  # [n, 1, 1, MOST_DOTS, 2]
    edge = (dot_radius + 1.0)[:, None, None, None]
    low, high = edge - offset.amin(3), SIZE - edge - offset.amax(3)
    shift = pan[:, None, None] * (FRAMES - 1)
    low[..., 0] -= shift.clamp(max=0)
    high[..., 0] -= shift.clamp(min=0)
    place = (low + (high - low) * between(0, 1, n, tries, DICE, 2))[..., None, :] + offset
    clear = torch.ones(n, tries, DICE, dtype=torch.bool, device=device)
    wanted = torch.arange(MOST_DOTS, device=device) < dots[:, None, None, None]
    for t in range(FRAMES):
        now = place.clone()
        now[..., 0] += pan[:, None, None, None] * t
        for o in range(OBJECTS):
            away = (now - path[:, :, t, o, None, None]).norm(dim=-1)
            free = away > (reach[..., o] + dot_radius[:, None])[..., None, None] + 1.0
            clear &= (free | ~wanted).all(-1)
    first = clear.float().argmax(-1)[..., None, None, None].expand(-1, -1, 1, MOST_DOTS, 2)
    return place.gather(2, first)[:, :, 0], clear.any(-1)


def _details(between, drift, count):  # type: ignore[no-untyped-def]
    """Places of the details, so that they stay in the picture."""
    last = drift * (FRAMES - 1)
    low = 4.0 - last.clamp(max=0)
    return low + (SIZE - 8.0 - last.abs()) * between(0, 1, count, DETAILS, 2)


def coverage(shape: str, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """How much of each pixel a shape covers, in [0, 1], with a soft rim one pixel wide. x, y: from its centre."""
    if shape in ("circle", "disc"):
        inside = r - torch.hypot(x, y)
    elif shape == "square":
        inside = 0.86 * r - torch.maximum(x.abs(), y.abs())
    elif shape == "triangle":
        y = y - 0.15 * r
        inside = torch.minimum(0.85 * r - y, (y + 1.15 * r - 2.0 * x.abs()) / 2.236)
    elif shape == "cross":
        bar = torch.minimum(0.36 * r - x.abs(), r - y.abs())
        inside = torch.maximum(bar, torch.minimum(0.36 * r - y.abs(), r - x.abs()))
    elif shape == "ring":
        inside = torch.minimum(r + 0.6 - torch.hypot(x, y), torch.hypot(x, y) - 0.45 * r)
    elif shape == "bar":
        inside = torch.minimum(1.5 * r - x.abs(), 0.6 * r - y.abs())
    else:
        raise ValueError(f"shape {shape!r}: expected one of {', '.join((*SHAPES, *TEXTURES))}")
    return (inside + 0.5).clamp(0.0, 1.0)


def _chosen(names: Sequence[str], index: Tensor, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Coverage [B, T, SIZE, SIZE] of one thing a scene, whose shape is names[index]."""
    out = torch.empty(torch.broadcast_shapes(x.shape, y.shape), device=x.device)
    for i, name in enumerate(names):
        rows = (index == i).nonzero()[:, 0]
        if len(rows):
            out[rows] = coverage(name, x[rows], y[rows], r[rows, None, None, None])
    return out


def draw(layout: Layout) -> tuple[Tensor, Tensor]:
    """(video [B, FRAMES, SIZE, SIZE, 3] in [0, 1], coverage [B, 5, FRAMES, SIZE, SIZE]).

    The coverage is what is seen of the main, second and third object, of the dots and of the details.
    """
    device, count = layout.pan.device, len(layout.pan)
    moments = torch.arange(FRAMES, device=device, dtype=torch.float32)
    middle = torch.arange(SIZE, device=device) + 0.5
    xx, yy = middle[None, None, None], middle[None, None, :, None]
    angle, period, phase, amplitude = (part[:, None, None, None] for part in layout.wave.unbind(1))
    panned = xx - (layout.pan[:, None] * moments)[..., None, None]
    wave = amplitude * torch.sin((angle.cos() * panned + angle.sin() * yy) * (2 * np.pi / period) + phase)
    palette = torch.tensor(list(BACKGROUNDS.values()), device=device)
    video = palette[layout.background][:, :, None, None, None] + wave[:, None]  # [B, 3, T, S, S]
    seen = torch.zeros(count, 5, FRAMES, SIZE, SIZE, device=device)

    def paint(amount: Tensor, rgb: Tensor, kind: int) -> None:
        nonlocal video
        video = torch.lerp(video, rgb[:, :, None, None, None].expand_as(video), amount[:, None].expand_as(video))
        seen.mul_(1 - amount[:, None])
        seen[:, kind] += amount

    def offsets(place: Tensor, drift: Tensor) -> tuple[Tensor, Tensor]:
        at = place[:, None] + drift[:, None] * moments[:, None]
        return xx - at[..., 0, None, None], yy - at[..., 1, None, None]

    tints, colours = torch.tensor(TINTS, device=device), torch.tensor(list(COLOURS.values()), device=device)
    for i in range(DETAILS):
        x, y = offsets(layout.detail_place[:, i], layout.detail_drift[:, i])
        amount = _chosen(TEXTURES, layout.detail_texture[:, i], x, y, layout.detail_radius[:, i])
        paint(amount, tints[layout.detail_tint[:, i]], 4)
    panning = torch.stack((layout.pan, torch.zeros_like(layout.pan)), 1)
    for i in range(MOST_DOTS):
        x, y = offsets(layout.dot_place[:, i], panning)
        there = (layout.dots > i).float()[:, None, None, None]
        amount = there * coverage("disc", x, y, layout.dot_radius[:, None, None, None])
        paint(amount, torch.tensor(WHITE, device=device).expand(count, 3), 3)
    for i in reversed(range(OBJECTS)):
        x, y = offsets(layout.place[:, i], layout.drift[:, i])
        paint(_chosen(SHAPES, layout.shape[:, i], x, y, layout.radius[:, i]), colours[layout.colour[:, i]], i)
    return video.clamp(0, 1).movedim(1, -1), seen
