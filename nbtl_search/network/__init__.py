"""The network of a recipe: its weights, its build, and where it computes."""
