"""Inversions that come with attnctl, one module each."""
