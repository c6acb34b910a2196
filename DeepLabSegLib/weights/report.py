"""What became of each tensor when weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["LoadReport", "listed"]

SHOWN = 6  # problems that a message names; the rest are counted


@dataclass
class LoadReport:
    """What became of every tensor: of the file's (`loaded`, `ignored`) and of the model's (`loaded`, `kept`).

    `loaded` maps the model's names to the file's; `ignored`, `kept` and `changed` (tensors loaded with other numbers
    than the file's) map a rule to the names it covers. `differs` says what computes otherwise where the file is from.
    """

    loaded: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, list[str]] = field(default_factory=dict)
    kept: dict[str, list[str]] = field(default_factory=dict)
    changed: dict[str, list[str]] = field(default_factory=dict)
    differs: tuple[str, ...] = ()

    def ignore(self, rule: str, names: Sequence[str]) -> None:
        """Note that `names` of the file's tensors fall under `rule`."""
        if names:
            self.ignored.setdefault(rule, []).extend(names)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded"]
        lines += [f"{len(names)} of the file ignored: {rule}" for rule, names in self.ignored.items()]
        lines += [f"{len(names)} of the model kept as they were: {rule}" for rule, names in self.kept.items()]
        lines += [f"{len(names)} changed: {rule}" for rule, names in self.changed.items()]
        lines += [f"differs: {text}" for text in self.differs]
        return "\n".join(lines)


def listed(problems: Sequence[str]) -> str:
    """The first problems, a line each, and how many more there are."""
    more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return "\n".join([*problems[:SHOWN], *more])
