"""Figures, for the dashboard, the page, and files; and small pictures of single trials."""
