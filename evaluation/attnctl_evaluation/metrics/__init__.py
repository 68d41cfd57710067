"""Metrics: distances of pixels, perceptual distances, CLIP, structure, and the drawn world's ground truth."""
