"""One script a schema version, oldest first."""
