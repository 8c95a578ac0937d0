"""Clients whose config says `add_columns`: a new column of a file gets into the contract before the file is registered.

For dev and qa; in prod a person decides. Nobody has said yet what the new column's values are, so that they go into the
vault under a group of their own, `unreviewed`, which no role is granted by accident.
"""

from pathlib import Path

from healthingest.contracts.evolve import Answer, candidate, write
from healthingest.errors import ConfigError, PermanentError, UsageError
from healthingest.lake.proposals import Words
from healthingest.platform import Platform
from healthingest.records.glimpse import SeenColumn, glimpse
from healthingest.records.read import RecordReader

#: Seconds to wait for ingests that are at work on the client.
_WAIT = 600.0
#: What becomes of a column that nobody has looked at.
UNREVIEWED = Answer(type="text", policy={"vault": "unreviewed"}, description="Added unseen; nobody has reviewed it.")


def widen(platform: Platform, path: Path, client_id: str) -> None:
    """Write the contract's next version and the client's YAML where a landed file has columns that they lack.

    Raises:
        ConfigError: somebody else wrote another version a moment ago.
        BusyError: others did not finish with the client.
    """
    config = platform.clients.clients[client_id].config
    if config.schema_evolution != "add_columns" or platform.places.env == "prod":
        return
    if not _new(platform, path, client_id):
        return
    with platform.lake.exclusion.alone(client_id, wait=_WAIT):
        for column in _new(platform, path, client_id):  # another process may have been faster
            client = platform.present_client(client_id)
            try:
                made = candidate(platform.places.configs, client, "added", None, column.shown, "", {}, UNREVIEWED)
            except (ConfigError, UsageError):  # such a name is taken: a person must give it another
                continue
            write(platform.places.configs, made)
            said = f"{client_id}.added.{column.key}", "applied"
            platform.lake.events.append(client_id, "schema approved", "", {
                "who": "add_columns", "proposal": said[0], "contract": made.client.contract.name,
            })  # fmt: skip
            Words.at(platform.places.output).put(client_id, said[0], "applied", by="add_columns", reason="by its mode")


def _new(platform: Platform, path: Path, client_id: str) -> list[SeenColumn]:
    client = platform.present_client(client_id)
    facts = platform.lake.bronze.facts_of(path, client)
    try:
        looked = glimpse(lambda other: RecordReader(path.open("rb"), facts, other), client)
    except (PermanentError, OSError):  # whoever reads it says what is wrong with it
        return []
    return [c for c in looked.columns if c.column is None and c.shown] if looked.is_header else []
