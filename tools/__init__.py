"""Development tooling: environment, ComfyUI host, API client. Nothing here ships to users."""
