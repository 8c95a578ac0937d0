"""The asset `membership_by_month`, kept up every quarter of an hour while silver changes."""

import dagster as dg
import polars as pl

from healthingest.lake.destinations import Destinations
from healthingest.marts.membership import FLOWS, Membership, by_month, counted, update
from healthingest.orchestration.assets import OWNERS
from healthingest.orchestration.events import readable_errors
from healthingest.places import Places
from healthingest.platform import Platform

CRON = "*/15 * * * *"
_BAR = 30


def membership_mart(places: Places) -> tuple[dg.AssetsDefinition, dg.ScheduleDefinition]:
    """The asset, and the schedule that materializes it where silver has changed."""

    @dg.asset(
        deps=["silver"],
        owners=OWNERS, group_name="gold", kinds={"deltalake", "polars"},
        description="Members, additions, changes and leavers per client, month, state and age band. Counts only.",
    )  # fmt: skip
    def membership_by_month(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        with readable_errors():
            platform = Platform.open(places)
            done = update(platform.lake, places.output)
            context.log.info("Tables of silver with changes: %s", len(done))
            return dg.MaterializeResult(metadata=shown(places))

    job = dg.define_asset_job("membership", selection=[membership_by_month])

    @dg.schedule(
        job=job, cron_schedule=CRON, execution_timezone="UTC", default_status=dg.DefaultScheduleStatus.RUNNING,
        name="membership_every_quarter", description="Takes in what silver has changed; no run where that is nothing.",
    )  # fmt: skip
    def every_quarter() -> dg.RunRequest | dg.SkipReason:
        return dg.RunRequest() if behind(places) else dg.SkipReason("Silver has not changed since.")

    return membership_by_month, every_quarter


def behind(places: Places) -> bool:
    """Whether a table of silver has a version that gold has not taken in."""
    gold = Membership.at(places.output)
    taken = gold.snapshot() if gold.exists() else None
    for silver in Destinations.at(places).tables():
        known = taken.transaction_version(f"silver/{silver.path.name}") if taken else None
        if silver.exists() and (known is None or known < (silver.version() or 0)):
            return True
    return False


def shown(places: Places) -> dict[str, dg.MetadataValue]:
    """The table of clients and months, and a chart of members, as metadata."""
    months = by_month(counted(places.output))
    most = max(months["members"].max() or 0, 1)
    lines = ["| client | month | members | | additions | changes | leavers |", "|---|---|--:|---|--:|--:|--:|"]
    for row in months.tail(200).to_dicts():
        bar = "█" * round(_BAR * row["members"] / most)
        flows = " | ".join(f"{row[flow]:,}" for flow in FLOWS)
        lines.append(f"| {row['client_id']} | {row['month']:%Y-%m} | {row['members']:,} | {bar} | {flows} |")
    return {
        "members": dg.MetadataValue.int(_now(months)),
        "months": dg.MetadataValue.md("\n".join(lines)),
    }


def _now(months: pl.DataFrame) -> int:
    last = months.group_by("client_id").agg(pl.col("members").sort_by("month").last())
    return int(last["members"].sum())
