"""What a request takes over from an earlier one: how far (plan), from where (trajectory), where (regions), how loud
(amplification). Plain tensors; nothing of ComfyUI."""
