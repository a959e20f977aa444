"""Start workers: on this machine, and later on clusters."""
