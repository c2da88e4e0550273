"""Words of messages and pictures."""


def counted(n: int, what: str) -> str:
    """How many, with an s where they are not one: "1 fact", "2 facts"."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"
