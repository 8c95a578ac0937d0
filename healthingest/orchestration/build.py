"""Puts the definitions together, fresh at each call; a client that cannot be served is left out, never an error."""

import logging
import warnings

import dagster as dg

from healthingest.contracts.clients import ClientSet, fingerprint
from healthingest.contracts.contract import Contract, load_contract
from healthingest.errors import ConfigError
from healthingest.lake.registrations import known_clients
from healthingest.orchestration.alerts import alert_sensor, installation_asset, state_checks
from healthingest.orchestration.approving import approving_jobs
from healthingest.orchestration.assets import feeds, pipeline_assets
from healthingest.orchestration.closing import closing_jobs
from healthingest.orchestration.marts import membership_mart
from healthingest.orchestration.partitions import partitions
from healthingest.orchestration.schedules import delivery_watch, maintenance, reconciliation
from healthingest.orchestration.sensors import ingest_job, landing_zone_sensor
from healthingest.places import Places
from healthingest.platform import Platform

log = logging.getLogger(__name__)


def build_defs(places: Places | None = None) -> dg.Definitions:
    """All assets, checks, sensors and schedules of the installation that `places` (or the environment) names."""
    places = places or Places.from_env()
    loaded = fingerprint(places.configs)
    clients = known_clients(places)
    for problem in clients.problems:
        log.warning("A client is left out: %s", problem)

    def open_platform() -> Platform:
        return Platform.open(places)

    with warnings.catch_warnings():
        # Partitioned checks are a preview; dagster is pinned, and each warning would come 14 times per command.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        warnings.simplefilter("ignore", dg.BetaWarning)
        keys = partitions(places, clients.active)
        assets = pipeline_assets(open_platform, keys, clients, _shown_contract(places, clients))
        watch_checks, schedules = delivery_watch(open_platform, clients)
        job = ingest_job()
        maintenance_job, nightly = maintenance(open_platform)
        reconciliation_job, hourly = reconciliation(open_platform)
        gold, quarterly = membership_mart(places)
        return dg.Definitions(
            assets=[*dg.with_source_code_references([*assets, gold]), *feeds(clients), installation_asset()],
            asset_checks=[*watch_checks, state_checks(places, clients)],
            schedules=[*schedules, nightly, hourly, quarterly],
            sensors=[
                landing_zone_sensor(open_platform, keys, loaded, lambda: build_defs(places), job),
                alert_sensor(places),
            ],
            jobs=[
                job,
                maintenance_job,
                reconciliation_job,
                *closing_jobs(open_platform),
                *approving_jobs(open_platform),
            ],
            executor=dg.in_process_executor,
        )


def _shown_contract(places: Places, clients: ClientSet) -> Contract | None:
    """The contract whose columns the UI shows: the one most clients use, else the default."""
    used = [clients.clients[client_id].contract for client_id in clients.active]
    if used:
        return max(used, key=lambda c: (sum(other.name == c.name for other in used), c.name))
    try:
        return load_contract(places.configs, "member/1")
    except ConfigError:
        return None
