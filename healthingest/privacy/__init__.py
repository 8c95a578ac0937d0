"""What keeps values from those who must not read them: keyring, tokens, sealing, encrypted Parquet, generalisation."""
