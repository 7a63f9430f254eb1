"""What an input beside text is called when it differs from that of another request."""

from __future__ import annotations

from ..messages import say

INPUTS = {
    "audio": say("differs.audio"),
    "background_video": say("differs.background_video"),
    "camera": say("differs.camera"),
    "clip_vision": say("differs.clip_vision"),
    "control_mask": say("differs.control_mask"),
    "control_or_reference": say("differs.control_or_reference"),
    "control_strength": say("differs.control_strength"),
    "control_video": say("differs.control_video"),
    "encoder_input": say("differs.encoder_input"),
    "face_video": say("differs.face_video"),
    "frame_rate": say("differs.frame_rate"),
    "keyframes": say("differs.keyframes"),
    "later_frames": say("differs.later_frames"),
    "mask": say("differs.mask"),
    "noise_mask": say("differs.noise_mask"),
    "pose_video": say("differs.pose_video"),
    "previous_frames": say("differs.previous_frames"),
    "range": say("differs.range"),
    "reference_image": say("differs.reference_image"),
    "source_or_reference": say("differs.source_or_reference"),
    "start_image": say("differs.start_image"),
    "start_latent": say("differs.start"),
    "style": say("differs.style"),
}
"""By the name under which a space's task lists the input."""
