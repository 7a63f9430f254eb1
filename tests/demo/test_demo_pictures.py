"""The demo's pictures of masks, pixel by pixel."""

from __future__ import annotations

import base64

import numpy as np

from tools.demo_pictures import marked


def packed(mask: np.ndarray) -> str:
    return base64.b64encode(np.packbits(mask.reshape(-1)).tobytes()).decode()


def test_a_mask_lies_over_the_pixels_of_its_tokens():
    grid = (2, 3, 3)
    edit, visible = np.zeros(grid, bool), np.zeros(grid, bool)
    edit[1, 0, 2] = True
    visible[1, 0, 1:] = True
    frames = np.full((4, 12, 12, 3), 100, np.uint8)
    shown = marked(frames, {"grid": list(grid), "edit": packed(edit), "visible": packed(visible)})
    assert shown.dtype == np.uint8 and shown.shape == frames.shape
    tinted = shown[..., 0] > shown[..., 2]
    assert tinted.sum() == 2 * 4 * 4 and tinted[2:, :4, 8:].all()
    assert (shown[2:, :4, 4:8] == 100).all(), "what is computed beside the edit mask stays as it is"
    assert (shown[:2] < 40).all() and (shown[2:, 4:] < 40).all(), "what is not computed is dimmed"
