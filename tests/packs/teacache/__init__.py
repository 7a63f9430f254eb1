"""A test-only TeaCache that patches a Wan model in the slots, and in the ways, that ComfyUI-TeaCache does.

Its settings lie in `transformer_options`. The function set as `model_function_wrapper` finds the step by the place of
σ in `sample_sigmas`, replaces the network's `forward_orig` for the length of the call, and keeps what it remembers as
an attribute of the network, from the first step of a run to the next run's first.
"""

from __future__ import annotations

from typing import Any, ClassVar
from unittest.mock import patch

# By the kind of model: how the change of the time embedding is rescaled, the highest power first.
COEFFICIENTS = {
    "wan2.1_t2v_1.3B": [1.0, 1.0, 0.0],
    "wan2.1_t2v_14B": [0.5, 0.25, 0.1],
}


def _cached_forward(network, x, t, context, *args, transformer_options=None, **kwargs):
    """`forward_orig` that gives the last result again while the time embedding has changed little since."""
    from comfy.ldm.wan.model import sinusoidal_embedding_1d

    options = transformer_options if transformer_options is not None else {}
    if not options.get("enable_teacache"):
        return type(network).forward_orig(network, x, t, context, *args, transformer_options=options, **kwargs)
    signal = network.time_embedding(sinusoidal_embedding_1d(network.freq_dim, t.flatten()[:1]).to(x.dtype))
    if not hasattr(network, "teacache_state"):
        network.teacache_state = {}
    key = tuple(options["cond_or_uncond"])
    state = network.teacache_state.setdefault(key, {"signal": None, "sum": 0.0, "change": None})
    if state["signal"] is not None:
        moved = float((signal - state["signal"]).abs().mean() / state["signal"].abs().mean())
        value = 0.0
        for coefficient in options["coefficients"]:
            value = value * moved + coefficient
        state["sum"] += abs(value)
    state["signal"] = signal
    if state["change"] is not None and state["sum"] < options["rel_l1_thresh"] and not options["teacache_last"]:
        return x + state["change"]
    out = type(network).forward_orig(network, x, t, context, *args, transformer_options=options, **kwargs)
    state["sum"], state["change"] = 0.0, out - x
    return out


class TeaCache:
    KINDS: ClassVar[list[str]] = list(COEFFICIENTS)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "model_type": (cls.KINDS, {"default": cls.KINDS[0]}),
                "rel_l1_thresh": ("FLOAT", {"default": 0.4, "min": 0.0, "max": 10.0, "step": 0.01}),
                "start_percent": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.01}),
                "end_percent": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "apply_teacache"
    CATEGORY = "testing/teacache"

    def apply_teacache(self, model, model_type, rel_l1_thresh, start_percent, end_percent):
        patched = model.clone()
        options = patched.model_options["transformer_options"]
        options["rel_l1_thresh"] = rel_l1_thresh
        options["coefficients"] = COEFFICIENTS[model_type]
        network = patched.get_model_object("diffusion_model")
        replaced = patch.multiple(network, forward_orig=_cached_forward.__get__(network, type(network)))

        def unet_wrapper_function(model_function, kwargs):
            x, timestep, c = kwargs["input"], kwargs["timestep"], kwargs["c"]
            inner = c["transformer_options"]
            sigmas = inner["sample_sigmas"]
            found = (sigmas == timestep[0]).nonzero()
            if len(found) > 0:
                step = int(found[0].item())
            else:
                step = 0
                for i in range(len(sigmas) - 1):
                    if (sigmas[i] - timestep[0]) * (sigmas[i + 1] - timestep[0]) <= 0:
                        step = i
                        break
            if step == 0 and hasattr(network, "teacache_state"):
                del network.teacache_state
            share = step / max(1, len(sigmas) - 1)
            inner["enable_teacache"] = start_percent <= share <= end_percent
            inner["teacache_last"] = step == len(sigmas) - 2
            with replaced:
                return model_function(x, timestep, **c)

        patched.set_model_unet_function_wrapper(unet_wrapper_function)
        return (patched,)


NODE_CLASS_MAPPINGS = {"TeaCache": TeaCache}
