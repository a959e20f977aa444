"""The search column: studies in a database, and what is known of their trials."""
