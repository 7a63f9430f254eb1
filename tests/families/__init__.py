"""Every model family that the host knows and Chorus meets, through the host's own loaders and nodes."""
