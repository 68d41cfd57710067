"""Reports of comparisons: one file that a person opens, or tables for a paper. Records in, text out; no model runs."""
