"""What a terminal shows: tables of at most 80 columns."""
