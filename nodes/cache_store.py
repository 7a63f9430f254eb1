"""ChorusCacheStore: keeps a finished run for later requests."""

from comfy_api.latest import io

from ..chorus.comfy import store, workflows
from ..chorus.comfy.faults import never_lost
from ..chorus.comfy.shown import stored_figures
from ..chorus.reuse.profiles import DEFAULT, PROFILES
from .sockets import CATEGORY, Chorus


def _not_stored(fault, latent, **inputs) -> io.NodeOutput:
    return io.NodeOutput(latent, "", str(fault), ui={"text": (str(fault),)})


class ChorusCacheStore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ChorusCacheStore",
            display_name="Chorus Cache Store",
            category=CATEGORY,
            description="Keeps a finished run: its states, final latent, encoded words and preview. Of a run that was "
            "itself a hit only the result is kept: other requests start only from runs that were computed in full.",
            search_aliases=["save latent", "cache", "remember", "store"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                io.Latent.Input("latent", tooltip="What the sampler returned."),
                Chorus.Input("chorus", tooltip="The plan under which it was sampled."),
                io.Image.Input("frames", optional=True, tooltip="The decoded video, for the preview."),
                io.Float.Input(
                    "keep",
                    default=0.75,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="Keep the states of this first fraction of the schedule. No run starts from later ones.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PROFILES),
                    default=DEFAULT,
                    optional=True,
                    tooltip="How states are kept; the result itself is always kept exactly. small: a few states, "
                    "compressed without visible loss. near-lossless: twice as many, finer. fp16, fp32: every state, "
                    "not compressed.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="The latent, unchanged."),
                io.String.Output(display_name="entry id", tooltip="The new entry, empty when nothing was stored."),
                io.String.Output(
                    display_name="summary", tooltip="What was reused, what was computed, what was stored."
                ),
            ],
        )

    @classmethod
    @never_lost(_not_stored)
    def execute(cls, latent, chorus, frames=None, keep=0.75, precision=DEFAULT) -> io.NodeOutput:
        stored = store.store(chorus, latent, frames, keep, precision, cls._graph())
        summary = store.summary(stored)
        shown = {"text": (summary,), "chorus": (stored_figures(stored),)}
        return io.NodeOutput(latent, stored.entry_id, summary, ui=shown)

    @classmethod
    def _graph(cls):
        """The graph at hand, to open again from the entry."""
        if cls.hidden is None:
            return None
        return workflows.packed((cls.hidden.extra_pnginfo or {}).get("workflow"), cls.hidden.prompt)
