"""Transfer methods, one a file, and what they share: layers, feature hooks, the source copy."""
