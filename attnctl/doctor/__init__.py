"""Machinery: a look at the installation."""
