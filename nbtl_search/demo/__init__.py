"""The demo: a search that runs anywhere, and the pre-training of the weights it starts from."""
