"""Where each client's rows of silver go: `checkpoint/destinations/<client>.json`, the first word is the last.

A config says where they shall go; whoever is about to write a client's first row settles it here, put if absent, so
that two writers with two configs cannot each begin a part of the client. From then on this file decides, whether the
client's config is changed, broken or gone. Clients from before there were such files are in the table of all.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from deltalake import DeltaTable

from healthingest.contracts.clients import Layout
from healthingest.errors import IncompleteError
from healthingest.lake.delta import open_table
from healthingest.lake.silver import Silver, Snapshot
from healthingest.places import Places
from healthingest.storage.files import put, put_new

_DEFAULT = Layout()


@dataclass(frozen=True)
class Destinations:
    """The destinations of all clients."""

    output: Path
    #: Client -> what its present config says; clients without a usable one are not in it.
    wished: Mapping[str, Layout] = field(default_factory=dict)
    #: Over how many tables those are dealt out that name none; it counts until a client has rows.
    shards: int = 1

    @classmethod
    def at(cls, places: Places, wished: Mapping[str, Layout] | None = None) -> "Destinations":
        """Those of an installation, with what its configs say."""
        return cls(places.output, wished or {}, places.silver_shards)

    def of(self, client_id: str) -> Layout:
        """Where a client's rows are or, if it has none, where they would go; for whoever reads."""
        return self._noted(client_id) or self.found(client_id) or self.dealt(client_id)

    def settle(self, client_id: str) -> Layout:
        """Where a client's rows go from now on; for whoever is about to write.

        Raises:
            IncompleteError: the client's file is gone, and its rows alone do not tell all that it said.
        """
        if noted := self._noted(client_id):
            return noted
        found = replace(self).found(client_id)  # with a fresh look at what lies there
        if found:
            self._require_one_bucket(client_id, found)
        return self._put(client_id, found or self.dealt(client_id))

    def objection(self, client_id: str, wished: Layout) -> str | None:
        """What is wrong with a config that wishes a client's rows there; None if they are, or there are none yet."""
        noted = self._noted(client_id)
        settled = noted or self.found(client_id, wished)
        if settled is not None and noted is None:
            try:
                self._require_one_bucket(client_id, settled)
            except IncompleteError as error:
                return str(error)
        if settled is None or not (settled.dated or wished.dated) or settled == wished:
            return None  # another table or number of buckets is brought about by a command (`wish`)
        return (
            f"the rows of {client_id} are in {settled.said}, and no command moves them to {wished.said}. Put "
            "this key back as it was; or move all tables and checkpoint/destinations out of the output folder and run "
            "healthingest ingest --from-bronze, which builds them anew."
        )

    def settled(self, client_id: str) -> Layout | None:
        """Where a client's rows are; None: it has none yet, and its config may still change its mind."""
        return self._noted(client_id) or replace(self).found(client_id, looks=True)

    def resettle(self, client_id: str, layout: Layout) -> None:
        """Note where a client's rows are from now on; for whoever has just brought them there, alone with it."""
        put(self._place(client_id), json.dumps(layout.model_dump(mode="json")).encode())

    def wish(self, client_id: str) -> str | None:
        """What a client's config wants that a command brings about; None: nothing, or it has no rows yet."""
        settled, wished = self._noted(client_id), self.wished.get(client_id)
        if settled is None or wished is None:
            return None
        how = "move" if settled.own != wished.own else "rebucket"
        if how == "rebucket" and settled.buckets == wished.buckets:
            return None
        return (
            f"{client_id} wants its rows in {wished.said} and has them in {settled.said}: "
            f"run healthingest silver {how} --client {client_id}."
        )

    def wishes(self) -> list[str]:
        """The same of all clients."""
        return [said for client_id in sorted(self.wished) if (said := self.wish(client_id))]

    def tables(self) -> list[Silver]:
        """Every table of silver that there is or will be, that of all clients first."""
        # None for whoever may not list them; the configs tell too.
        clients = {path.stem for path in self._notes.glob("[!.]*.json")}
        layouts = [self.of(client_id) for client_id in sorted({*clients, *self.wished})]
        own = {layout.folder: layout for layout in layouts if layout.table}
        own |= {path.name: _on_disk(path) for path in self._own() if path.name not in own}
        return [Silver.at(self.output), *(Silver.at(self.output, own[name]) for name in sorted(own))]

    def folders(self) -> dict[str, str]:
        """Client -> the table that its note names, of all clients that have one."""
        clients = [path.stem for path in self._notes.glob("[!.]*.json")]
        return {client_id: noted.folder for client_id in clients if (noted := self._noted(client_id))}

    def _own(self) -> list[Path]:
        """Clients' own tables that lie on disk."""
        return sorted(path for path in self.output.glob("silver_*") if (path / "_delta_log").is_dir())

    @cached_property
    def _lying(self) -> dict[str, list[Path]]:
        """Client -> the tables besides that of all that have a folder of its, as this object first saw them."""
        found: dict[str, list[Path]] = {}
        for path in self._own():
            for folder in path.glob("client_id=*"):
                found.setdefault(folder.name.removeprefix("client_id="), []).append(path)
        return found

    @cached_property
    def _log_of_all(self) -> DeltaTable | None:
        silver = Silver.at(self.output)
        return silver.handle(without_files=True) if silver.exists() else None

    def dealt(self, client_id: str) -> Layout:
        """Where a client's first rows go: the table that its config names, or the one that its id is dealt to."""
        wished = self.wished.get(client_id, _DEFAULT)
        if self.shards == 1 or wished.table is not None:
            return wished
        number = int.from_bytes(hashlib.sha256(client_id.encode()).digest()[:8]) % self.shards
        return wished.model_copy(update={"table": f"{number:02}"})

    def _noted(self, client_id: str) -> Layout | None:
        try:
            return Layout.model_validate(json.loads(self._place(client_id).read_text()))
        except (FileNotFoundError, PermissionError):  # a reader may lack it, and has the configs
            return None

    def found(self, client_id: str, wished: Layout | None = None, *, looks: bool = False) -> Layout | None:
        """What the tables alone say of a client; None: they have nothing of it.

        Unless `looks`, also if they could have no more than what all have by default: that spares opening one.
        """
        for path in self._lying.get(client_id, ()):
            if not Snapshot(open_table(path, without_files=True), client_id).has_left:
                return _on_disk(path)
        if not looks and (wished or self.dealt(client_id)) == _DEFAULT:
            return None
        if self._log_of_all is None:
            return None
        there = Snapshot(self._log_of_all, client_id)
        return _DEFAULT if there.number and not there.has_left else None

    def _require_one_bucket(self, client_id: str, found: Layout) -> None:
        """Rows alone do not tell how many buckets there are; the log does, where they were spread anew."""
        folder = self.output / found.folder / f"client_id={client_id}"
        if any(bucket.name != "_bucket=0" for bucket in folder.glob("_bucket=*")):
            if Snapshot(Silver.at(self.output, found).handle(), client_id).buckets:
                return
            raise IncompleteError(
                f"{folder} has several buckets, but {self._place(client_id)}, which said how many, is gone; restore it "
                "from its backup."
            )

    def _put(self, client_id: str, layout: Layout) -> Layout:
        place = self._place(client_id)
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o770)  # the umask takes the group out, an ACL lets it in
        if put_new(place, json.dumps(layout.model_dump(mode="json")).encode()):
            return layout
        return self._noted(client_id) or layout

    def _place(self, client_id: str) -> Path:
        return self._notes / f"{client_id}.json"

    @property
    def _notes(self) -> Path:
        return self.output / "checkpoint" / "destinations"


def _on_disk(path: Path) -> Layout:
    """What a client's own table alone says of its clients."""
    name = path.name.removeprefix("silver_")
    dated = "creation_date" in Silver.partitions_of(path)
    return Layout(table=name, partition_by=("client_id", "creation_date") if dated else ("client_id",))
