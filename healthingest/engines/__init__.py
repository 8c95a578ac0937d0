"""Engines: where a delivery's costly steps run, this process or the workers of a cluster."""
