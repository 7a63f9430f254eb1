"""What the tries of all families came to, as a page and as part of the benchmarks' summary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .conftest import Answer, Tried, told

CHECKOUT = Path(__file__).resolve().parent.parent.parent
PAGE = CHECKOUT / "docs" / "models.md"
SUMMARY = CHECKOUT / "benchmarks" / "results" / "summary.json"
COMMAND = "python tools/run.py test tests/families --write-tables"

_HEAD = """# Models

Which families of models Chorus serves, and how far. Each family is tried with a model of its own architecture through \
ComfyUI's own loader and nodes. The models are as small as the architecture allows and have random weights. So the \
table says what works, not how good a video looks. A test run writes it (`{command}`). A test fails if it is out of \
date.

- *Without a hit*: whether a run with the Chorus nodes gives the same latent as the graph without them, bit for bit.
- *Look and join*, *early start*: whether a similar prompt starts from an earlier video in this way \
([architecture](architecture.md#words)).
- *Selective steps*: whether steps can compute a part of the tokens.
- *Words*: whether new words can be amplified (TGAA).
- *Must agree*: the inputs beside the text. For each it was tried that another one is no hit. The text may differ.

✓: it works. "Declined" gives the reason that people are shown; the run is then sampled in full, or with the other \
stages. –: it does not apply.

| Family | Without a hit | Look and join | Early start | Selective steps | Words | The same request again | Must agree |
|---|---|---|---|---|---|---|---|
"""


def page(families: Sequence[Tried]) -> str:
    return _HEAD.format(command=COMMAND) + "".join(f"| {' | '.join(_row(tried))} |\n" for tried in families)


def summary(families: Sequence[Tried]) -> str:
    """The summary of the benchmarks with the counts of these families, as JSON."""
    counts = {
        "families_bit_identical": sum(tried.bit_identical for tried in families),
        "families_inputs_tried": sum(len(tried.inputs) for tried in families),
        "families_tried": len(families),
        "families_wrong_hits": sum(len(tried.wrong_hits) for tried in families),
    }
    known = json.loads(SUMMARY.read_text(encoding="utf-8")) | counts
    return json.dumps(known, indent=1, sort_keys=True) + "\n"


def _row(tried: Tried) -> list[str]:
    similar, again = tried.similar, tried.again
    hit = similar.outcome == "hit"
    same = again.outcome == "identical"
    return [
        tried.family.name,
        "bit-identical" if tried.bit_identical else "**differs**",
        _stage(similar, similar.report.get("look", False), "early start instead of look and join"),
        _stage(tried.early, True, ""),
        _part(similar, "no selective steps") if hit else "–",
        _part(similar, "no word is amplified") if hit else "–",
        "✓" if same else "–" if again.outcome == "bypassed" else "**computed again**",
        ", ".join(tried.family.inputs) + "".join(f" (**wrong hit: {name}**)" for name in tried.wrong_hits) or "–",
    ]


def _stage(answer: Answer, used: bool, refusal: str) -> str:
    if answer.outcome != "hit":
        return f"declined: {answer.reason}"
    return "✓" if used else f"declined: {told(answer, refusal)}"


def _part(answer: Answer, refusal: str) -> str:
    why = told(answer, refusal)
    return f"declined: {why}" if why else "✓"
