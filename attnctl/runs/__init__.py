"""Machinery: what a run leaves on disk."""
