"""A parametric face drawn by our own code: identity shapes, action units, pose, light and skin."""
