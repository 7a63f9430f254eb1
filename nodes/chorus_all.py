"""Chorus: look-up and all stages in one box."""

from comfy_api.latest import io

from ..chorus.comfy import stages
from ..chorus.comfy.faults import never_lost
from ..chorus.comfy.shown import plan_figures
from .cache_lookup import declined, fingerprint, optional_inputs, plan_request, settings_inputs
from .sockets import CATEGORY, LATENT_TOOLTIP, PROMPT_TOOLTIP, Chorus


def _without_chorus(fault, model, low_noise_model=None, **inputs) -> io.NodeOutput:
    second = model if low_noise_model is None else low_noise_model
    return io.NodeOutput(model, declined(fault, **inputs), second, ui={"text": (str(fault),)})


class ChorusAllInOne(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Chorus",
            display_name="Chorus",
            category=CATEGORY,
            description="Looks the prompt up and samples from the most similar earlier video, with all stages at their "
            "calibrated settings. Add Chorus Cache Store after the sampler.",
            search_aliases=["cache", "reuse", "all in one", "speed up", "wan cache"],
            inputs=[
                io.Model.Input("model", tooltip="The model that is sampled, after its LoRAs."),
                io.Latent.Input("latent", tooltip=LATENT_TOOLTIP),
                io.String.Input("prompt", multiline=True, dynamic_prompts=True, tooltip=PROMPT_TOOLTIP),
                *settings_inputs(),
                *optional_inputs(),
            ],
            outputs=[
                io.Model.Output(tooltip="The model, which now samples under the plan."),
                Chorus.Output(display_name="chorus", tooltip="The plan, for ChorusCacheStore."),
                io.Model.Output(
                    display_name="low noise model",
                    tooltip="The second expert under the same plan, when one is connected.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return fingerprint(**inputs)

    @classmethod
    @never_lost(_without_chorus)
    def execute(cls, **inputs) -> io.NodeOutput:
        models, plan = plan_request(**inputs)
        plan = stages.all_stages(plan)
        attached = [stages.on_model(model, plan) for model in models]
        shown = {"text": (str(plan.explanation),), "chorus_lookup": (plan_figures(plan),)}
        return io.NodeOutput(attached[0], plan, attached[-1], ui=shown)
