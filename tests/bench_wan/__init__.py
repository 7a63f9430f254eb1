"""A small Wan on a finer grid, made to judge methods of reuse: its scenes, its training and the judge of its videos."""
