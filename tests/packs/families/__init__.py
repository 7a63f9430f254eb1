"""Test-only nodes that stand for the encoders of many model families: text, VAE, CLIP vision, audio.

Each is small and needs no file. What they give has the shapes that the families' own encoders give, and depends on what
they are given. The models themselves load through core's UNETLoader, and core's own nodes do the conditioning.
"""

from __future__ import annotations

import re
import zlib
from typing import Any

import comfy.clip_vision
import comfy.sd
import torch

CATEGORY = "testing/families"
LENGTH = 32  # tokens of a prompt, zero padded


def _drawn(seed: int | str, *shape: int) -> torch.Tensor:
    number = zlib.crc32(seed.encode()) if isinstance(seed, str) else seed
    return torch.randn(*shape, generator=torch.Generator().manual_seed(number))


# -- text -----------------------------------------------------------------------------------------------------------


class _Tokenizer:
    """One token a word, in the host's token shape."""

    def __init__(self, embedding_directory: str | None = None, tokenizer_data: dict | None = None):
        self.words: dict[int, str] = {}

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_options: object) -> dict:
        pairs = []
        for word in re.findall(r"[a-z0-9]+", text.lower())[:LENGTH]:
            self.words[zlib.crc32(word.encode())] = word
            pairs.append((zlib.crc32(word.encode()), 1.0))
        return {"umt5xxl": [pairs]}

    def untokenize(self, token_weight_pair: list[tuple]) -> list[tuple[tuple, str]]:
        return [(pair, self.words[pair[0]]) for pair in token_weight_pair]

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}


class _Encoder(torch.nn.Module):
    """A fixed random vector a word. width: of a token; pooled: of a vector of the whole text, 0 for none.

    masked: whether the host also gets an attention mask, as from encoders of language models.
    alike: whether the vector of the whole text is the same for all texts.
    """

    def __init__(self, device: str = "cpu", dtype: torch.dtype | None = None, model_options: dict | None = None):
        super().__init__()
        settings = (model_options or {})["family"]
        self.width, self.pooled, self.masked, self.alike = settings
        self.scale = torch.nn.Parameter(torch.ones(1, device=device), requires_grad=False)
        self.dtypes = {torch.float32}

    def set_clip_options(self, options: dict) -> None:
        """Nothing to set."""

    def reset_clip_options(self) -> None:
        """Nothing to reset."""

    def encode_token_weights(self, tokens: dict) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, torch.Tensor]]:
        encoded = torch.zeros(1, LENGTH, self.width)
        pairs = tokens["umt5xxl"][0]
        for place, (token, *_) in enumerate(pairs):
            encoded[0, place] = 3 * _drawn(token, self.width) + 0.5 * _drawn(f"#{place}", self.width)
        whole = None
        if self.pooled:
            said = [0] if self.alike else [token + 1 for token, *_ in pairs]
            whole = sum((_drawn(token, self.pooled) for token in said), torch.zeros(self.pooled))[None] / 3
        extra = {}
        if self.masked:
            extra["attention_mask"] = torch.zeros(1, LENGTH, dtype=torch.long)
            extra["attention_mask"][0, : max(1, len(pairs))] = 1
        return encoded * self.scale.cpu(), whole, extra

    def load_sd(self, sd: dict[str, torch.Tensor]) -> object:
        return self.load_state_dict(sd, strict=False)


class _Target:
    """What `comfy.sd.CLIP` is built from."""

    params: dict[str, Any] = {}  # noqa: RUF012
    clip = _Encoder
    tokenizer = _Tokenizer


class FamilyTextEncoder:
    """The host's own CLIP object around a fixed random vector a word."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "width": ("INT", {"default": 64, "min": 1, "max": 16384}),
                "pooled": ("INT", {"default": 0, "min": 0, "max": 16384}),
                "masked": ("BOOLEAN", {"default": False}),
            },
            "optional": {"alike": ("BOOLEAN", {"default": False})},
        }

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load"
    CATEGORY = CATEGORY

    def load(self, width, pooled, masked, alike=False):
        options = {"family": (width, pooled, masked, alike)}
        return (comfy.sd.CLIP(_Target, parameters=1, model_options=options),)


# -- pictures -------------------------------------------------------------------------------------------------------


class _VAE:
    """Means over cells of pixels, spread over the channels by a fixed random matrix. The first image of a video is a
    latent frame, and so is each further group of `every` images.
    """

    def __init__(self, channels: int, cell: int, every: int):
        self.latent_channels, self.cell, self.every = channels, cell, every
        self.spread = _drawn(channels, 3, channels)
        self.downscale_index_formula = (every, cell, cell)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """[F, H, W, 3] in [0, 1] → [1, C, T, H / cell, W / cell]; with every 0 [F, C, H / cell, W / cell]."""
        cell = self.cell
        frames, height, width, _ = pixels.shape
        cells = pixels[..., :3].float().reshape(frames, height // cell, cell, width // cell, cell, 3)
        latent = (2 * cells.mean((2, 4)) - 1) @ self.spread  # [F, h, w, C]
        if not self.every:
            return latent.movedim(-1, 1)
        groups = [latent[:1], *latent[1:].split(self.every)]
        return torch.stack([group.mean(0) for group in groups if len(group)]).movedim(-1, 0)[None]

    def spacial_compression_encode(self) -> int:
        return self.cell

    def spacial_compression_decode(self) -> int:
        return self.cell

    def temporal_compression_decode(self) -> int | None:
        return self.every or None


class FamilyVAE:
    """A VAE's encoder, linear and the same in every run."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "channels": ("INT", {"default": 16, "min": 1, "max": 1024}),
                "cell": ("INT", {"default": 8, "min": 1, "max": 64}),
                "every": ("INT", {"default": 4, "min": 0, "max": 64}),
            }
        }

    RETURN_TYPES = ("VAE",)
    FUNCTION = "load"
    CATEGORY = CATEGORY

    def load(self, channels, cell, every):
        return (_VAE(channels, cell, every),)


class FamilyPictures:
    """Images of coarse random colours: of another seed, other ones."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "seed": ("INT", {"default": 0}),
                "frames": ("INT", {"default": 1, "min": 1, "max": 1024}),
                "size": ("INT", {"default": 64, "min": 8, "max": 1024}),
            }
        }

    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "make"
    CATEGORY = CATEGORY

    def make(self, seed, frames, size):
        coarse = torch.rand(frames, 4, 4, 3, generator=torch.Generator().manual_seed(seed))
        pixels = coarse.repeat_interleave(size // 4, 1).repeat_interleave(size // 4, 2)
        return (pixels, (pixels[..., 0] > 0.5).float())


class FamilySight:
    """Stands for a CLIP vision encoder: what it saw of the picture of a seed."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"seed": ("INT", {"default": 0}), "width": ("INT", {"default": 1280})}}

    RETURN_TYPES = ("CLIP_VISION_OUTPUT",)
    FUNCTION = "see"
    CATEGORY = CATEGORY

    def see(self, seed, width):
        seen = comfy.clip_vision.Output()
        seen["last_hidden_state"] = seen["penultimate_hidden_states"] = _drawn(seed, 1, 257, width)
        seen["image_embeds"] = _drawn(seed, 1, 64)
        return (seen,)


class FamilySpeech:
    """Stands for an audio encoder: features of the speech of a seed, in several layers."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "seed": ("INT", {"default": 0}),
                "layers": ("INT", {"default": 25}),
                "width": ("INT", {"default": 64}),
            }
        }

    RETURN_TYPES = ("AUDIO_ENCODER_OUTPUT",)
    FUNCTION = "hear"
    CATEGORY = CATEGORY

    def hear(self, seed, layers, width):
        heard = _drawn(seed, layers, 1, 100, width)  # two seconds
        return ({"encoded_audio": heard[-1], "encoded_audio_all_layers": list(heard), "audio_samples": 32000},)


class FamilyAudioLatent:
    """An empty latent of sound, as LTX-2's audio VAE would have it."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"frames": ("INT", {"default": 4})}}

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"
    CATEGORY = CATEGORY

    def make(self, frames):
        return ({"samples": torch.zeros(1, 8, frames, 16), "type": "audio"},)


NODE_CLASS_MAPPINGS = {
    kind.__name__: kind
    for kind in (
        FamilyTextEncoder,
        FamilyVAE,
        FamilyPictures,
        FamilySight,
        FamilySpeech,
        FamilyAudioLatent,
    )
}
