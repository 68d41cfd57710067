"""Commands of the evaluation; modules here are loaded for `attnctl --help` and import nothing heavy."""
