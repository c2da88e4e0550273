"""Numbers of things in messages and pictures."""


def counted(n: int, noun: str, several: str = "") -> str:
    """A number with its noun: "1 fact", "2,000 facts"; ``several`` where that is not the noun with an s."""
    return f"{n:,} {noun if n == 1 else several or noun + 's'}"
