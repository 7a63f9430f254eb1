"""The edge to ComfyUI: the only place that knows its insides."""
