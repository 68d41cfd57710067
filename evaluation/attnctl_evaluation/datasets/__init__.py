"""Data sets: the drawn world's own, the field's published ones, and a folder of yours."""
