"""Measurements of this system; every number that the documentation gives comes from a script here."""
