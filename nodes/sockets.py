"""What the nodes share: the CHORUS socket and their category."""

from comfy_api.latest import io

from ..chorus.comfy import stages

CATEGORY = "Chorus"
Chorus = io.Custom("CHORUS")

LATENT_TOOLTIP = "The latent that is sampled. Only its shape counts, unless it already holds a picture."
PROMPT_TOOLTIP = (
    "The prompt as text. It is compared with the prompts of the cached videos. Where positive is connected, the text "
    "that is sampled is used instead."
)


def stage_left_out(fault, model, chorus, words=None, **settings) -> io.NodeOutput:
    """What a stage node gives after a fault: its inputs as they are, for a run without Chorus."""
    stages.decline(chorus, fault)
    more = () if words is None else (words,)
    return io.NodeOutput(model, chorus, *more, ui={"text": (str(fault),)})
