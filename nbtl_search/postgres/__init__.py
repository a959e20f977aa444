"""The embedded Postgres, and connections to any."""
