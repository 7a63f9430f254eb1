"""Test-only nodes that patch a Wan model in the slots, and in the ways, that ComfyUI-KJNodes does.

WanVideoNAG and WanVideoEnhanceAVideoKJ put a bound method on every block by an object patch. The function behind it
closes over the settings, and the object it is bound to is the attention module itself: who looks at the module sees
nothing of them. The sage-attention node sets `optimized_attention_override`. TorchCompileModelWanVideoV2 has core
replace the blocks by compiled ones while the model is applied.
"""

from __future__ import annotations

import types
from typing import Any, ClassVar

import folder_paths
import torch

CATEGORY = "testing/kjnodes"


class NagCrossAttention:
    """Text cross-attention with normalised attention guidance. context: the encoded negative text, [1, L, C]."""

    def __init__(self, context: torch.Tensor, scale: float, alpha: float, tau: float):
        self.context = context
        self.scale, self.alpha, self.tau = scale, alpha, tau

    def __get__(self, module: torch.nn.Module, kind: type | None = None) -> types.MethodType:
        def attend(attention, x, context, transformer_options=None, **_kwargs):
            from comfy.ldm.modules.attention import optimized_attention

            q = attention.norm_q(attention.q(x))

            def look_at(text: torch.Tensor) -> torch.Tensor:
                k, v = attention.norm_k(attention.k(text)), attention.v(text)
                return optimized_attention(
                    q, k, v, heads=attention.num_heads, transformer_options=transformer_options or {}
                )

            positive = look_at(context)
            negative = look_at(self.context.to(x).expand(x.shape[0], -1, -1))
            guided = positive + self.scale * (positive - negative)
            length = positive.abs().sum(-1, keepdim=True)
            ratio = guided.abs().sum(-1, keepdim=True) / length.clamp_min(1e-7)
            guided = guided * torch.where(ratio > self.tau, self.tau / ratio, torch.ones_like(ratio))
            return attention.o(guided * self.alpha + positive * (1.0 - self.alpha))

        return types.MethodType(attend, module)


class WanVideoNAG:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "conditioning": ("CONDITIONING",),
                "nag_scale": ("FLOAT", {"default": 11.0, "min": 0.0, "max": 100.0, "step": 0.001}),
                "nag_alpha": ("FLOAT", {"default": 0.25, "min": 0.0, "max": 1.0, "step": 0.001}),
                "nag_tau": ("FLOAT", {"default": 2.5, "min": 0.0, "max": 10.0, "step": 0.001}),
            }
        }

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = CATEGORY

    def patch(self, model, conditioning, nag_scale, nag_alpha, nag_tau):
        patched = model.clone()
        network = patched.get_model_object("diffusion_model")
        context = network.text_embedding(conditioning[0][0].to(network.patch_embedding.weight.dtype))
        for i, block in enumerate(network.blocks):
            forward = NagCrossAttention(context, nag_scale, nag_alpha, nag_tau).__get__(block.cross_attn, type(block))
            patched.add_object_patch(f"diffusion_model.blocks.{i}.cross_attn.forward", forward)
        return (patched,)


class EnhancedSelfAttention:
    """Self-attention whose result is scaled by how much the frames attend to each other."""

    def __init__(self, weight: float):
        self.weight = weight

    def __get__(self, module: torch.nn.Module, kind: type | None = None) -> types.MethodType:
        def attend(attention, x, freqs, transformer_options=None, **_kwargs):
            options = transformer_options or {}
            out = type(attention).forward(attention, x, freqs, transformer_options=options)
            frames = int(options["grid_sizes"][0])
            if x.shape[1] % frames:
                return out
            q, k = (f(x).unflatten(1, (frames, -1)).mean(2) for f in (attention.q, attention.k))
            look = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
            across = (1.0 - look.diagonal(dim1=1, dim2=2)).mean() / max(1, frames - 1)
            return out * (across * (frames + self.weight)).clamp_min(1.0)

        return types.MethodType(attend, module)


class WanVideoEnhanceAVideoKJ:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "latent": ("LATENT",),
                "weight": ("FLOAT", {"default": 2.0, "min": 0.0, "max": 100.0, "step": 0.001}),
            }
        }

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "enhance"
    CATEGORY = CATEGORY

    def enhance(self, model, latent, weight):
        patched = model.clone()
        for i, block in enumerate(patched.get_model_object("diffusion_model").blocks):
            forward = EnhancedSelfAttention(weight).__get__(block.self_attn, type(block))
            patched.add_object_patch(f"diffusion_model.blocks.{i}.self_attn.forward", forward)
        return (patched,)


def _rounding(mode: str):
    """The kernels of the real node differ in how they round; on a CPU, rounding q and k stands in for that."""
    if mode == "fp16":
        return lambda x: x.half().to(x)
    if mode == "fp8":
        return lambda x: x.to(torch.float8_e4m3fn).to(x)
    return lambda x: x


class PathchSageAttentionKJ:  # the real node is spelled so
    MODES: ClassVar[list[str]] = ["disabled", "fp16", "fp8"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "sage_attention": (cls.MODES, {"default": "disabled"})}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = CATEGORY

    def patch(self, model, sage_attention):
        patched = model.clone()
        if sage_attention == "disabled":
            return (patched,)
        rounded = _rounding(sage_attention)

        def attention_override(func, q, k, v, *args, **kwargs):
            return func(rounded(q), rounded(k), v, *args, **kwargs)

        patched.model_options["transformer_options"]["optimized_attention_override"] = attention_override
        return (patched,)


class TorchCompileModelWanVideoV2:
    """Core's own helper replaces each block by a compiled one inside an APPLY_MODEL wrapper."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "backend": (["eager", "inductor"], {"default": "eager"}),
                "fullgraph": ("BOOLEAN", {"default": False}),
                "dynamic": (["auto", "true", "false"], {"default": "auto"}),
            }
        }

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = CATEGORY

    def patch(self, model, backend, fullgraph, dynamic):
        from comfy_api.torch_helpers import set_torch_compile_wrapper

        patched = model.clone()
        count = len(patched.get_model_object("diffusion_model").blocks)
        set_torch_compile_wrapper(
            model=patched,
            keys=[f"diffusion_model.blocks.{i}" for i in range(count)],
            backend=backend,
            dynamic={"auto": None, "true": True, "false": False}[dynamic],
            fullgraph=fullgraph,
        )
        return (patched,)


class DiffusionModelLoaderKJ:
    """Loads a model with some of its weights taken from a second file: no one file holds what is sampled."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = folder_paths.get_filename_list("diffusion_models")
        return {"required": {"model_name": (names,), "extra_state_dict": (names,)}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"
    CATEGORY = CATEGORY

    def load(self, model_name, extra_state_dict):
        import comfy.sd
        import comfy.utils

        def read(name: str):
            path = folder_paths.get_full_path_or_raise("diffusion_models", name)
            return comfy.utils.load_torch_file(path, return_metadata=True)

        weights, metadata = read(model_name)
        extra, _ = read(extra_state_dict)
        weights.update({name: tensor for name, tensor in extra.items() if name.startswith("blocks.1.")})
        return (comfy.sd.load_diffusion_model_state_dict(weights, metadata=metadata),)


NODE_CLASS_MAPPINGS = {
    kind.__name__: kind
    for kind in (
        WanVideoNAG,
        WanVideoEnhanceAVideoKJ,
        PathchSageAttentionKJ,
        TorchCompileModelWanVideoV2,
        DiffusionModelLoaderKJ,
    )
}
