"""The only SQL: schema, database, and one module per table."""
