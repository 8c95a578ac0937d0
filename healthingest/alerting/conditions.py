"""What can be wrong: each condition's name, how bad it is, and what a look at the installation says of it.

A condition that concerns one of several things of an installation carries its name: `not_ticking:landing_zone`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from healthingest.alerting.message import Severity


class Condition(NamedTuple):
    """One kind of thing that can be wrong."""

    severity: Severity
    #: What it is called in messages.
    title: str
    #: Check of the client's feed, or of the installation, that shows it in the Dagster UI.
    check: str


#: Every condition by its name; docs/operating.md says what to do about each.
CONDITIONS: Mapping[str, Condition] = {
    # of a client's deliveries
    "invalid_ratio": Condition("warning", "Too many records rejected", "current_quality"),
    "delivery_held": Condition("error", "Delivery held", "current_quality"),
    "delivery_failed": Condition("error", "Delivery failed as a whole", "current_quality"),
    "file_rules": Condition("warning", "Unusual number of records", "current_quality"),
    "changed_file": Condition("info", "A landed file was replaced", "files_as_agreed"),
    "contract_drift": Condition("warning", "Files differ from the contract: approve or reject", "files_as_agreed"),
    "records_waiting": Condition("warning", "Rejected records wait too long", "open_records"),
    "data_delay": Condition("error", "Data is late", "delivery_expected"),
    # of a client's runs, or of a job's
    "pipeline_failure": Condition("error", "Run failed", "pipeline"),
    "run_crashed": Condition("warning", "Run crashed", "pipeline"),
    "run_stuck": Condition("error", "Run stuck", "pipeline"),
    "undecided": Condition("error", "Delivery left undecided", "pipeline"),
    # of the installation
    "config_broken": Condition("error", "Config cannot be used", "configs"),
    "unroutable": Condition("warning", "Files lead nowhere", "landing_zone"),
    "sensor_failing": Condition("critical", "Sensor or schedule fails", "ticking"),
    "not_ticking": Condition("critical", "Sensor or schedule does not tick", "ticking"),
    "daemon_down": Condition("critical", "Dagster daemon not heard of", "ticking"),
    "schema_out_of_sync": Condition("error", "Tables differ from the registry", "schema_in_sync"),
    "disk_nearly_full": Condition("critical", "Disk nearly full", "machine"),
    "keys_expiring": Condition("warning", "Keys are due for rotation", "machine"),
    "place_failing": Condition("error", "Alerts do not get through", "alerting"),
    "watch_failing": Condition("error", "Part of the watch fails", "alerting"),
}


def kind_of(name: str) -> str:
    """The condition without the thing that it may name: `not_ticking` of `not_ticking:landing_zone`."""
    return name.partition(":")[0]


def condition_of(name: str) -> Condition:
    """What is known of a condition, whatever thing it names."""
    return CONDITIONS[kind_of(name)]


@dataclass(frozen=True)
class Observation:
    """What a look found: that a condition holds, or that it does not (any more). Counts and names, never a value."""

    condition: str
    #: None: it concerns the installation.
    client_id: str | None
    firing: bool
    #: When what was seen came about.
    at: datetime
    #: A sentence or two.
    summary: str
    #: Label and text: file, counts, rules, run ...
    details: tuple[tuple[str, str], ...] = ()
    link: str = ""
    #: Names what was seen, where it is an event (a delivery's row, a run) that counts once; empty for a state.
    evidence: str = ""
