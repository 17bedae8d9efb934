"""Random changes of valid inputs: of bytes, of text and of nested plain data."""

from tests.hostile import SCALARS

BYTES = (
    b"\0",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\0\0\0\x80",
    b"%PDF",
    b"DICM",
    b"PK\3\4",
    b"\x80\2",
    b"(",
)


def of_bytes(data, chance, others=(b"",)):
    """One to four changes: flipped, cut, removed, repeated, overwritten or mixed with another input."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place, length = chance.randrange(len(data) + 1), chance.choice((1, 2, 4, 16, 256))
        match chance.randrange(7):
            case 0 if data:
                data[min(place, len(data) - 1)] ^= 1 << chance.randrange(8)
            case 1:
                del data[place:]
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = data[place : place + length] * chance.choice((1, 3, 50))
            case 4:
                change = chance.choice(BYTES)
                data[place : place + len(change)] = change
            case 5:
                data[place : place + length] = chance.randbytes(length)
            case _:
                other = chance.choice(others)
                data[place:] = other[chance.randrange(len(other) + 1) :]
    return bytes(data)


def of_tree(tree, chance, scalars=SCALARS):
    """One to three changes of nested dicts and lists: a value replaced, removed, wrapped or moved, a name changed."""
    for _ in range(chance.randint(1, 3)):
        holders = [node for node in _nodes(tree) if node]
        if not holders:
            return chance.choice(scalars)
        holder = chance.choice(holders)
        key = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        match chance.randrange(6):
            case 0:
                del holder[key]
            case 1:
                holder[key] = [holder[key]]
            case 2 if isinstance(holder, dict):
                holder[str(chance.choice(scalars))[:50]] = holder.pop(key)
            case 3:
                holder[key] = _copy(chance.choice(holders))
            case _:
                holder[key] = _copy(chance.choice(scalars))
    return tree


def _nodes(tree):
    """Every dict and list within, itself included."""
    if isinstance(tree, dict | list):
        yield tree
        for inner in list(tree.values()) if isinstance(tree, dict) else list(tree):
            yield from _nodes(inner)


def _copy(value):
    """Nested plain data anew; other values are shared."""
    if isinstance(value, dict):
        return {name: _copy(inner) for name, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value
