"""ChorusStage3Refine: from K2 on everything is computed."""

from comfy_api.latest import io

from ..chorus.comfy import stages
from ..chorus.comfy.faults import never_lost
from .sockets import CATEGORY, Chorus, stage_left_out


class ChorusStage3Refine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ChorusStage3Refine",
            display_name="Chorus Stage 3: Refine",
            category=CATEGORY,
            description="From step K2 on, every step computes the whole video. This closes seams and refines details.",
            search_aliases=["k2", "full steps", "refine", "seams"],
            inputs=[
                io.Model.Input("model", tooltip="The model that is sampled."),
                Chorus.Input("chorus", tooltip="The plan of this request."),
                io.Combo.Input(
                    "k2",
                    options=list(stages.CHOICES),
                    default="auto",
                    tooltip="auto: as calibrated; after a look so many of the last steps, after an early start K1 "
                    "plus a distance. fixed: the fraction below.",
                ),
                io.Float.Input(
                    "fraction",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Fraction of the steps after which full steps begin when K2 is fixed.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with all stages of the plan."),
                Chorus.Output(display_name="chorus", tooltip="The plan with stage 3, for ChorusCacheStore."),
            ],
        )

    @classmethod
    @never_lost(stage_left_out)
    def execute(cls, model, chorus, k2, fraction) -> io.NodeOutput:
        plan = stages.refinement(chorus, k2, fraction)
        return io.NodeOutput(stages.on_model(model, plan), plan)
