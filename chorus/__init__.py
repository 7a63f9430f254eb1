"""Chorus: reuse of denoising steps between video requests. Runs without ComfyUI outside `chorus.comfy`."""
