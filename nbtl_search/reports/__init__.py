"""Reports of what a study has found: in a terminal, on a page, as files, in the dashboard."""
