"""The report: one HTML page, or its tables."""
