"""ChorusSRDMask: where the middle steps recompute."""

import torch
from comfy_api.latest import io

from ..chorus.comfy import masks, stages
from ..chorus.comfy.faults import never_lost
from ..chorus.reuse.course import calibrated
from .sockets import CATEGORY, Chorus


def _without_masks(fault, chorus, **settings) -> io.NodeOutput:
    stages.decline(chorus, fault)
    return io.NodeOutput(chorus, torch.zeros(1, 64, 64), torch.zeros(1, 64, 64, 3), ui={"text": (str(fault),)})


class ChorusSRDMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ChorusSRDMask",
            display_name="Chorus SRD Mask",
            category=CATEGORY,
            description="Marks where this request differs from the matched video. In the middle steps the model "
            "computes only the tokens inside the visible mask; outside the edit mask the picture stays as it is.",
            search_aliases=["region", "selective denoising", "mask", "sam", "segment anything", "difference"],
            inputs=[
                Chorus.Input("chorus", tooltip="The plan of this request."),
                io.Combo.Input(
                    "masks_from",
                    options=list(masks.WAYS),
                    default=masks.WAYS[0],
                    tooltip="look: the first step of this request shows where it differs; the mask appears then. "
                    "attention: also the places in the matched video that attended to the words that changed; "
                    "needs no further model. mask: the MASK input and nothing else. segment anything: also the "
                    "outline of what lies at these places.",
                ),
                io.Int.Input(
                    "edit_dilation",
                    default=calibrated().grow,
                    min=0,
                    max=64,
                    tooltip="By how many tokens the edit mask reaches beyond the difference.",
                ),
                io.Int.Input(
                    "visible_dilation",
                    default=calibrated().margin,
                    min=0,
                    max=64,
                    tooltip="By how many tokens the visible mask reaches beyond the edit mask.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="One mask for all frames, or one per frame."),
                io.Combo.Input(
                    "sam_checkpoint",
                    options=["none", *masks.sam_checkpoints()],
                    default="none",
                    optional=True,
                    tooltip="Segment-anything weights from models/sams.",
                    advanced=True,
                ),
            ],
            outputs=[
                Chorus.Output(display_name="chorus", tooltip="The plan with its masks."),
                io.Mask.Output(display_name="edit mask", tooltip="The edit mask in the frame size of the preview."),
                io.Image.Output(
                    display_name="overlay",
                    tooltip="The matched video: the edit mask tinted, everything outside the visible mask dimmed.",
                ),
            ],
        )

    @classmethod
    @never_lost(_without_masks)
    def execute(
        cls, chorus, masks_from, edit_dilation, visible_dilation, mask=None, sam_checkpoint="none"
    ) -> io.NodeOutput:
        plan, edit, overlay, note = stages.regions(
            chorus, masks_from, mask, edit_dilation, visible_dilation, sam_checkpoint
        )
        return io.NodeOutput(plan, edit, overlay, ui={"text": (str(note),)} if note else None)
