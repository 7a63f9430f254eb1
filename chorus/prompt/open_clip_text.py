"""Prompt vectors from the text tower of an open_clip model on this machine; nothing is ever downloaded."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from .vector import PromptVector
from .windows import split_prompt

MODEL = "ViT-B-32"
PRETRAINED = "laion2b_s34b_b79k"
# Where open_clip's own table has these weights; known here so that a look need not import open_clip.
REPOSITORY = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


class OpenClipEmbedder:
    """Embeds prompts with an open_clip text tower.

    model: a name open_clip lists, with CLIP's own tokenizer
    pretrained: one of its tags for that model, with the weights in the local cache, or a path to weights
    device: where the text tower runs

    Loading takes seconds and, until the image tower is dropped, the memory of the whole model. Not safe for
    use from several threads at once.

    Raises:
        RuntimeError: the model cannot be used here; the message is that of `available`.

    Example:
        if OpenClipEmbedder.available() is None:
            score = OpenClipEmbedder()("a red circle").vector @ OpenClipEmbedder()("a red ball").vector
    """

    def __init__(self, model: str = MODEL, pretrained: str | Path = PRETRAINED, device: str = "cpu"):
        if reason := self.available(model, pretrained):
            raise RuntimeError(reason)
        import open_clip

        weights = _local_weights(model, pretrained)
        assert weights is not None  # `available` found them
        is_tag = open_clip.pretrained.is_pretrained_cfg(model, str(pretrained))
        # A path keeps open_clip from asking the hub; what the tag says of the architecture goes beside it.
        settings = open_clip.get_pretrained_cfg(model, str(pretrained)) if is_tag else {}
        clip = open_clip.create_model(
            model,
            pretrained=str(weights),
            force_quick_gelu=bool(settings.get("quick_gelu")),
            pretrained_text=False,
            device=device,
        )
        clip.visual = None
        self._clip = clip.eval()
        self._tokenizer = open_clip.get_tokenizer(model)
        self._device = device
        self.name = f"open_clip:{model}/{pretrained if is_tag else _file_digest(weights)}"

    def __call__(self, prompt: str) -> PromptVector:
        """The prompt's vector. One longer than the context is cut in windows, averaged by their tokens."""
        import torch

        windows = split_prompt(prompt, self._tokenizer.context_length - 2, self._count)
        with torch.inference_mode():
            tokens = self._tokenizer(windows).to(self._device)
            vectors = self._clip.encode_text(tokens, normalize=True).float().cpu().numpy()
        weights = [max(self._count(window), 1) for window in windows]
        return PromptVector.of(self.name, np.average(vectors, axis=0, weights=weights))

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text))

    @staticmethod
    def default_weights_cached() -> bool:
        """Whether the default model's weights are in the Hugging Face cache; does not import open_clip."""
        if find_spec("huggingface_hub") is None:
            return False
        from huggingface_hub import try_to_load_from_cache

        return any(isinstance(try_to_load_from_cache(REPOSITORY, name), str) for name in FILES)

    @staticmethod
    def available(model: str = MODEL, pretrained: str | Path = PRETRAINED) -> str | None:
        """None when the embedder can be made, else one line that says why not.

        The first call imports open_clip, which takes seconds. Never downloads, never raises.
        """
        if find_spec("open_clip") is None:
            return "open_clip is not installed: pip install open_clip_torch"
        if error := _import_error():
            return f"open_clip is installed but does not import: {error}"
        import open_clip

        if model not in open_clip.list_models():
            return f"open_clip has no model {model!r}"
        if "hf_tokenizer_name" in open_clip.get_model_config(model)["text_cfg"]:
            return f"open_clip's {model} needs a tokenizer from a hub: choose a model with CLIP's own"
        if _local_weights(model, pretrained) is None:
            return f"weights {str(pretrained)!r} of open_clip's {model} are not on this machine: " + (
                "give the path of a file with them, or put them in the Hugging Face cache"
            )
        return None


@lru_cache(maxsize=1)
def _import_error() -> str:
    """Why open_clip does not import, or ""; asked once, as a failed import is slow."""
    try:
        import open_clip  # noqa: F401
    except Exception as error:  # a broken installation may raise anything
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _local_weights(model: str, pretrained: str | Path) -> Path | None:
    """The weights file of a tag in the local caches, or the given path; None when it is not there."""
    import open_clip
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    settings = open_clip.get_pretrained_cfg(model, str(pretrained))
    if not settings:
        path = Path(pretrained).expanduser()
        return path if path.is_file() else None
    if hub := settings.get("hf_hub"):
        repository, filename = os.path.split(hub)
        filename = filename or HF_WEIGHTS_NAME
        safe = HF_SAFE_WEIGHTS_NAME if filename == HF_WEIGHTS_NAME else f"{Path(filename).stem}.safetensors"
        for name in (safe, filename):
            found = try_to_load_from_cache(repository, name)
            if isinstance(found, str):
                return Path(found)
    if url := settings.get("url"):
        path = Path("~/.cache/clip").expanduser() / os.path.basename(url)
        return path if path.is_file() else None
    return None


def _file_digest(path: Path) -> str:
    """Digest of a weights file, 16 hexadecimal digits: a path would mean nothing on other machines."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
