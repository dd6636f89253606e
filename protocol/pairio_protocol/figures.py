"""Numbers as people read them."""

__all__ = ["counted", "size_text"]


def size_text(size_bytes: int) -> str:
    """Return a size as people read it."""
    size, units = float(size_bytes), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return counted(size_bytes, "byte") if units[0] == "bytes" else f"{size:.1f} {units[0]}"


def counted(count: int, thing: str, things: str = "") -> str:
    """Return `1 job`, `2 jobs`."""
    return f"{count} {thing}" if count == 1 else f"{count} {things or thing + 's'}"
