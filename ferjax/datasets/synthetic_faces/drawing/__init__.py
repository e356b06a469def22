"""A parametric face drawn by our own code: identity, action units, pose, light and skin."""
