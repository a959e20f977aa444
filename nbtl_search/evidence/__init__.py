"""Evidence: what runs of recipes with several seeds say of them, as pure functions of numbers."""
