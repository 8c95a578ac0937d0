"""The only package that imports dagster: a thin shell over `healthingest.ingest`. No rule about data lives here."""
