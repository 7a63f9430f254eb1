"""A test-only loader of quantised weights that keeps them where, and as, ComfyUI-GGUF does.

The weight of a quantised Linear is a tensor subclass whose bytes are blocks of a scale and 32 numbers and whose `shape`
is that of the matrix they stand for. What the module gives as its `state_dict` are placeholders on the `meta` device.
Patches are not put into the weights but kept beside them, and applied whenever a weight is unpacked. The file format
is simpler than the real one: a safetensors file named `.gguf` (`write`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
import safetensors
import safetensors.torch
import torch

BLOCK = 32
KIND = "q8_0"
_METADATA = "shapes"


def quantised(weight: torch.Tensor) -> torch.Tensor:
    """[rows, columns] → uint8 [rows, columns / 32 × 34]: of each block its fp16 scale, then 32 signed bytes."""
    blocks = weight.float().unflatten(1, (-1, BLOCK))
    scales = (blocks.abs().amax(-1, keepdim=True) / 127.0).half()
    numbers = (blocks / scales.float().clamp_min(1e-12)).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([scales.view(torch.uint8), numbers.view(torch.uint8)], dim=-1).flatten(1)


def dequantised(data: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The reverse of `quantised`, in fp32."""
    blocks = data.unflatten(1, (-1, BLOCK + 2))
    scales = blocks[..., :2].contiguous().view(torch.float16).float()
    return (blocks[..., 2:].contiguous().view(torch.int8).float() * scales).reshape(shape)


def write(weights: Mapping[str, torch.Tensor], file: Path, metadata: Mapping[str, str]) -> None:
    """Write a model's weights, those of its Linear layers quantised."""
    tensors, shapes = {}, {}
    for name, tensor in weights.items():
        if name.endswith(".weight") and tensor.ndim == 2 and tensor.shape[1] % BLOCK == 0:
            tensors[name], shapes[name] = quantised(tensor), list(tensor.shape)
        else:
            tensors[name] = tensor.contiguous()
    safetensors.torch.save_file(tensors, file, {**metadata, _METADATA: json.dumps(shapes)})


class GGMLTensor(torch.Tensor):
    """Packed bytes that claim the shape of what they stand for. patches: [(LoRA patches, key)] for unpacking."""

    tensor_type: str
    tensor_shape: torch.Size
    patches: list

    @staticmethod
    def __new__(cls, data: torch.Tensor, shape: torch.Size, patches: list | None = None) -> GGMLTensor:
        return torch.Tensor._make_subclass(cls, data, False)

    def __init__(self, data: torch.Tensor, shape: torch.Size, patches: list | None = None):
        super().__init__()
        self.tensor_type, self.tensor_shape, self.patches = KIND, torch.Size(shape), patches or []

    def _like(self, data: torch.Tensor) -> GGMLTensor:
        return GGMLTensor(data.as_subclass(torch.Tensor), self.tensor_shape, list(self.patches))

    def to(self, *args, **kwargs):
        return self._like(super().to(*args, **kwargs))

    def clone(self, *args, **kwargs):
        return self

    def detach(self, *args, **kwargs):
        return self

    def copy_(self, *args, **kwargs):
        return self

    @property
    def shape(self) -> torch.Size:
        return self.tensor_shape

    @property
    def packed(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def _is_quantised(tensor: object) -> bool:
    return getattr(tensor, "tensor_type", None) == KIND


def _operations() -> type:
    import comfy.lora
    import comfy.ops

    class GGMLOps(comfy.ops.manual_cast):
        class Linear(comfy.ops.manual_cast.Linear):
            comfy_cast_weights = True

            def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
                weight, bias = state_dict.get(prefix + "weight"), state_dict.get(prefix + "bias")
                if not _is_quantised(weight):
                    return super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
                self.weight = torch.nn.Parameter(weight, requires_grad=False)
                if bias is not None:
                    self.bias = torch.nn.Parameter(bias, requires_grad=False)
                return None

            def _save_to_state_dict(self, destination, prefix, keep_vars):
                if not _is_quantised(self.weight):
                    return super()._save_to_state_dict(destination, prefix, keep_vars)
                destination[prefix + "weight"] = torch.zeros(tuple(self.weight.shape), device="meta")
                if self.bias is not None:
                    destination[prefix + "bias"] = torch.zeros(tuple(self.bias.shape), device="meta")
                return None

            def forward(self, x):
                if not _is_quantised(self.weight):
                    return super().forward(x)
                weight = dequantised(self.weight.packed, self.weight.tensor_shape).to(x.dtype)
                for patches, key in self.weight.patches:
                    weight = comfy.lora.calculate_weight(patches, weight, key)
                return torch.nn.functional.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))

    return GGMLOps


def _patcher_class() -> type:
    import comfy.model_patcher
    import comfy.utils

    class GGUFModelPatcher(comfy.model_patcher.ModelPatcher):
        patch_on_device = False

        def patch_weight_to_device(self, key, device_to=None, inplace_update=False, **kwargs):
            weight = comfy.utils.get_attr(self.model, key)
            if not _is_quantised(weight):
                return super().patch_weight_to_device(key, device_to, inplace_update, **kwargs)
            if key in self.patches:
                weight.patches = [(self.patches[key], key)]
            return None

        def unpatch_model(self, device_to=None, unpatch_weights=True):
            if unpatch_weights:
                for parameter in self.model.parameters():
                    if _is_quantised(parameter):
                        parameter.patches = []
            return super().unpatch_model(device_to, unpatch_weights)

        def load(self, *args, force_patch_weights=False, **kwargs):
            super().load(*args, force_patch_weights=True, **kwargs)

        def clone(self, *args, **kwargs):
            kind, self.__class__ = self.__class__, GGUFModelPatcher
            try:
                copied = super().clone(*args, **kwargs)
            finally:
                self.__class__ = kind
            copied.__class__ = GGUFModelPatcher
            copied.patch_on_device = getattr(self, "patch_on_device", False)
            return copied

    return GGUFModelPatcher


FOLDER = "unet_gguf"
folder_paths.folder_names_and_paths.setdefault(
    FOLDER, (folder_paths.folder_names_and_paths["diffusion_models"][0], {".gguf"})
)


class UnetLoaderGGUF:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"unet_name": (folder_paths.get_filename_list(FOLDER),)}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load_unet"
    CATEGORY = "testing/gguf"

    def load_unet(self, unet_name):
        import comfy.sd

        path = folder_paths.get_full_path(FOLDER, unet_name)
        with safetensors.safe_open(path, "pt") as file:
            metadata = dict(file.metadata())
            shapes = json.loads(metadata.pop(_METADATA))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        for name, shape in shapes.items():
            weights[name] = GGMLTensor(weights[name], torch.Size(shape))
        options = {"custom_operations": _operations()}
        model = comfy.sd.load_diffusion_model_state_dict(weights, model_options=options, metadata=metadata)
        return (_patcher_class().clone(model),)


NODE_CLASS_MAPPINGS = {"UnetLoaderGGUF": UnetLoaderGGUF}
