"""Study: a search in a database, from its creation to its verdict (no torch in here)."""
