"""TGAAPatch: amplifies the new words in cross-attention."""

from comfy_api.latest import io

from ..chorus.comfy import stages
from ..chorus.comfy.faults import never_lost
from ..chorus.reuse.amplification import WHERE
from .sockets import CATEGORY, Chorus, stage_left_out


class TGAAPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TGAAPatch",
            display_name="Chorus TGAA Patch",
            category=CATEGORY,
            description="Token-guided attention amplification (TGAA): from step K1 on, the words that the prompt of "
            "the matched video lacks are amplified in cross-attention. The effect fades out.",
            search_aliases=[
                "token guided attention amplification",
                "amplify",
                "emphasis",
                "attention",
                "new words",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model that is sampled."),
                Chorus.Input("chorus", tooltip="The plan of this request."),
                io.Float.Input(
                    "strength",
                    default=0.25,
                    min=0.0,
                    max=8.0,
                    step=0.05,
                    tooltip="At step K1 an entirely new word is multiplied by 1 + strength.",
                ),
                io.Combo.Input(
                    "where",
                    options=list(WHERE),
                    default="outputs",
                    tooltip="What is amplified: how strongly the words attract attention (keys), what they contribute "
                    "(outputs), or both.",
                ),
                io.Float.Input(
                    "fade",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Fraction of the steps from K1 on over which the amplification fades to nothing.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model, which now amplifies the new words."),
                Chorus.Output(display_name="chorus", tooltip="The plan with the amplification."),
                io.String.Output(display_name="words", tooltip="The amplified words with their weights."),
            ],
        )

    @classmethod
    @never_lost(lambda fault, **inputs: stage_left_out(fault, **inputs, words=str(fault)))
    def execute(cls, model, chorus, strength, where, fade) -> io.NodeOutput:
        plan, words = stages.amplification(chorus, strength, where, fade)
        return io.NodeOutput(stages.on_model(model, plan), plan, words, ui={"text": (words,)})
