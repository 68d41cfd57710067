"""The built-in methods and inversions: one module, one entry point each."""
