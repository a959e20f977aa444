"""Terminal views: tables of at most 80 columns."""
