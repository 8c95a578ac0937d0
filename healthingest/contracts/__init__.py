"""What is allowed: client configs and the contracts (schema versions) they name. Knows no table, no records."""
