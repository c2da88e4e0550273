"""What the settings of all methods have in common: a file can name them and make them again."""


class Settings:
    """Base of the frozen dataclasses that hold a method's settings."""

    @classmethod
    def named(cls, name: str) -> "type[Settings] | None":
        """The settings of this class name, among those that are imported; None where there are none."""
        for kind in cls.__subclasses__():
            found = kind if kind.__name__ == name else kind.named(name)
            if found is not None:
                return found
        return None
