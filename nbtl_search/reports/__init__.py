"""What a study has found, for people: the terminal, the figures, the dashboard."""
