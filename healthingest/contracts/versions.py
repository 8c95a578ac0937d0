"""What two versions of a contract differ in, and how much that asks of senders and readers: computed, never declared.

What belongs here: comparing contracts. Not: who registered them and when (`lake.registrations`).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from healthingest.contracts.contract import Column, Contract, load_contract
from healthingest.contracts.rules import Rule, Span
from healthingest.errors import ConfigError

#: compatible: whatever was accepted is, and no table changes. additive: silver or the vault gets columns besides.
#: breaking: something is refused that was accepted, or a reader does not find what was there.
Compatibility = Literal["compatible", "additive", "breaking"]
_ORDER: tuple[Compatibility, ...] = ("compatible", "additive", "breaking")


@dataclass(frozen=True)
class Change:
    """One difference, in words."""

    #: A column or rule, as `column middle_name` or `rule state.codes`; empty: the contract itself.
    subject: str
    text: str
    compatibility: Compatibility


def compatibility(changes: Iterable[Change]) -> Compatibility:
    """The class of a step with these changes: that of its gravest."""
    return max((change.compatibility for change in changes), key=_ORDER.index, default="compatible")


def changes(before: Contract, after: Contract) -> list[Change]:
    """Every difference between two versions of a contract."""
    found = [*_of_columns(before, after), *_of_rules(before, after)]
    if before.description != after.description:
        found.append(Change("", "another description", "compatible"))
    return found


def silver_types(contract: Contract) -> dict[str, str]:
    """Readable silver column that a contract makes -> `number` or `text`."""
    made = {target: "number" if how == "year" else "text" for target, (_, how) in contract.derived.items()}
    return dict.fromkeys(contract.kept, "text") | made


def hold_against_registry(configs: Path, contract: Contract, published: Mapping[str, str]) -> None:
    """Refuse a version that cannot stand in the registry below `configs`.

    `published`: `<name>/<version>` -> digest of each version that is published.

    Raises:
        ConfigError: its text is not the published one, a version before it is missing, or Delta could not follow it.
    """
    file = configs / "contracts" / f"{contract.name}.yaml"
    if published.get(contract.name, contract.digest) != contract.digest:
        raise ConfigError(
            f"{contract.name} is published and was changed since; put its text back and publish the change as "
            f"{contract.contract}/{contract.version + 1}.",
            file=file,
        )
    types = silver_types(contract)
    for number in range(1, contract.version):
        name = f"{contract.contract}/{number}"
        if not (configs / "contracts" / f"{name}.yaml").is_file():
            raise ConfigError(f"there is no {name} before it; versions are numbered without a gap.", file=file)
        for column, then in silver_types(load_contract(configs, name)).items():
            if types.get(column, then) != then:
                raise ConfigError(
                    f"{column} is a {then} in {name} and {types[column]} in {contract.name}; Delta cannot change the "
                    "type of a column, so give the new one another name.",
                    file=file,
                )


# --- columns ------------------------------------------------------------------------------------------------------


def _of_columns(before: Contract, after: Contract) -> Iterator[Change]:
    for name in before.column:
        if name not in after.column:
            yield Change(f"column {name}", "removed", "breaking")
    for name, column in after.column.items():
        if name in before.column:
            yield from _of_column(before.column[name], column)
        else:
            kind: Compatibility = "breaking" if column.required else "additive"
            yield Change(f"column {name}", f"added, {'required' if column.required else 'optional'}", kind)
    kept = [name for name in before.column if name in after.column]
    place = {name: at for at, name in enumerate(after.column)}
    if [name for name in after.column if name in before.column] != kept:
        yield Change("", "the columns stand in another order", "breaking")
    elif any(place[new] < place[kept[-1]] for new in after.column if new not in before.column):
        # Hashes of records are made in the columns' order: all members would count as changed.
        yield Change("", "a new column does not stand at the end", "breaking")
    types = silver_types(before)
    for target, kind_now in silver_types(after).items():
        if types.get(target, kind_now) != kind_now:
            yield Change(f"column {target}", f"silver's {types[target]} becomes a {kind_now}", "breaking")


def _of_column(before: Column, after: Column) -> Iterator[Change]:
    subject = f"column {after.name}"
    if before.type != after.type:
        yield Change(subject, f"{before.type} becomes {after.type}", "breaking")
    if before.required != after.required:
        kind: Compatibility = "breaking" if after.required else "compatible"
        yield Change(subject, "required" if after.required else "no longer required", kind)
    if before.kind_of_value != after.kind_of_value:
        yield Change(subject, f"{before.kind_of_value} becomes {after.kind_of_value}", "breaking")
    yield from _of_policy(subject, before, after)
    if before.description != after.description:
        yield Change(subject, "another description", "compatible")


def _of_policy(subject: str, before: Column, after: Column) -> Iterator[Change]:
    then, now = before.policy, after.policy
    if (then.token, then.vault, then.drop) != (now.token, now.vault, now.drop):
        yield Change(subject, "other protection", "breaking")
    if then.keep != now.keep:
        yield Change(subject, "silver shows it" if now.keep else "silver no longer shows it", "breaking")
    made_then, made_now = then.generalize | then.mask, now.generalize | now.mask
    for target in sorted(made_then.keys() | made_now.keys()):
        if target not in made_then:
            yield Change(subject, f"{target} is made of it", "additive")
        elif target not in made_now:
            yield Change(subject, f"{target} is no longer made of it", "breaking")
        elif made_then[target] != made_now[target]:
            yield Change(subject, f"{target} is made otherwise", "breaking")


# --- rules --------------------------------------------------------------------------------------------------------


def _of_rules(before: Contract, after: Contract) -> Iterator[Change]:
    then, now = ({rule.id: rule for rule in contract.rules} for contract in (before, after))
    for rule_id in then.keys() - now.keys():
        yield Change(f"rule {rule_id}", "removed", "compatible")
    for rule_id, rule in now.items():
        if rule_id in then:
            yield from _of_rule(then[rule_id], rule)
        else:
            harmless = rule.severity == "warn" or rule.column not in before.column
            yield Change(f"rule {rule_id}", f"added: {rule.text}", "compatible" if harmless else "breaking")


def _of_rule(before: Rule, after: Rule) -> Iterator[Change]:
    subject = f"rule {after.id}"
    if before.severity != after.severity:
        eased = after.severity == "warn"
        yield Change(subject, "now warns" if eased else "now rejects", "compatible" if eased else "breaking")
    if _asks(before) != _asks(after):
        eased = after.severity == "warn" or _eased(before, after)
        yield Change(subject, f"now {after.text}", "compatible" if eased else "breaking")
    elif before.description != after.description:
        yield Change(subject, "another description", "compatible")


def _asks(rule: Rule) -> dict[str, Any]:
    return rule.model_dump(exclude={"id", "severity", "description"}, exclude_defaults=True)


def _eased(before: Rule, after: Rule) -> bool:
    """Whether all that passed passes still; False where that cannot be seen from the rule's text."""
    differ = {key for key in Rule.model_fields if getattr(before, key) != getattr(after, key)}
    differ -= {"severity", "description"}
    if before.in_ and after.in_ and differ == {"in_"}:
        return set(before.in_) <= set(after.in_)
    if before.not_in and after.not_in and differ == {"not_in"}:
        return set(before.not_in) >= set(after.not_in)
    if before.max_length and after.max_length and differ == {"max_length"}:
        return before.max_length <= after.max_length
    for then, now, key in ((before.length, after.length, "length"), (before.number, after.number, "number")):
        if then and now and differ == {key}:
            return _contains(now, then)
    return False


def _contains(wide: Span, narrow: Span) -> bool:
    low = wide.min is None or (narrow.min is not None and wide.min <= narrow.min)
    return low and (wide.max is None or (narrow.max is not None and narrow.max <= wide.max))
