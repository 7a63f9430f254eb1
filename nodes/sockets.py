"""What the nodes share: the CHORUS socket and their category."""

from comfy_api.latest import io

CATEGORY = "Chorus"
Chorus = io.Custom("CHORUS")

LATENT_TOOLTIP = "The latent that is sampled. Only its shape counts, unless it already holds a picture."
PROMPT_TOOLTIP = "The prompt as text. It is compared with the prompts of the cached videos."
