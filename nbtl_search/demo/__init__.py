"""The search that runs anywhere, and the weights it starts from."""
