"""A recipe in, epochs out: the network, its training loop, its checkpoints."""
