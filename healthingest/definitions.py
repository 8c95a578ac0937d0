"""Dagster's entry point: definitions are built when first asked for, and once."""

from functools import cache

import dagster as dg


@dg.definitions
@cache
def defs() -> dg.Definitions:
    """All definitions of this installation."""
    from healthingest.hardening import harden
    from healthingest.orchestration.build import build_defs

    harden()
    return build_defs()
