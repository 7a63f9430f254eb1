"""ChorusStage1Reuse: looks and joins, or starts early."""

from comfy_api.latest import io

from ..chorus.comfy import stages
from ..chorus.comfy.faults import never_lost
from .sockets import CATEGORY, Chorus, stage_left_out


class ChorusStage1Reuse(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ChorusStage1Reuse",
            display_name="Chorus Stage 1: Reuse",
            category=CATEGORY,
            description="On a hit, the first step shows where the new prompt changes the picture. Elsewhere the "
            "matched video is kept, and fewer steps are computed.",
            search_aliases=["skip steps", "reuse latents", "k1", "nirvana", "speed up"],
            inputs=[
                io.Model.Input("model", tooltip="The model that is sampled."),
                Chorus.Input("chorus", tooltip="The plan of this request."),
                io.Combo.Input(
                    "k1",
                    options=list(stages.CHOICES),
                    default="auto",
                    tooltip="auto: what the first step shows decides how much is saved. fixed: the fraction below.",
                ),
                io.Float.Input(
                    "fraction",
                    default=0.25,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Fraction of the steps to skip when K1 is fixed: 0.25 skips 5 of 20 steps, or 1 of 4.",
                ),
                io.Float.Input(
                    "maximum",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Never save more than this fraction of the steps.",
                    advanced=True,
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Where on the schedule, 0 to 1, the state of the matched video is taken. A lower value "
                    "follows the prompt more, a higher one the matched video. 0: the calibrated value. 1: at step K1.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "method",
                    options=list(stages.METHODS),
                    default=stages.METHODS[0],
                    optional=True,
                    tooltip="look and join: one full step under the noise of the match shows where the new prompt "
                    "changes the picture; elsewhere the match is kept. early start: begin near the noise, from an "
                    "early state of the match. A value of start above 0 means an early start.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model, which now samples under the plan."),
                Chorus.Output(display_name="chorus", tooltip="The plan with stage 1."),
            ],
        )

    @classmethod
    @never_lost(stage_left_out)
    def execute(cls, model, chorus, k1, fraction, maximum, start=0.0, method=stages.METHODS[0]) -> io.NodeOutput:
        plan = stages.reuse(chorus, k1, fraction, maximum, start, method)
        return io.NodeOutput(stages.on_model(model, plan), plan)
