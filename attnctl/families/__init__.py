"""Machinery: what differs from one model family to the next."""
