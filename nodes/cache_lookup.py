"""ChorusCacheLookup: finds the most similar earlier request."""

import torch
from comfy_api.latest import io

from ..chorus.comfy import embed, lookup
from ..chorus.comfy.faults import never_lost
from ..chorus.comfy.shown import plan_figures
from .sockets import CATEGORY, LATENT_TOOLTIP, PROMPT_TOOLTIP, Chorus


def settings_inputs() -> list[io.Input]:
    """The widgets of a look-up after the prompt, in their order."""
    return [
        io.Float.Input(
            "threshold",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Lowest match score that counts as a hit: the cosine similarity of two prompts, 1 for the same "
            "text. 0 takes the value calibrated for the embedding.",
        ),
        io.Combo.Input(
            "mode",
            options=list(lookup.MODES),
            default=lookup.MODES[0],
            tooltip="Whether this request may start from the cache, be added to it, both, or neither.",
        ),
        io.String.Input(
            "cache_name",
            default="default",
            tooltip="Which cache to use. Each cache has its own entries; requests find only those of their own cache.",
            advanced=True,
        ),
        io.Combo.Input(
            "embedding",
            options=list(embed.WAYS),
            default=embed.WAYS[0],
            tooltip="How the prompt becomes a vector: open_clip, the CLIP socket, or the graph's own encoded prompt. "
            "Auto takes open_clip if its weights are on this machine. Only prompts embedded in the same way are "
            "compared.",
            advanced=True,
        ),
    ]


def optional_inputs() -> list[io.Input]:
    """The optional inputs of a look-up, in their order.

    The frontend passes a bypassed node's output on from the socket at the same place, if it has the same type. So in
    the node Chorus the second expert is the third socket, as it is the third output.
    """
    return [
        io.Model.Input(
            "low_noise_model",
            optional=True,
            tooltip="The second expert of a model in two parts (Wan 2.2 14B). Connect the plan to both.",
        ),
        io.Clip.Input(
            "clip",
            optional=True,
            tooltip="The text encoder: embeds the prompt without a download, and names its tokens.",
        ),
        io.Conditioning.Input(
            "positive",
            optional=True,
            tooltip="The encoded prompt that is sampled. It tells which words are new, and carries a start image.",
        ),
        io.Image.Input(
            "start_image",
            optional=True,
            tooltip="The image an image-to-video request starts from; only requests with the same one match.",
        ),
        io.String.Input(
            "source",
            default="",
            optional=True,
            tooltip="Id of the entry to start from, whatever its score; if empty, the nearest entry is taken. The "
            'cache panel\'s "Start the next run from it" writes an id here for one run.',
            advanced=True,
        ),
        io.Combo.Input(
            "take",
            options=list(lookup.TAKES),
            default=lookup.TAKES[0],
            optional=True,
            tooltip="What a hit keeps of the match. Its composition: the noise of the match is used, and the request's "
            "own seed has no effect. Another take: the request's own seed is used, and of the match little remains.",
        ),
    ]


def plan_request(
    model,
    latent,
    prompt,
    threshold,
    mode,
    cache_name,
    embedding,
    clip=None,
    positive=None,
    start_image=None,
    low_noise_model=None,
    source="",
    take=lookup.TAKES[0],
):
    """The inputs of a look-up → ([MODEL, …] one an expert, the request's plan)."""
    models = [model] if low_noise_model is None else [model, low_noise_model]
    settings = lookup.LookupSettings(
        prompt, threshold, mode, cache_name, embedding, (source or "").strip(), take=take or lookup.TAKES[0]
    )
    return models, lookup.look_up(models, latent, settings, clip, positive, start_image)


def fingerprint(
    prompt=None, threshold=0.0, mode="", cache_name="", embedding="", source="", take=lookup.TAKES[0], **linked
) -> str:
    """Changes when the look-up's answer would; a linked input arrives as None."""
    source, take = (source or "").strip(), take or lookup.TAKES[0]
    return lookup.answers.token(
        lookup.LookupSettings(prompt or "", threshold, mode, cache_name, embedding, source, take=take)
    )


def declined(fault, prompt="", cache_name="default", **inputs):
    """The plan after a fault in a look-up: the request is sampled without Chorus."""
    return lookup.declined(lookup.LookupSettings(prompt, 0.0, lookup.MODES[3], cache_name, embed.WAYS[0]), fault)


def _without_lookup(fault, **inputs) -> io.NodeOutput:
    plan = declined(fault, **inputs)
    return io.NodeOutput(plan, False, -1.0, "", str(fault), torch.zeros(1, 64, 64, 3), ui={"text": (str(fault),)})


class ChorusCacheLookup(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ChorusCacheLookup",
            display_name="Chorus Cache Lookup",
            category=CATEGORY,
            description="Looks for the most similar video made before with the same model, LoRAs and shape. "
            "Its plan goes to the stage nodes, which start sampling from that video.",
            search_aliases=[
                "cache",
                "reuse",
                "remember",
                "similar prompt",
                "speed up",
                "nirvana",
                "wan cache",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model that is sampled, after its LoRAs."),
                io.Latent.Input("latent", tooltip=LATENT_TOOLTIP),
                io.String.Input("prompt", multiline=True, dynamic_prompts=True, tooltip=PROMPT_TOOLTIP),
                *settings_inputs(),
                *optional_inputs(),
            ],
            outputs=[
                Chorus.Output(display_name="chorus", tooltip="The plan of this request, for the stage nodes."),
                io.Boolean.Output(display_name="hit", tooltip="Whether an earlier video is reused."),
                io.Float.Output(
                    display_name="match score",
                    tooltip="Cosine similarity of the nearest entry, −1 to 1; −1 if there is none.",
                ),
                io.String.Output(display_name="source prompt", tooltip="The prompt of the matched video."),
                io.String.Output(
                    display_name="explanation", tooltip="The hit, or why the nearest entries were refused."
                ),
                io.Image.Output(display_name="source preview", tooltip="The matched video, small."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return fingerprint(**inputs)

    @classmethod
    @never_lost(_without_lookup)
    def execute(cls, **inputs) -> io.NodeOutput:
        _, plan = plan_request(**inputs)
        return io.NodeOutput(
            plan,
            plan.hit,
            plan.score,
            plan.source.entry.prompt if plan.source else "",
            str(plan.explanation),
            lookup.source_preview(plan),
            ui={"text": (str(plan.explanation),), "chorus_lookup": (plan_figures(plan),)},
        )
