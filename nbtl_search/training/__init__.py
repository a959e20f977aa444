"""A recipe in, epochs out: the training loop, its checkpoints, its evaluation."""
