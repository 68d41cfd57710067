"""Data sets, metrics and comparisons: everything that judges an edit and runs no method itself."""
