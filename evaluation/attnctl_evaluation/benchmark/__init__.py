"""Comparing methods over a data set: what is asked for, how it is worked off, and where it is kept."""
