"""What a sound entry looks like: bounds for every field of its record and for every one of its tensors.

The same rules hold for what is written (`format.pack`), read (`record.read_record`, `format.EntryFile`) and imported
(`foreign.unpack`). So an entry that was edited on disk, or made by a stranger, counts as damage and is never served.
Each function raises ValueError; its text names the field or tensor, and its value.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .entry import Entry, Space

if TYPE_CHECKING:
    import torch

MOST_RECORD = 4 * 2**20  # characters of a record
MOST_PROMPT = 200_000  # characters
MOST_NAME = 10_000  # characters of a digest, an embedder's name, …
MOST_SECONDS = 7 * 86_400.0  # of sampling: a longer time is an error, and would spoil every total
MOST_CREATED = 1e11  # Unix time in seconds: the year 5138
MOST_SIGMA = 1e6
MOST_STEPS = 10_000
MOST_SETTING = 2**20  # characters of a text in the settings
MOST_DEPTH = 20  # of objects and lists in the settings
MOST_NUMBER = 2.0**64  # in the settings: seeds have 64 bits
MOST_AXES, MOST_SIZE, MOST_LATENT = 8, 2**20, 2**31  # of a latent: axes, size of one, number of values

LATENT = 1e4  # largest magnitude: latents of all families stay below 100, and half precision ends at 65,504
HALF = 65_504.0  # largest number in half precision, in which words are kept

# How many values the coded tensors of one file may have. A real latent takes a byte for at most 100 values or so;
# a file that claims more would take gigabytes and minutes to decode, whatever it holds.
VALUES_PER_BYTE, VALUES_FREE = 256, 2**20

MOST_WORKFLOW = 32 * 2**20  # bytes of JSON
MOST_WORKFLOW_PARTS = 2_000_000  # values, about: each takes up to 70 bytes in memory once it is parsed
_PIECE = 2**16  # bytes unpacked at once

_ID = re.compile(r"[0-9a-f]{32}")
_AT_SIGMA = re.compile(r"(checkpoint|estimate)/([0-9]{1,7}\.[0-9]{6})")
_FLOATS = frozenset(("float16", "bfloat16", "float32"))
_BYTES = frozenset(("uint8",))

# Settings that Chorus itself reads; others may be anything that JSON can say.
_SETTINGS: dict[str, tuple[type, ...]] = {
    "sampler": (str,),
    "noise": (str,),
    "carried": (str,),
    "plan": (str,),
    "precision": (str,),
    "noise_drawn": (bool,),
    "seed": (int, type(None)),
    "calls": (list,),
    "stages": (dict,),
    "report": (dict,),
}


@dataclass(frozen=True)
class Layout:
    """A tensor without its values. dtype: by torch's name, for example "float32"."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Kind:
    """What a tensor of some name may be. sizes: the most along each axis, None for the shape of the space.

    least, most: of its values; not asked of bytes.
    """

    dtypes: frozenset[str]
    sizes: tuple[int, ...] | None
    least: float
    most: float


KINDS = {
    "final": Kind(_FLOATS, None, -LATENT, LATENT),
    "checkpoint": Kind(_FLOATS, None, -LATENT, LATENT),
    "estimate": Kind(_FLOATS, None, -LATENT, LATENT),
    "tokens": Kind(_FLOATS, (2**16, 2**16), -HALF, HALF),
    "attention": Kind(_FLOATS, (2**16, 64, 64, 64), 0.0, HALF),
    "preview": Kind(_BYTES, (64, 512, 512, 3), 0, 255),
    "workflow": Kind(_BYTES, (MOST_WORKFLOW,), 0, 255),
}
_MOST_STRIP = 16_383  # pixels that the preview's frames are high, one below the other: WebP has no larger pictures


@lru_cache(1024)
def kind_of(name: str) -> Kind:
    """What the tensor called `name` may be."""
    at_sigma = _AT_SIGMA.fullmatch(name)
    kind = KINDS.get(at_sigma[1] if at_sigma else name)
    if kind is None or name in ("checkpoint", "estimate"):
        raise ValueError(f"no tensor of an entry is called {_shown(name)}")
    return kind


# -- the record


def check_entry(entry: Entry) -> None:
    """What the record says, each field by itself and beside the others."""
    if not isinstance(entry.id, str) or not _ID.fullmatch(entry.id):
        raise ValueError(f"id {_shown(entry.id)}: expected 32 hexadecimal digits")
    _check_number("created", entry.created, MOST_CREATED)
    _check_number("seconds", entry.seconds, MOST_SECONDS)
    check_space(entry.space)
    _check_text("prompt", entry.prompt, MOST_PROMPT)
    _check_name("request", entry.request)
    _check_name("embedder", entry.embedder)
    if entry.parent is not None:
        _check_name("parent", entry.parent)
    if type(entry.is_source) is not bool:
        raise ValueError(f"is_source {_shown(entry.is_source)}: expected true or false")
    _check_sigmas(entry.sigmas)
    _check_settings(entry.settings)
    _check_names(entry)


def check_space(space: Space) -> None:
    for name in ("weights", "latent_format", "task", "prediction"):
        _check_name(f"space.{name}", getattr(space, name))
    if space.patches != "":
        _check_name("space.patches", space.patches)
    _check_shape("space.shape", space.shape, 1, MOST_SIZE)
    if not 0 < len(space.shape) <= MOST_AXES or math.prod(space.shape) > MOST_LATENT:
        raise ValueError(f"space.shape {_shown(space.shape)}: no latent has this shape")


def _check_sigmas(sigmas: tuple[float, ...]) -> None:
    if not 2 <= len(sigmas) <= MOST_STEPS + 1:
        raise ValueError(f"{len(sigmas)} sigmas: a schedule has 2 to {MOST_STEPS + 1}")
    if not all(type(sigma) is float or type(sigma) is int for sigma in sigmas):
        raise ValueError(f"sigmas {_shown(sigmas)}: expected numbers")
    _check_number("sigma", sigmas[0], MOST_SIGMA)
    _check_number("sigma", sigmas[-1], MOST_SIGMA)
    if sigmas[0] <= sigmas[-1] or not all(a >= b for a, b in pairwise(sigmas)):  # NaN is neither
        raise ValueError(f"sigmas {_shown(sigmas)}: expected a schedule that falls")


def _check_settings(settings: dict[str, Any]) -> None:
    if not isinstance(settings, dict):
        raise ValueError(f"settings {_shown(settings)}: expected an object")
    for name, types in _SETTINGS.items():
        if name in settings and type(settings[name]) not in types:
            raise ValueError(f"settings.{name} {_shown(settings[name])}: expected {types[0].__name__}")
    level: list[Any] = [settings]
    for _ in range(MOST_DEPTH):
        level = [value for parent in level for value in _values(parent)]
        if not level:
            break
    else:
        raise ValueError(f"settings: more than {MOST_DEPTH} objects or lists within each other")


def _values(parent: dict | list) -> list[Any]:
    """The objects and lists directly in `parent`, after its other values were checked."""
    inner = []
    if isinstance(parent, dict):
        for name in parent:
            _check_text("settings", name, MOST_NAME)
    for value in parent.values() if isinstance(parent, dict) else parent:
        if isinstance(value, dict | list):
            inner.append(value)
        elif isinstance(value, str):
            _check_text("settings", value, MOST_SETTING)
        elif value is not None and not (isinstance(value, int | float) and abs(value) <= MOST_NUMBER):
            raise ValueError(f"settings: {_shown(value)} is no number of at most 2^64")
    return inner


def _check_names(entry: Entry) -> None:
    """The tensors by name, and what the record says of their shapes and coding."""
    names = entry.tensor_names
    if not all(isinstance(name, str) for name in names) or list(names) != sorted(set(names)):
        raise ValueError(f"tensor_names {_shown(names)}: expected texts in their order, each once")
    if "final" not in names:
        raise ValueError(f"tensor_names {_shown(names)}: an entry has a final latent")
    for name in names:
        kind_of(name)
        at_sigma = _AT_SIGMA.fullmatch(name)
        if at_sigma and not 0 < float(at_sigma[2]) <= entry.sigmas[0] + 1e-6:
            raise ValueError(f"tensor {name}: its schedule has no such sigma")
    if entry.shapes and set(entry.shapes) != set(names):
        raise ValueError(f"shapes {_shown(sorted(entry.shapes))}: the tensors are {_shown(names)}")
    for name, shape in entry.shapes.items():
        _check_tensor_shape(name, shape, entry.space)
    _check_words(entry.shapes)
    if not isinstance(entry.coding, dict) or not set(entry.coding) <= set(names):
        raise ValueError(f"coding {_shown(entry.coding)}: the tensors are {_shown(names)}")
    for name, coding in entry.coding.items():
        _check_name(f"coding of {name}", coding)


# -- tensors


def check_layout(entry: Entry, layouts: Mapping[str, Layout]) -> None:
    """The types and shapes that an entry's tensors have, before room is made for any of them."""
    if sorted(layouts) != list(entry.tensor_names):
        raise ValueError(f"it has other tensors ({_shown(sorted(layouts))}) than its record says")
    for name, layout in layouts.items():
        if layout.dtype not in kind_of(name).dtypes:
            raise ValueError(f"tensor {name} is of type {layout.dtype}")
        _check_tensor_shape(name, layout.shape, entry.space)
        if name in entry.shapes and layout.shape != tuple(entry.shapes[name]):
            raise ValueError(f"tensor {name} has another shape, {_shown(layout.shape)}, than its record says")
    _check_words({name: layout.shape for name, layout in layouts.items()})


def check_expansion(values: int, size: int) -> None:
    """How many values the coded tensors of a file of `size` bytes have, before any is decoded."""
    if values > VALUES_FREE + VALUES_PER_BYTE * size:
        raise ValueError(f"its coded tensors unpack to {values:,} values, too many for a file of {size:,} bytes")


def check_values(name: str, tensor: torch.Tensor) -> None:
    """The values of the tensor called `name`, or of a piece of it: finite, and within the bounds of its kind."""
    if name == "workflow":
        read_workflow(tensor.cpu().numpy().tobytes())
        return
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return
    kind = kind_of(name)
    low, high = (float(bound) for bound in tensor.aminmax())  # both are NaN where one value is
    if not (kind.least <= low and high <= kind.most):
        raise ValueError(f"tensor {name} holds values from {low:g} to {high:g}; {kind.least:g} to {kind.most:g} can be")


def read_workflow(content: bytes) -> dict[str, Any]:
    """The graph in the tensor `workflow`: {"workflow": {…}} or {"prompt": {…}}, from zlib's bytes.

    ValueError for anything else, and for what would take much more room than a graph does.
    """
    graph = _read_json(_unpacked(content))
    if not isinstance(graph, dict) or list(graph) not in (["workflow"], ["prompt"]):
        raise ValueError("its workflow is no graph")
    if not isinstance(next(iter(graph.values())), dict):
        raise ValueError("its workflow is no graph")
    return graph


def workflow_parts(text: bytes) -> int:
    """How many values a text of JSON, or a piece of one, has at most, about."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def _unpacked(content: bytes) -> bytearray:
    """What zlib packed, piece by piece, so that too much is noticed before it is there."""
    unpacker, text, parts = zlib.decompressobj(), bytearray(), 0
    try:
        while not unpacker.eof:
            piece = unpacker.decompress(content, _PIECE)
            content = unpacker.unconsumed_tail
            if not piece and not content and not unpacker.eof:
                raise ValueError("its workflow is cut off")
            text += piece
            parts += workflow_parts(piece)
            if len(text) > MOST_WORKFLOW or parts > MOST_WORKFLOW_PARTS:
                raise ValueError(f"its workflow unpacks to more than {MOST_WORKFLOW:,} bytes, or to too many values")
    except zlib.error as error:
        raise ValueError(f"its workflow cannot be unpacked ({error})") from error
    if unpacker.unused_data:
        raise ValueError("its workflow is followed by other bytes")
    return text


def _read_json(text: bytearray) -> Any:
    try:
        value = json.loads(text, parse_constant=_no_constant)
        json.dumps(value, allow_nan=False)  # a number beyond floats, and what is too deep to be sent on
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its workflow is not JSON ({str(error)[:100]})") from error
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# -- parts of a check


def _check_tensor_shape(name: str, shape: tuple[int, ...], space: Space) -> None:
    sizes = kind_of(name).sizes
    if sizes is None:
        whole = tuple(space.shape)
        if name.startswith("estimate/") and _is_coarser(shape, whole):
            return
        if tuple(shape) != whole:
            raise ValueError(f"tensor {name} has another shape, {_shown(shape)}, than its space, {_shown(space.shape)}")
        return
    least = 0 if name in ("tokens", "attention") else 1  # an empty prompt has no words
    _check_shape(f"tensor {name}: shape", shape, least, max(sizes))
    fits = len(shape) == len(sizes) and all(size <= most for size, most in zip(shape, sizes, strict=True))
    if name == "preview" and fits:
        fits = shape[3] == 3 and shape[0] * shape[1] <= _MOST_STRIP
    if not fits:
        raise ValueError(f"tensor {name} has the shape {_shown(shape)}; at most {_shown(sizes)} can be")


def _is_coarser(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether a shape is that of a latent in which several cells, and several frames, are one."""
    same = len(shape) == len(whole) in (4, 5) and tuple(shape[:2]) == whole[:2]
    return same and all(type(size) is int and 0 < size <= most for size, most in zip(shape[2:], whole[2:], strict=True))


def _check_words(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """As many maps of attention as there are words."""
    if "tokens" in shapes and "attention" in shapes and shapes["tokens"][0] != shapes["attention"][0]:
        raise ValueError(f"{shapes['attention'][0]} maps of attention for {shapes['tokens'][0]} words")


def _check_shape(name: str, shape: tuple[int, ...], least: int, most: int) -> None:
    if not isinstance(shape, tuple) or not all(type(size) is int and least <= size <= most for size in shape):
        raise ValueError(f"{name} {_shown(shape)}: expected whole numbers from {least} to {most:,}")


def _check_number(name: str, value: float, most: float) -> None:
    if type(value) not in (int, float) or not 0 <= value <= most:
        raise ValueError(f"{name} {_shown(value)}: expected a number from 0 to {most:g}")


def _check_text(name: str, text: str, most: int) -> None:
    if not isinstance(text, str) or len(text) > most:
        raise ValueError(f"{name} {_shown(text)}: expected text of at most {most:,} characters")


def _check_name(name: str, text: str) -> None:
    _check_text(name, text, MOST_NAME)
    if not text or not text.isprintable():
        raise ValueError(f"{name} {_shown(text)}: expected printable text")


def _shown(value: Any) -> str:
    """A value for a message: short, and without characters that do something to a terminal."""
    if isinstance(value, str | tuple | list):
        value = value[:100]
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number with too many digits, or values nested too deeply
        text = type(value).__name__
    return text if len(text) <= 100 else text[:97] + "…"
