"""Quality reports as self-contained HTML pages: counts, rules and fill rates, never a value of a record."""
