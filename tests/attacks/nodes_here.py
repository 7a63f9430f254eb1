"""Nodes such as packs have; register(nodes) puts them beside the host's own."""

from __future__ import annotations

from typing import ClassVar

import torch


class FloatList:
    """A list of numbers, as Impact Pack's and others' list nodes give."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"values": ("STRING", {"default": "1,2"})}}

    RETURN_TYPES = ("FLOAT",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "go"
    CATEGORY = "t"

    def go(self, values):
        return ([float(v) for v in values.split(",")],)


class _Gain:
    def __init__(self, gain):
        self.gain = gain

    def __call__(self, kwargs):
        x = kwargs["x"]
        return x * self.gain if kwargs["transformer_options"].get("block_index") == 1 else x


class GainPatch:
    """attn2 patch."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "gain": ("FLOAT", {"default": 1.0})}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "go"
    CATEGORY = "t"

    def go(self, model, gain):
        m = model.clone()
        m.set_model_patch(_Gain(gain), "attn2_patch")
        return (m,)


class CfgFunctionPatch:
    """A post-CFG function that closes over its number."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "gain": ("FLOAT", {"default": 1.0})}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "go"
    CATEGORY = "t"

    def go(self, model, gain):
        m = model.clone()
        m.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * gain)
        return (m,)


class RandomGainPatch:
    """Rolls without saying so."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "how": (["attn2", "cfg", "global"],)}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "go"
    CATEGORY = "t"
    rolled: ClassVar[list[float]] = [1.0]

    def go(self, model, how):
        gain = RandomGainPatch.rolled.pop(0)
        m = model.clone()
        if how == "attn2":
            m.set_model_patch(_Gain(gain), "attn2_patch")
        elif how == "cfg":
            m.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * gain)
        return (m,)


SETTINGS = {"gain": 1.0}


class SetGlobal:
    """Sets what a later patch reads while it runs (global variable nodes of many packs)."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "go"
    CATEGORY = "t"

    def go(self, model):
        m = model.clone()
        m.set_model_sampler_post_cfg_function(_reads_global)
        return (m,)


def _reads_global(args):
    return args["denoised"] * SETTINGS["gain"]


class FromPrompt:
    """KJNodes WidgetToString: takes another node's widget from the hidden PROMPT."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"model": ("MODEL",), "node": ("STRING", {"default": "note"})},
            "hidden": {"prompt": "PROMPT"},
        }

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "go"
    CATEGORY = "t"

    def go(self, model, node, prompt):
        gain = float(prompt[node]["inputs"]["value"])
        m = model.clone()
        m.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * gain)
        return (m,)


class ExpandSampler:
    """Expands to patch + KSampler; parameters go in as values, the model as an object (as loops do)."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL",),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent": ("LATENT",),
                "gain": ("FLOAT", {"default": 1.0}),
                "raw": ("BOOLEAN", {"default": True}),
            }
        }

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "go"
    CATEGORY = "t"

    def go(self, model, positive, negative, latent, gain, raw):
        from comfy_execution.graph_utils import GraphBuilder

        b = GraphBuilder()
        patched = GainPatch().go(model, gain)[0] if raw else b.node("GainPatch", model=model, gain=gain).out(0)
        s = b.node(
            "KSampler",
            model=patched,
            seed=1,
            steps=4,
            cfg=3.0,
            sampler_name="euler",
            scheduler="simple",
            positive=positive,
            negative=negative,
            latent_image=latent,
            denoise=1.0,
        )
        return {"result": (s.out(0),), "expand": b.finalize()}


class TwoCalls:
    """Samples twice inside one node, the second with another patch (detailers, refiners)."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL",),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent": ("LATENT",),
                "gains": ("STRING", {"default": "1.0,1.3"}),
            }
        }

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "go"
    CATEGORY = "t"

    def go(self, model, positive, negative, latent, gains):
        import nodes

        out = None
        for g in gains.split(","):
            m = CfgFunctionPatch().go(model, float(g))[0]
            out = nodes.common_ksampler(m, 1, 4, 3.0, "euler", "simple", positive, negative, latent)[0]
        return (out,)


class MutedStore:
    pass


class LatentToDict:
    """Passes a LATENT on with further keys."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"latent": ("LATENT",)}}

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "go"
    CATEGORY = "t"

    def go(self, latent):
        return ({**latent, "batch_index": [3], "odd": object()},)


ALL = [
    FloatList,
    GainPatch,
    CfgFunctionPatch,
    RandomGainPatch,
    SetGlobal,
    FromPrompt,
    ExpandSampler,
    TwoCalls,
    LatentToDict,
]


def register(nodes):
    nodes.NODE_CLASS_MAPPINGS.update({k.__name__: k for k in ALL})


class BakeIntoWeights:
    """Changes weights in place, as nodes that quantise or bake do: here most values of one matrix."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "gain": ("FLOAT", {"default": 1.5})}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "go"
    CATEGORY = "t"

    def go(self, model, gain):
        weight = model.model.diffusion_model.blocks[1].ffn[2].weight.data
        weight[1::2] *= gain
        weight[0::2, 1::2] *= gain
        return (model,)


class DirectPatch:
    """Writes into `patches` itself, without the host's add_patches and so without another patches_uuid."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "gain": ("FLOAT", {"default": 1.5})}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "go"
    CATEGORY = "t"

    def go(self, model, gain):
        m = model.clone()
        key = "diffusion_model.blocks.1.ffn.2.weight"
        weight = model.model.diffusion_model.blocks[1].ffn[2].weight.detach().clone()
        m.patches[key] = [*m.patches.get(key, []), (1.0, ("diff", (weight * gain,)), 1.0, None, None)]
        return (m,)


class ChurnSampler:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"s_churn": ("FLOAT", {"default": 2.0})}}

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "go"
    CATEGORY = "t"

    def go(self, s_churn):
        import comfy.samplers

        return (comfy.samplers.ksampler("euler", {"s_churn": s_churn}),)


ALL += [BakeIntoWeights, DirectPatch, ChurnSampler]


class ResetOptions:
    """Gives a model options of its own."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "what": (["model_options", "transformer_options"],)}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "go"
    CATEGORY = "t"

    def go(self, model, what):
        m = model.clone()
        if what == "model_options":
            m.model_options = {"transformer_options": {}}
        else:
            m.model_options["transformer_options"] = {"mine": True}
        return (m,)


ALL += [ResetOptions]


class EncodeTextAndImage:
    """As core's TextEncodeQwenImageEdit without a VAE, or TextEncodeHunyuanVideo_ImageToVideo: the picture goes
    through the text encoder and lies among the tokens of `cross_attn`, under no key of its own."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"clip": ("CLIP",), "prompt": ("STRING", {"multiline": True}), "image": ("IMAGE",)}}

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "go"
    CATEGORY = "t"

    def go(self, clip, prompt, image):
        import nodes

        (cond,) = nodes.CLIPTextEncode().encode(clip, prompt)
        seen = image.mean((0, 1, 2))[:3]
        out = []
        for tokens, options in cond:
            scale = tokens.std()
            extra = torch.stack(
                [torch.cos(torch.arange(tokens.shape[-1]) * (1 + 9 * seen[i % 3])) * scale for i in range(4)]
            )
            out.append([torch.cat([extra[None].to(tokens), tokens], 1), options])
        return (out,)


ALL += [EncodeTextAndImage]
