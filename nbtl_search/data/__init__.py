"""Images in: split manifests, a decoded cache that processes share, and training batches."""
