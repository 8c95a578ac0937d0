"""One file's records, pure functions frame in, frame out: read, standardize, validate. Writes nothing."""
