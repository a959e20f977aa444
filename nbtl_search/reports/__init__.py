"""Reports of what a study has found: the terminal, the figures, the dashboard."""
