"""Procedural textures: a small task to transfer to, and a large one to learn from."""
