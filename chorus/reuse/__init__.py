"""The mathematics of reuse on plain tensors, without ComfyUI: plan, schedule, states, masks, amplification."""
