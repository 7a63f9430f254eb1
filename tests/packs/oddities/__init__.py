"""Test-only nodes whose patches and inputs are hard to tell apart from outside, on a MODEL or in a graph.

`OddPatch` makes one small change to the network in many ways that packs use. `SpeechToVideo` and `ControlPicture` put
inputs on the MODEL, as core's WanInfiniteTalkToVideo and QwenImageDiffsynthControlnet do. `WildcardPrompt` rolls its
text anew in every run.
"""

from __future__ import annotations

import itertools
import logging
import math
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import folder_paths
import numpy as np
import torch

CATEGORY = "testing/oddities"
BLOCK = 1  # whose result is changed


# -- one change in many ways --------------------------------------------------------------------------------------


def _at_block(kwargs: dict[str, Any], gain: float) -> torch.Tensor:
    x = kwargs["x"]
    return x * gain if kwargs["transformer_options"]["block_index"] == BLOCK else x


class _Slots:
    """A patch without a `__dict__`."""

    __slots__ = ("gain",)

    def __init__(self, gain: float):
        self.gain = gain

    def __call__(self, kwargs):
        return _at_block(kwargs, self.gain)


class _Logging:
    """A patch that holds its logger, and so every logger of the process."""

    def __init__(self, gain: float):
        self.log = logging.getLogger(__name__)
        self.gain = gain

    def __call__(self, kwargs):
        return _at_block(kwargs, self.gain)


class _Binding:
    """A patch that holds the network it was made for."""

    def __init__(self, network: torch.nn.Module, gain: float):
        self.network, self.gain = network, gain

    def apply(self, kwargs):
        return _at_block(kwargs, self.gain) if len(self.network.blocks) > BLOCK else kwargs["x"]


class _Counting:
    """A patch whose state grows while it runs and which begins anew with every run."""

    def __init__(self, gain: float):
        self.gain, self.calls, self.last = gain, 0, None

    def __call__(self, kwargs):
        self.calls += 1
        self.last = kwargs["x"].mean()
        return _at_block(kwargs, self.gain)


class _Activation(torch.nn.Module):
    """GELU with a gain that is a plain attribute: no parameter and no buffer."""

    def __init__(self, gain: float):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        return torch.nn.functional.gelu(x, approximate="tanh") * self.gain


class _BufferActivation(torch.nn.Module):
    """GELU with a gain in a buffer that is not saved."""

    def __init__(self, gain: float):
        super().__init__()
        self.register_buffer("gain", torch.tensor(gain), persistent=False)

    def forward(self, x):
        return torch.nn.functional.gelu(x, approximate="tanh") * self.gain.to(x)


def _closed_over(value):
    return lambda kwargs: _at_block(kwargs, float(value))


def _of_one_name(gain: float):
    """Functions that share module, qualified name, defaults and closure; only their code differs."""
    if gain < 1.1:

        def change(kwargs):
            return _at_block(kwargs, 1.05)
    elif gain < 1.3:

        def change(kwargs):
            return _at_block(kwargs, 1.2)
    else:

        def change(kwargs):
            return _at_block(kwargs, 1.5)

    change.__qualname__ = "_of_one_name.<locals>.change"
    return change


def _deep(gain: float):
    nested: Any = [gain]
    for _ in range(40):
        nested = [nested]

    def change(kwargs):
        value = nested
        while isinstance(value, list):
            value = value[0]
        return _at_block(kwargs, value)

    return change


def _activation_key(block: int = BLOCK) -> str:
    return f"diffusion_model.blocks.{block}.ffn.1"


def _weight_wrapper(model, gain):
    model.add_weight_wrapper(f"diffusion_model.blocks.{BLOCK}.ffn.0.weight", lambda weight: weight * gain)


def _model_function_wrapper(model, gain):
    def wrapper(model_function, kwargs):
        return model_function(kwargs["input"], kwargs["timestep"], **kwargs["c"]) * gain

    model.set_model_unet_function_wrapper(wrapper)


def _diffusion_model_wrapper(model, gain):
    import comfy.patcher_extension

    def wrapper(executor, *args, **kwargs):
        return executor(*args, **kwargs) * gain

    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "odd", wrapper)


def _block_replacement(model, gain):
    def replace(args, extra):
        out = extra["original_block"](args)
        return {**out, "img": out["img"] * gain}

    model.set_model_patch_replace(replace, "dit", "double_block", BLOCK)


def _callback(model, gain):
    """Set before a run, on the network, by a callback: nothing of it is among the patches."""
    import comfy.patcher_extension

    def before_run(patcher):
        patcher.model.diffusion_model.blocks[BLOCK].ffn[1] = _Activation(gain)

    def after_run(patcher):
        patcher.model.diffusion_model.blocks[BLOCK].ffn[1] = torch.nn.GELU(approximate="tanh")

    model.add_callback(comfy.patcher_extension.CallbacksMP.ON_PRE_RUN, before_run)
    model.add_callback(comfy.patcher_extension.CallbacksMP.ON_CLEANUP, after_run)


def _injection(model, gain):
    import comfy.patcher_extension

    def inject(patcher):
        patcher.model.diffusion_model.blocks[BLOCK].ffn[1] = _Activation(gain)

    def eject(patcher):
        patcher.model.diffusion_model.blocks[BLOCK].ffn[1] = torch.nn.GELU(approximate="tanh")

    model.set_injections("odd", [comfy.patcher_extension.PatcherInjection(inject, eject)])


def _attention_patch(make):
    return lambda model, gain: model.set_model_patch(make(gain), "attn2_patch")


class OddPatch:
    """Multiplies the result of something in one block by `gain`, in the chosen way."""

    WAYS: ClassVar[dict[str, Any]] = {
        "weight wrapper": _weight_wrapper,
        "module attribute": lambda m, g: m.add_object_patch(_activation_key(), _Activation(g)),
        "non-persistent buffer": lambda m, g: m.add_object_patch(_activation_key(), _BufferActivation(g)),
        "slots": _attention_patch(_Slots),
        "no dict": _attention_patch(lambda gain: _closed_over(Decimal(str(gain)))),
        "numpy scalar": _attention_patch(lambda gain: _closed_over(np.float32(gain))),
        "one name": _attention_patch(_of_one_name),
        "deep": _attention_patch(_deep),
        "logger": _attention_patch(_Logging),
        "binds the network": lambda m, g: m.set_model_patch(
            _Binding(m.get_model_object("diffusion_model"), g).apply, "attn2_patch"
        ),
        "counts its calls": _attention_patch(_Counting),
        "model function wrapper": _model_function_wrapper,
        "diffusion model wrapper": _diffusion_model_wrapper,
        "block replacement": _block_replacement,
        "callback": _callback,
        "injection": _injection,
    }

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "way": (list(cls.WAYS),),
                "gain": ("FLOAT", {"default": 1.05, "min": 0.0, "max": 10.0, "step": 0.001}),
            }
        }

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = CATEGORY

    def patch(self, model, way, gain):
        patched = model.clone()
        self.WAYS[way](patched, gain)
        return (patched,)


class PatchFromFile:
    """A patch whose gain lies in a file: neither a widget nor the host's fingerprint of the node tells it.

    The file is in the input folder; `as_tensor` says whether the patch holds a number or a tensor of it.
    """

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "file": ("STRING", {"default": "gain.txt"}),
                "as_tensor": ("BOOLEAN", {"default": False}),
            }
        }

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = CATEGORY

    def patch(self, model, file, as_tensor):
        gain = float((Path(folder_paths.get_input_directory()) / file).read_text())
        patched = model.clone()
        patched.set_model_patch(_closed_over(torch.tensor(gain) if as_tensor else gain), "attn2_patch")
        return (patched,)


class WildcardPatch:
    """A patch with one of several gains; each run takes another one."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "gains": ("STRING", {"multiline": True, "default": "1.05\n1.2"})}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = CATEGORY

    @classmethod
    def IS_CHANGED(cls, **_inputs):
        return float("nan")

    def patch(self, model, gains):
        choices = [float(gain) for gain in gains.splitlines()]
        patched = model.clone()
        patched.set_model_patch(_Slots(choices[next(rolls) % len(choices)]), "attn2_patch")
        return (patched,)


# -- inputs on the MODEL ------------------------------------------------------------------------------------------


class SpeechFeatures:
    """Stands for an audio file and its encoder: features of a speech, 4 per latent frame, [T, 32]."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"seed": ("INT", {"default": 0}), "frames": ("INT", {"default": 4, "min": 1, "max": 64})}}

    RETURN_TYPES = ("AUDIO_ENCODER_OUTPUT",)
    FUNCTION = "encode"
    CATEGORY = CATEGORY

    def encode(self, seed, frames):
        features = torch.randn(4 * frames, 32, generator=torch.Generator().manual_seed(seed))
        return ({"encoded_audio": features},)


class _SpeechPatch:
    """An `attn2_patch` that adds, to the tokens of each frame, what is spoken in it."""

    def __init__(self, model_patch: Any, audio_scale: float):
        self.model_patch, self.audio_scale = model_patch, audio_scale

    def __call__(self, kwargs):
        x, options = kwargs["x"], kwargs["transformer_options"]
        frames, height, width = (int(n) for n in options["grid_sizes"])
        spoken = self.model_patch.model(options["audio_embeds"].to(x))  # [T', C]
        per_frame = spoken[:frames].repeat_interleave(height * width, 0)
        return x + self.audio_scale * per_frame

    def models(self):
        return [self.model_patch]


class _FramesInPlace:
    """An APPLY_MODEL wrapper that puts known first frames into what the network sees."""

    def __init__(self, latent: torch.Tensor):
        self.latent = latent

    def __call__(self, executor, x, *args, **kwargs):
        x[:, :, : self.latent.shape[2]] = self.latent.to(x)
        return executor(x, *args, **kwargs)


class _MotionFrames:
    """An OUTER_SAMPLE wrapper that holds the frames which a talking video goes on from, and sets the wrapper above."""

    def __init__(self, latent: torch.Tensor):
        self.latent = latent

    def __call__(self, executor, *args, **kwargs):
        import comfy.patcher_extension

        guider = executor.class_obj
        frames = guider.model_patcher.model.process_latent_in(self.latent)
        wrappers = guider.model_options["transformer_options"]["wrappers"]
        kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL
        wrappers.setdefault(kind, {})["speech_apply_model"] = [_FramesInPlace(frames)]
        return executor(*args, **kwargs)

    def to(self, device_or_dtype):
        if isinstance(device_or_dtype, torch.device):
            self.latent = self.latent.to(device_or_dtype)
        return self


def _model_patch(columns: int, rows: int, seed: int) -> Any:
    import comfy.model_management
    import comfy.model_patcher

    module = torch.nn.Linear(columns, rows)
    generator = torch.Generator().manual_seed(seed)
    module.weight.data = torch.randn(rows, columns, generator=generator) / math.sqrt(columns)
    module.bias.data.zero_()
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(
        module.requires_grad_(False), comfy.model_management.get_torch_device(), offload_device=cpu
    )


class OddModelPatchLoader:
    """A MODEL_PATCH: a further small network that patches use, as core's ModelPatchLoader gives."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "columns": ("INT", {"default": 32, "min": 1, "max": 4096}),
                "seed": ("INT", {"default": 0}),
            }
        }

    RETURN_TYPES = ("MODEL_PATCH",)
    FUNCTION = "load"
    CATEGORY = CATEGORY

    def load(self, model, columns, seed):
        return (_model_patch(columns, model.get_model_object("diffusion_model").dim, seed),)


class SpeechToVideo:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "model_patch": ("MODEL_PATCH",),
                "audio_encoder_output": ("AUDIO_ENCODER_OUTPUT",),
                "audio_scale": ("FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01}),
            },
            "optional": {"previous_frames": ("LATENT",)},
        }

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = CATEGORY

    def patch(self, model, model_patch, audio_encoder_output, audio_scale, previous_frames=None):
        import comfy.patcher_extension

        patched = model.clone()
        spoken = audio_encoder_output["encoded_audio"].unflatten(0, (-1, 4)).mean(1)
        patched.model_options["transformer_options"]["audio_embeds"] = spoken
        if previous_frames is not None:
            patched.add_wrapper_with_key(
                comfy.patcher_extension.WrappersMP.OUTER_SAMPLE,
                "speech_outer_sample",
                _MotionFrames(previous_frames["samples"][:, :, :1]),
            )
        patched.set_model_patch(_SpeechPatch(model_patch, audio_scale), "attn2_patch")
        return (patched,)


class _ControlPatch:
    """A `double_block` patch that adds a control picture to the tokens; it is encoded for the size at hand."""

    def __init__(self, model_patch: Any, image: torch.Tensor, strength: float):
        self.model_patch, self.image, self.strength = model_patch, image, strength
        self.encoded: torch.Tensor | None = None

    def __call__(self, kwargs):
        img, x = kwargs["img"], kwargs["x"]
        if self.encoded is None:
            pixels = self.image[:1, ..., :3].movedim(-1, 1)
            cells = torch.nn.functional.interpolate(pixels, (x.shape[-2] // 2, x.shape[-1] // 2), mode="area")
            self.encoded = cells.flatten(2).transpose(1, 2).repeat(1, x.shape[2], 1)
        if kwargs["block_index"] == BLOCK:
            added = self.model_patch.model(self.encoded.to(img))
            img = img + self.strength * added[:, : img.shape[1]]
        return {**kwargs, "img": img}

    def to(self, device_or_dtype):
        if isinstance(device_or_dtype, torch.device) and self.encoded is not None:
            self.encoded = self.encoded.to(device_or_dtype)
        return self

    def models(self):
        return [self.model_patch]


class ControlPicture:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "model_patch": ("MODEL_PATCH",),
                "image": ("IMAGE",),
                "strength": ("FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01}),
            }
        }

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = CATEGORY

    def patch(self, model, model_patch, image, strength):
        patched = model.clone()
        patched.set_model_double_block_patch(_ControlPatch(model_patch, image, strength))
        return (patched,)


# -- text ---------------------------------------------------------------------------------------------------------

rolls = itertools.count()
"""Counts the rolls of all wildcards; set it anew to know the next ones."""


class WildcardPrompt:
    """One of the texts, another in every run and for every node: the n-th roll gives the n-th text, over and over."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"texts": ("STRING", {"multiline": True, "default": "a\nb"})}}

    RETURN_TYPES = ("STRING",)
    FUNCTION = "roll"
    CATEGORY = CATEGORY

    @classmethod
    def IS_CHANGED(cls, **_inputs):
        return float("nan")

    def roll(self, texts):
        choices = texts.splitlines()
        return (choices[next(rolls) % len(choices)],)


class QuotedWords:
    """Adds the encoding of quoted words under the key that core's HunyuanVideo 1.5 text encoder uses."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning": ("CONDITIONING",), "words": ("STRING", {"default": "words"})}}

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "add"
    CATEGORY = CATEGORY

    def add(self, conditioning, words):
        generator = torch.Generator().manual_seed(sum(words.encode()))
        encoded = torch.randn(1, len(words), 1472, generator=generator)
        return ([[tokens, {**options, "conditioning_byt5small": encoded}] for tokens, options in conditioning],)


NODE_CLASS_MAPPINGS = {
    kind.__name__: kind
    for kind in (
        OddPatch,
        PatchFromFile,
        WildcardPatch,
        SpeechFeatures,
        OddModelPatchLoader,
        SpeechToVideo,
        ControlPicture,
        WildcardPrompt,
        QuotedWords,
    )
}
