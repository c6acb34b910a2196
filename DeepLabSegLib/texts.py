"""What people type, on the command line and in the panel, and the lists that they are told."""

from __future__ import annotations

from collections.abc import Sequence

from DeepLabSegLib.errors import InvalidInput

__all__ = ["parse_names", "parse_sizes", "parse_spacing", "some"]


def parse_sizes(text: str) -> tuple[int, ...]:
    """`"96x96x96"` or `"6, 12, 18"` to whole numbers. Raises `InvalidInput`."""
    try:
        return tuple(int(part) for part in text.lower().replace(",", "x").split("x"))
    except ValueError:
        raise InvalidInput(f"{text!r} is no list of sizes; write for example 96x96x96 or 256x256") from None


def parse_spacing(text: str) -> tuple[float | None, ...]:
    """`"0x0.8x0.8"` to mm along (k, j, i), None for 0, which keeps the scan's own. Raises `InvalidInput`."""
    try:
        parts = tuple(float(part) or None for part in text.lower().split("x"))
    except ValueError:
        parts = ()
    if len(parts) != 3:
        raise InvalidInput(
            f"{text!r} is no spacing; write mm along k, j, i such as 1.5x1x1, and 0 along those that keep the scan's, "
            "such as 0x0x0"
        )
    return parts


def parse_names(text: str) -> list[str]:
    """`"Liver, Spleen"` to names. Raises `InvalidInput` for an empty one, and for one that stands twice."""
    names = [name.strip() for name in text.split(",")]
    if names == [""]:
        raise InvalidInput("no name is given; write for example Liver, Spleen")
    if "" in names:
        raise InvalidInput(f"a name in {text!r} is empty; leave out the comma that has no name beside it")
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InvalidInput(f"{', '.join(sorted(twice))} stands twice in {text!r}; give each class a name of its own")
    return names


def some(names: Sequence[str], count: int = 5) -> str:
    """The first `count` of `names`, and how many more there are: an atlas has hundreds."""
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")
