"""The families: a model of each, the graph that people run it with, and every input that it takes beside text.

To add a family, add a line to `FAMILIES`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import models
from .models import Tiny, hunyuan, hunyuan15, wan

Graph = dict[str, dict[str, Any]]
Link = list[Any]

FIRST = "a red circle moving right over a navy background"
SIMILAR = "a green circle moving right over a navy background"
STEPS = 4
OTHER = 7  # another seed of a picture, a speech or what was seen


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


@dataclass(frozen=True)
class Family:
    """A model family as people run it.

    models: one, or two experts. nodes: of its graph, beside the loaders, the text, the sampler and Chorus.
    positive, negative, latent: what the sampler is given.
    inputs: what it takes beside text → ("node.widget", another value); the name is what a miss must name.
    width: of a text token; pooled, masked: what the text encoder gives beside tokens.
    """

    name: str
    models: tuple[Tiny, ...]
    nodes: Mapping[str, dict[str, Any]]
    inputs: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    positive: Link = field(default_factory=lambda: ["given", 0])
    negative: Link = field(default_factory=lambda: ["given", 1])
    latent: Link = field(default_factory=lambda: ["given", 2])
    width: int = models.TEXT
    pooled: int = 0
    masked: bool = False
    cfg: float = 1.0

    def files(self) -> list[str]:
        kind = "".join(c if c.isalnum() else "_" for c in self.name.lower())
        return [f"family_{kind}_{index}.safetensors" for index in range(len(self.models))]

    def write(self, folder: Path) -> None:
        for model, file in zip(self.models, self.files(), strict=True):
            model.write(folder / file)

    def graph(
        self,
        prompt: str,
        cache: str,
        mode: str = "read and write",
        take: str = "keep the match's composition",
        steps: int = STEPS,
    ) -> Graph:
        """The graph with Chorus in it."""
        experts = [f"unet{index}" for index in range(len(self.models))]
        g: Graph = {
            "prompt": node("PrimitiveStringMultiline", value=prompt),
            "clip": node("FamilyTextEncoder", width=self.width, pooled=self.pooled, masked=self.masked),
            "encode": node("CLIPTextEncode", clip=["clip", 0], text=["prompt", 0]),
            "blurry": node("CLIPTextEncode", clip=["clip", 0], text="blurry"),
            **copy.deepcopy(dict(self.nodes)),
            **{
                unet: node("UNETLoader", unet_name=file, weight_dtype="default")
                for unet, file in zip(experts, self.files(), strict=True)
            },
            "chorus": node(
                "Chorus",
                model=[experts[0], 0],
                latent=self.latent,
                prompt=["prompt", 0],
                threshold=0.0,
                mode=mode,
                cache_name=cache,
                embedding="conditioning",
                clip=["clip", 0],
                positive=self.positive,
                take=take,
            ),
        }
        sampled = {
            "model": ["chorus", 0],
            "steps": steps,
            "cfg": self.cfg,
            "sampler_name": "euler",
            "scheduler": "simple",
            "positive": self.positive,
            "negative": self.negative,
            "latent_image": self.latent,
        }
        if len(experts) == 1:
            g["sample"] = node("KSampler", **sampled, seed=1, denoise=1.0)
        else:
            g["chorus"]["inputs"]["low_noise_model"] = [experts[1], 0]
            parts: dict[str, Any] = {"noise_seed": 1}
            g["high"] = node(
                "KSamplerAdvanced",
                **sampled,
                **parts,
                add_noise="enable",
                start_at_step=0,
                end_at_step=steps // 2,
                return_with_leftover_noise="enable",
            )
            g["sample"] = node(
                "KSamplerAdvanced",
                **sampled | {"model": ["chorus", 2], "latent_image": ["high", 0]},
                **parts,
                add_noise="disable",
                start_at_step=steps // 2,
                end_at_step=10000,
                return_with_leftover_noise="disable",
            )
        g["store"] = node("ChorusCacheStore", latent=["sample", 0], chorus=["chorus", 1])
        return g


def plain(g: Graph) -> Graph:
    """The same graph without the Chorus nodes."""
    models = {0: g["chorus"]["inputs"]["model"], 2: g["chorus"]["inputs"].get("low_noise_model")}
    kept = {name: copy.deepcopy(n) for name, n in g.items() if name not in ("chorus", "store")}
    for n in kept.values():
        for name, value in n["inputs"].items():
            if isinstance(value, list) and value[0] == "chorus":
                n["inputs"][name] = models[value[1]]
    return {**kept, "keep": node("PreviewAny", source=["sample", 0])}


def with_input(g: Graph, place: str, value: Any) -> Graph:
    g = copy.deepcopy(g)
    name, _, widget = place.partition(".")
    g[name]["inputs"][widget] = value
    return g


# -- pieces of graphs -----------------------------------------------------------------------------------------------

TEXTS = {"positive": ["encode", 0], "negative": ["blurry", 0]}
VIDEO = {"width": 64, "height": 64, "length": 9, "batch_size": 1}
VAE = {"vae": node("FamilyVAE", channels=16, cell=8, every=4)}


def _given(class_type: str, **inputs: Any) -> dict[str, dict[str, Any]]:
    """A conditioning node of the host with texts, VAE and size."""
    return {**VAE, "given": node(class_type, **{**TEXTS, "vae": ["vae", 0], **VIDEO, **inputs})}


def _pictures(name: str, frames: int = 1, size: int = 64) -> dict[str, dict[str, Any]]:
    return {name: node("FamilyPictures", seed=100 + len(name), frames=frames, size=size)}


def _sight(name: str = "sight", width: int = 1280) -> dict[str, dict[str, Any]]:
    return {name: node("FamilySight", seed=100 + len(name), width=width)}


def _empty(class_type: str, **size: Any) -> dict[str, Any]:
    return {
        "nodes": {"empty": node(class_type, **VIDEO | size)},
        "positive": ["encode", 0],
        "negative": ["blurry", 0],
        "latent": ["empty", 0],
    }


I2V = wan(in_dim=36)
I2V_CLIP = wan(in_dim=36, model_type="i2v")
START = {"start image": ("start.seed", OTHER)}
SIGHT = {"clip vision": ("sight.seed", OTHER)}

FAMILIES: tuple[Family, ...] = (
    Family("Wan 2.1 T2V", (wan(),), **_empty("EmptyHunyuanLatentVideo")),
    Family(
        "Wan 2.1 I2V",
        (I2V_CLIP,),
        {
            **_given("WanImageToVideo", start_image=["start", 0], clip_vision_output=["sight", 0]),
            **_pictures("start"),
            **_sight(),
        },
        START | SIGHT,
    ),
    Family(
        "Wan 2.1 first and last frame",
        (wan(in_dim=36, model_type="i2v", flf_pos_embed_token_number=514),),
        {
            **_given(
                "WanFirstLastFrameToVideo",
                start_image=["start", 0],
                end_image=["end", 0],
                clip_vision_start_image=["sight", 0],
                clip_vision_end_image=["end_sight", 0],
            ),
            **_pictures("start"),
            **_pictures("end"),
            **_sight(),
            **_sight("end_sight"),
        },
        START | {"end image": ("end.seed", OTHER)} | SIGHT,
    ),
    Family(
        "Wan 2.1 Fun Control",
        (wan(in_dim=48, model_type="i2v"),),
        {
            **_given(
                "WanFunControlToVideo",
                start_image=["start", 0],
                control_video=["control", 0],
                clip_vision_output=["sight", 0],
            ),
            **_pictures("start"),
            **_pictures("control", 9),
            **_sight(),
        },
        START | SIGHT | {"control video": ("control.seed", OTHER)},
    ),
    Family(
        "Wan 2.1 Fun Inpaint",
        (I2V_CLIP,),
        {
            **_given(
                "WanFunInpaintToVideo",
                start_image=["start", 0],
                end_image=["end", 0],
                clip_vision_output=["sight", 0],
            ),
            **_pictures("start"),
            **_pictures("end"),
            **_sight(),
        },
        START | SIGHT | {"end image": ("end.seed", OTHER)},
    ),
    Family(
        "Wan 2.1 Camera",
        (wan("Camera", in_dim=32),),
        {
            **_given("WanCameraImageToVideo", start_image=["start", 0], camera_conditions=["camera", 0]),
            **_pictures("start"),
            "camera": node("WanCameraEmbedding", camera_pose="Pan Up", width=64, height=64, length=9),
        },
        START | {"camera": ("camera.camera_pose", "Zoom In")},
    ),
    Family(
        "Wan 2.1 VACE",
        (wan("Vace", vace_layers=2, vace_in_dim=96),),
        {
            **_given(
                "WanVaceToVideo",
                strength=0.8,
                control_video=["control", 0],
                control_masks=["masks", 1],
                reference_image=["reference", 0],
            ),
            **_pictures("control", 9),
            **_pictures("masks", 9),
            **_pictures("reference"),
        },
        {
            "control video": ("control.seed", OTHER),
            "control mask": ("masks.seed", OTHER),
            "reference image": ("reference.seed", OTHER),
            "strength": ("given.strength", 0.6),
        },
    ),
    Family(
        "Wan 2.1 Phantom",
        (wan(),),
        {**_given("WanPhantomSubjectToVideo", images=["reference", 0]), **_pictures("reference", 2)},
        {"reference image": ("reference.seed", OTHER)},
        latent=["given", 3],
    ),
    Family(
        "Bernini",
        (wan(),),
        {
            **_given(
                "BerniniConditioning",
                source_video=["source", 0],
                reference_video=["reference", 0],
                ref_max_size=64,
            ),
            **_pictures("source", 9),
            **_pictures("reference", 5),
        },
        {"source video": ("source.seed", OTHER), "reference": ("reference.seed", OTHER)},
    ),
    Family(
        "Wan 2.1 HuMo",
        (wan("Humo"),),
        {
            **_given("WanHuMoImageToVideo", audio_encoder_output=["speech", 0], ref_image=["reference", 0]),
            **_pictures("reference"),
            "speech": node("FamilySpeech", seed=1, layers=33, width=1280),
        },
        {"audio": ("speech.seed", OTHER), "reference image": ("reference.seed", OTHER)},
    ),
    Family(
        "SCAIL",
        (wan("SCAIL", in_dim=20),),
        {
            **_given(
                "WanSCAILToVideo",
                pose_video=["pose", 0],
                reference_image=["reference", 0],
                clip_vision_output=["sight", 0],
                pose_strength=1.0,
                pose_start=0.0,
                pose_end=1.0,
                video_frame_offset=0,
                previous_frame_count=5,
            ),
            **_pictures("pose", 9),
            **_pictures("reference"),
            **_sight(),
        },
        {"pose video": ("pose.seed", OTHER), "reference image": ("reference.seed", OTHER)} | SIGHT,
    ),
    Family(
        "SCAIL, pose for a part of the steps",
        (wan("SCAIL", in_dim=20),),
        {
            **_given(
                "WanSCAILToVideo",
                pose_video=["pose", 0],
                reference_image=["reference", 0],
                pose_strength=1.0,
                pose_start=0.0,
                pose_end=0.8,
                video_frame_offset=0,
                previous_frame_count=5,
            ),
            **_pictures("pose", 9),
            **_pictures("reference"),
        },
        {"pose video": ("pose.seed", OTHER), "other steps": ("given.pose_end", 0.4)},
    ),
    Family(
        "Wan 2.2 14B T2V, two experts",
        (wan(), wan(seed=1)),
        **_empty("EmptyHunyuanLatentVideo"),
    ),
    Family(
        "Wan 2.2 14B I2V, two experts",
        (I2V, wan(in_dim=36, seed=1)),
        {**_given("WanImageToVideo", start_image=["start", 0]), **_pictures("start")},
        START,
    ),
    Family(
        "Wan 2.2 14B Fun Control",
        (wan(in_dim=52, in_dim_ref_conv=16),),
        {
            **_given("Wan22FunControlToVideo", ref_image=["reference", 0], control_video=["control", 0]),
            **_pictures("reference"),
            **_pictures("control", 9),
        },
        {"control video": ("control.seed", OTHER), "reference image": ("reference.seed", OTHER)},
    ),
    Family(
        "Wan 2.2 TI2V 5B",
        (wan(in_dim=48, out_dim=48),),
        {
            "vae": node("FamilyVAE", channels=48, cell=16, every=4),
            "empty": node("Wan22ImageToVideoLatent", vae=["vae", 0], **VIDEO | {"width": 128, "height": 128}),
        },
        positive=["encode", 0],
        negative=["blurry", 0],
        latent=["empty", 0],
    ),
    Family(
        "Wan 2.2 TI2V 5B with an image",
        (wan(in_dim=48, out_dim=48),),
        {
            "vae": node("FamilyVAE", channels=48, cell=16, every=4),
            "filled": node(
                "Wan22ImageToVideoLatent",
                vae=["vae", 0],
                start_image=["start", 0],
                **VIDEO | {"width": 128, "height": 128},
            ),
            **_pictures("start"),
        },
        START,
        positive=["encode", 0],
        negative=["blurry", 0],
        latent=["filled", 0],
    ),
    Family(
        "Wan 2.2 S2V",
        (wan("S2V", audio_dim=64, audio_inject_layers=[0, 1]),),
        {
            **_given(
                "WanSoundImageToVideo",
                audio_encoder_output=["speech", 0],
                ref_image=["reference", 0],
                control_video=["control", 0],
                ref_motion=["motion", 0],
            ),
            **_pictures("reference"),
            **_pictures("control", 9),
            **_pictures("motion", 73),
            "speech": node("FamilySpeech", seed=1, layers=25, width=64),
        },
        {
            "audio": ("speech.seed", OTHER),
            "reference image": ("reference.seed", OTHER),
            "control video": ("control.seed", OTHER),
            "previous frames": ("motion.seed", OTHER),
        },
    ),
    Family(
        "Wan 2.2 Animate",
        (wan("Animate", in_dim=36, num_layers=5),),
        {
            **_given(
                "WanAnimateToVideo",
                reference_image=["reference", 0],
                pose_video=["pose", 0],
                background_video=["background", 0],
                character_mask=["masks", 1],
                clip_vision_output=["sight", 0],
                continue_motion_max_frames=5,
                video_frame_offset=0,
            ),
            **_pictures("reference"),
            **_pictures("pose", 9),
            **_pictures("background", 9),
            **_pictures("masks", 9),
            **_sight(),
        },
        {
            "reference image": ("reference.seed", OTHER),
            "pose video": ("pose.seed", OTHER),
            "background video": ("background.seed", OTHER),
            "mask": ("masks.seed", OTHER),
        }
        | SIGHT,
    ),
    Family("HunyuanVideo 1.0 T2V", (hunyuan(),), **_empty("EmptyHunyuanLatentVideo"), pooled=768, masked=True),
    Family(
        "HunyuanVideo 1.0 I2V",
        (hunyuan(in_channels=33, guidance_embed=False),),
        {
            **VAE,
            **_pictures("start"),
            "given": node(
                "HunyuanImageToVideo",
                positive=["encode", 0],
                vae=["vae", 0],
                **VIDEO,
                guidance_type="v1 (concat)",
                start_image=["start", 0],
            ),
        },
        START,
        negative=["blurry", 0],
        latent=["given", 1],
        pooled=768,
        masked=True,
    ),
    Family(
        "HunyuanVideo 1.0 I2V, replaced frame",
        (hunyuan(),),
        {
            **VAE,
            **_pictures("start"),
            "given": node(
                "HunyuanImageToVideo",
                positive=["encode", 0],
                vae=["vae", 0],
                **VIDEO,
                guidance_type="v2 (replace)",
                start_image=["start", 0],
            ),
        },
        START,
        negative=["blurry", 0],
        latent=["given", 1],
        pooled=768,
        masked=True,
    ),
    Family("HunyuanVideo 1.5 T2V", (hunyuan15(),), **_empty("EmptyHunyuanVideo15Latent", width=128, height=128)),
    Family(
        "HunyuanVideo 1.5 T2V, step-distilled",
        (hunyuan15(meanflow=True),),
        **_empty("EmptyHunyuanVideo15Latent", width=128, height=128),
    ),
    Family(
        "HunyuanVideo 1.5 I2V",
        (hunyuan15(),),
        {
            **_given(
                "HunyuanVideo15ImageToVideo",
                start_image=["start", 0],
                clip_vision_output=["sight", 0],
                width=128,
                height=128,
            ),
            "vae": node("FamilyVAE", channels=32, cell=16, every=4),
            **_pictures("start"),
            **_sight(width=1152),
        },
        START | SIGHT,
    ),
    Family(
        "LTX-Video T2V",
        (models.ltx(),),
        {
            "empty": node("EmptyLTXVLatentVideo", **VIDEO | {"width": 128, "height": 128}),
            "rate": node("LTXVConditioning", **TEXTS, frame_rate=25.0),
        },
        {"frame rate": ("rate.frame_rate", 12.0)},
        positive=["rate", 0],
        negative=["rate", 1],
        latent=["empty", 0],
        masked=True,
    ),
    Family(
        "LTX-Video I2V",
        (models.ltx(),),
        {
            "vae": node("FamilyVAE", channels=128, cell=32, every=8),
            **_pictures("start"),
            "given": node(
                "LTXVImgToVideo",
                **TEXTS,
                vae=["vae", 0],
                image=["start", 0],
                **VIDEO | {"width": 128, "height": 128},
                strength=1.0,
            ),
        },
        START,
        masked=True,
    ),
    Family(
        "LTX-2",
        (models.ltx2(),),
        {
            "empty": node("EmptyLTXVLatentVideo", **VIDEO | {"width": 128, "height": 128}),
            "sound": node("FamilyAudioLatent", frames=4),
            "both": node("LTXVConcatAVLatent", video_latent=["empty", 0], audio_latent=["sound", 0]),
            "rate": node("LTXVConditioning", **TEXTS, frame_rate=25.0),
        },
        {"frame rate": ("rate.frame_rate", 12.0)},
        positive=["rate", 0],
        negative=["rate", 1],
        latent=["both", 0],
        width=2 * models.TEXT,
    ),
    Family("Cosmos Predict 2 T2V", (models.cosmos(),), **_empty("EmptyHunyuanLatentVideo"), width=1024),
    Family(
        "Kandinsky 5 T2V",
        (models.kandinsky(),),
        **_empty("EmptyHunyuanLatentVideo"),
        width=3584,
        pooled=768,
    ),
    Family(
        "Kandinsky 5 I2V",
        (models.kandinsky(),),
        {**_given("Kandinsky5ImageToVideo", start_image=["start", 0]), **_pictures("start")},
        START,
        width=3584,
        pooled=768,
    ),
    Family(
        "Flux",
        (models.flux(),),
        {
            "empty": node("EmptySD3LatentImage", width=128, height=128, batch_size=1),
            "guided": node("FluxGuidance", conditioning=["encode", 0], guidance=3.5),
        },
        {},
        positive=["guided", 0],
        negative=["blurry", 0],
        latent=["empty", 0],
        pooled=64,
    ),
    Family(
        "Flux Kontext",
        (models.flux(),),
        {
            "vae": node("FamilyVAE", channels=16, cell=8, every=0),
            **_pictures("reference"),
            "encoded": node("VAEEncode", pixels=["reference", 0], vae=["vae", 0]),
            "empty": node("EmptySD3LatentImage", width=128, height=128, batch_size=1),
            "shown": node("ReferenceLatent", conditioning=["encode", 0], latent=["encoded", 0]),
        },
        {"reference image": ("reference.seed", OTHER)},
        positive=["shown", 0],
        negative=["blurry", 0],
        latent=["empty", 0],
        pooled=64,
    ),
)
