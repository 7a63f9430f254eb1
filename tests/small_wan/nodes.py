"""Test-only nodes: the small Wan's text encoder and its stand-in for a VAE.

The model itself loads through core's UNETLoader.
"""

from __future__ import annotations

import zlib
from typing import ClassVar

import comfy.latent_formats
import comfy.sd
import torch
from comfy_api.latest import ComfyExtension, io

from . import text_encoder
from .codec import BENCH_BORDER, Codec
from .export import CODEC_FILE

CATEGORY = "testing/small wan"
ENLARGE = 2  # the codec's 4 pixels a latent cell, shown as the 8 that Wan's latents stand for


class WordTokenizer:
    """One token a word, in the host's token shape: {"umt5xxl": [[(id, weight), …]]}."""

    def __init__(self, embedding_directory: str | None = None, tokenizer_data: dict | None = None):
        self._words: dict[int, str] = {}

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_options: object) -> dict:
        pairs = []
        for i, word in enumerate(text_encoder.words(text)):
            token = zlib.crc32(word.encode())
            self._words[token] = word
            pairs.append((token, 1.0, i + 1) if return_word_ids else (token, 1.0))
        return {"umt5xxl": [pairs]}

    def untokenize(self, token_weight_pair: list[tuple]) -> list[tuple[tuple, str]]:
        return [(pair, self._words[pair[0]]) for pair in token_weight_pair]

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(self._words[token] for token in token_ids)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}


class WordEncoder(torch.nn.Module):
    """`text_encoder.encode` as the host's text encoder model.

    Its one weight scales the encoding, so that a LoRA or a fingerprint of the weights finds something.
    """

    def __init__(self, device: str = "cpu", dtype: torch.dtype | None = None, model_options: dict | None = None):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1, device=device), requires_grad=False)
        self.dtypes = {torch.float32}
        self.tokenizer = WordTokenizer()  # `load_clip` puts the one here whose words the host's calls fill in

    def set_clip_options(self, options: dict) -> None:
        """Nothing to set: there is one layer and no projection."""

    def reset_clip_options(self) -> None:
        """Nothing to reset."""

    def encode_token_weights(self, tokens: dict) -> tuple[torch.Tensor, None]:
        """Tokens of one prompt → ([1, LENGTH, DIM], no pooled vector)."""
        words = [word for _, word in self.tokenizer.untokenize(tokens["umt5xxl"][0])]
        return text_encoder.encode(" ".join(words)) * self.scale.cpu(), None

    def load_sd(self, sd: dict[str, torch.Tensor]) -> object:
        return self.load_state_dict(sd, strict=False)


class EncoderTarget:
    """What `comfy.sd.CLIP` is built from."""

    params: ClassVar[dict] = {}
    clip = WordEncoder
    tokenizer = WordTokenizer


def load_clip() -> comfy.sd.CLIP:
    """The host's own CLIP object around the word encoder."""
    clip = comfy.sd.CLIP(EncoderTarget, parameters=1)
    clip.cond_stage_model.tokenizer = clip.tokenizer
    return clip


class CodecVAE:
    """The codec behind the calls that core's VAE nodes make.

    A latent frame is one video frame (Wan's stands for four), so LATENT [B, 16, T, h, w] ↔ IMAGE
    [B, T, 8h, 8w, 3]. LATENT is in Wan 2.1's scale, as samplers return it.

    every: of a video that is encoded, each so many-th image counts. The host's image-to-video nodes hand over all
        images of a video, four a latent frame but for the first.
    """

    def __init__(self, codec: Codec, every: int = 1):
        self.codec, self.every = codec, every
        self.latent_format = comfy.latent_formats.Wan21()
        self.latent_channels = 16

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """[B, 16, T, h, w] → [B, T, 8h, 8w, 3] in [0, 1]."""
        video = self.codec.decode(self.latent_format.process_in(samples.float().cpu()))
        return video.repeat_interleave(ENLARGE, -3).repeat_interleave(ENLARGE, -2)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """[T, H, W, 3] or [B, T, H, W, 3] in [0, 1], H and W multiples of 8 → [B, 16, T, H/8, W/8]."""
        video = pixels[..., :3].float().cpu()
        if video.ndim == 4:
            video = video[None]
        video = video[:, :: self.every]
        *lead, h, w, c = video.shape
        cells = video.reshape(*lead, h // ENLARGE, ENLARGE, w // ENLARGE, ENLARGE, c)
        return self.latent_format.process_out(self.codec.encode(cells.mean((-4, -2))))

    def spacial_compression_encode(self) -> int:
        return 8

    def spacial_compression_decode(self) -> int:
        return 8

    def temporal_compression_decode(self) -> int:
        return 1


BORDERS = {
    "small_wan_t2v": 0.0,
    "bench_wan_t2v": BENCH_BORDER,
    "bench_wan_i2v": BENCH_BORDER,
}  # of the codec, by the model


def load_vae(model: str = "small_wan_t2v") -> CodecVAE:
    """The codec that lies with the weights, as a model was trained with it. Raises FileNotFoundError."""
    if not CODEC_FILE.is_file():
        raise FileNotFoundError(f"{CODEC_FILE} is missing: write it with `python -m small_wan.export`")
    return CodecVAE(Codec.load(CODEC_FILE, BORDERS[model]), 4 if model.endswith("_i2v") else 1)


class SmallWanTextEncoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SmallWanTextEncoderLoader",
            display_name="Small Wan Text Encoder",
            category=CATEGORY,
            description=(
                "The small Wan's text encoder, for tests: a fixed random vector a word, mixed with its "
                "neighbours'. Needs no file."
            ),
            inputs=[],
            outputs=[io.Clip.Output(tooltip="Encodes prompts for small_wan_t2v.safetensors.")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(load_clip())


class SmallWanVAELoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SmallWanVAELoader",
            display_name="Small Wan VAE",
            category=CATEGORY,
            description=(
                "The small Wan's linear codec in place of a VAE, for tests. One image a latent frame: a "
                "latent of 96 × 96 pixels and length 13 gives 4 images of 96 × 96 (each pixel doubled)."
            ),
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(BORDERS),
                    default="small_wan_t2v",
                    optional=True,
                    tooltip="The model whose latents are decoded.",
                )
            ],
            outputs=[io.Vae.Output(tooltip="Decodes what small_wan_t2v.safetensors samples.")],
        )

    @classmethod
    def execute(cls, model: str = "small_wan_t2v") -> io.NodeOutput:
        return io.NodeOutput(load_vae(model))


class SmallWanExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [SmallWanTextEncoderLoader, SmallWanVAELoader]
