"""Changing inputs: bytes, and trees of plain values and tensors. Each change is a function of a random generator."""
import json
import math
import re

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

LONGEST = 1 << 20  # bytes that an input may grow to
DEPTH = 40  # levels of a tree that changes reach
NUMBERS = [0, 1, -1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 10**6, 2**24, 2**31 - 1, 2**31,
           2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -2**31, -2**63, 10**12, 10**30]
FLOATS = [0.5, -0.0, 1e-320, 1e308, -1e308, math.nan, math.inf, -math.inf, 100.00001]
TEXTS = ["", " ", "\0", "\n", "a\nb", "\t", "..", ".", "/", "../..", "/etc/hostname", "~", "$HOME", "%s", "{}", "{0.a}",
         "nan", "inf", "None", "null", "true", "0", "-1", "1e999", "0x10", "9" * 5000, "x" * 300, "x" * 70000, "\ud800",
         "é", "e\u0301", "\u202e", "\x1b[2J", "\ufeff", "a/b", "a\\b", "C:\\a", "-rf", "--help", "'", '"', "\\", ",",
         "🐕" * 50, "a photo of a {}.", "1:30", "2001-02-30", "!!python/object:os.system", "*a", "&a"]
TOKENS = [text.encode("utf-8", "surrogatepass") for text in TEXTS[:27] + TEXTS[30:]] + [
    b"\xff" * 8, bytes(64), b"\x80", b"\xc3", b"PK\x03\x04", b"\x1f\x8b\x08", b"[" * 3000, b"{" * 3000, b'{"a":' * 3000,
    b"- " * 3000, b"? ", b"<<: ", b"!!", b"\r", b"\x85", b"#", b": ", b"---\n", b"...", b"|\n", b">\n"]


def pool(number, count):
    """`count` plain values (JSON's), the same for the same seed."""
    leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
                       st.sampled_from(NUMBERS), st.sampled_from(TEXTS))
    values = st.recursive(leaves, lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)), max_leaves=8)
    found = []

    @seed(number)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(values)
    def collect(value):
        found.append(value)

    collect()
    return found + NUMBERS + FLOATS + TEXTS + [[], {}, None, True, False]


# ---- bytes -------------------------------------------------------------------------------------------------------


def mutate_bytes(rng, data, others=(), tokens=TOKENS, near=None):
    """`data` after one to a dozen changes.

    Args:
        others: more inputs of the kind, to splice with.
        near: let most places be among the first and the last `near` bytes (of files whose middle is bulk).
    """
    data = bytearray(data)
    most = max(LONGEST, len(data))
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5, 12))):
        rng.choice(CHANGES)(rng, data, others, tokens, near)
        del data[most:]
    return bytes(data)


def _at(rng, data, near):
    length = len(data)
    if near and length > 2 * near and rng.random() < 0.9:
        place = rng.randrange(2 * near)
        return place if place < near else length - 2 * near + place
    return rng.randrange(length + 1)


def _span(rng, data, near, most=400):
    start = _at(rng, data, near)
    return start, min(len(data), start + rng.choice((1, 2, 4, rng.randint(1, most))))


def _flip(rng, data, others, tokens, near):
    place = _at(rng, data, near)
    if place < len(data):
        data[place] ^= 1 << rng.randrange(8)


def _byte(rng, data, others, tokens, near):
    place = _at(rng, data, near)
    if place < len(data):
        data[place] = rng.choice((0, 255, 127, 128, rng.randrange(256)))


def _number(rng, data, others, tokens, near):
    size = rng.choice((1, 2, 4, 8))
    number = rng.choice(NUMBERS) if rng.random() < 0.8 else rng.getrandbits(8 * size)
    place = _at(rng, data, near)
    if place + size <= len(data):
        data[place:place + size] = (number % (1 << 8 * size)).to_bytes(size, rng.choice(("little", "big")))


def _decimal(rng, data, others, tokens, near):
    found = list(re.finditer(rb"-?\d+", data[:20000]))
    if found:
        start, end = rng.choice(found).span()
        data[start:end] = str(rng.choice(NUMBERS + FLOATS)).encode()


def _cut(rng, data, others, tokens, near):
    start, end = _span(rng, data, near)
    del data[start:end]


def _end(rng, data, others, tokens, near):
    del data[_at(rng, data, near):]


def _repeat(rng, data, others, tokens, near):
    start, end = _span(rng, data, near)
    times = rng.choice((1, 2, 10, rng.choice((100, 1000, 20000))))
    data[start:start] = (bytes(data[start:end]) * times)[:LONGEST]


def _insert(rng, data, others, tokens, near):
    place = _at(rng, data, near)
    data[place:place] = rng.choice(tokens) if rng.random() < 0.7 else rng.randbytes(rng.choice((1, 4, 100)))


def _overwrite(rng, data, others, tokens, near):
    token, place = rng.choice(tokens), _at(rng, data, near)
    data[place:place + len(token)] = token


def _swap(rng, data, others, tokens, near):
    (a, b), (c, d) = sorted((_span(rng, data, near), _span(rng, data, near)))
    if b <= c:
        data[a:d] = data[c:d] + data[b:c] + data[a:b]


def _splice(rng, data, others, tokens, near):
    if others:
        other = rng.choice(others)
        data[_at(rng, data, near):] = other[_at(rng, other, near):]


def _zeros(rng, data, others, tokens, near):
    start, end = _span(rng, data, near)
    data[start:end] = bytes([rng.choice((0, 255))]) * (end - start)


CHANGES = [_flip, _flip, _byte, _number, _number, _decimal, _cut, _end, _repeat, _insert, _overwrite, _swap, _splice,
           _zeros]


# ---- trees -------------------------------------------------------------------------------------------------------


def mutate_tree(rng, tree, values, tensors=False):
    """A copy of a tree of dicts, lists and leaves after one to five changes.

    Args:
        values: what leaves and branches are replaced by.
        tensors: leaves that are tensors are changed as such, and values that only pickles hold may come.
    """
    tree = copied(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        tree = _change(rng, tree, values, tensors)
    return tree


def copied(tree, depth=0):
    """Its dicts, lists and tuples anew; leaves, and what lies deeper than changes reach, are shared."""
    if depth > DEPTH:
        return tree
    if isinstance(tree, dict):
        return {key: copied(value, depth + 1) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(copied(value, depth + 1) for value in tree)
    return tree


def places(tree, found=None, depth=0):
    """[(branch, key)] of all that lies in a tree; in long lists of the first entries only."""
    found = [] if found is None else found
    if depth < DEPTH:
        inner = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree))[:12] \
            if isinstance(tree, list) else ()
        for key, value in inner:
            found.append((tree, key))
            places(value, found, depth + 1)
    return found


def _change(rng, tree, values, tensors):
    known = places(tree)
    if not known or rng.random() < 0.03:
        return copied(rng.choice(values))
    branch, key = rng.choice(known)
    # branches hold few of all places, and what lies high up is read first
    if rng.random() < 0.3 and (high := [place for place in known if place[0] is tree]):
        branch, key = rng.choice(high)
    value, kind = branch[key], rng.randrange(10)
    if kind <= 2:
        branch[key] = twisted(rng, value, tensors)
    elif kind <= 4:
        branch[key] = copied(rng.choice(values))
    elif kind == 5:
        del branch[key]
    elif kind == 6:
        name = rng.choice((str(key) + "x", rng.choice(TEXTS), rng.choice(NUMBERS) if tensors else ""))
        if isinstance(branch, dict):
            branch[name] = branch.pop(key) if rng.random() < 0.5 else copied(rng.choice(values))
        else:
            branch.insert(key, copied(value))
    elif kind == 7:
        other, place = rng.choice(known)
        if place in other if isinstance(other, dict) else place < len(other):
            branch[key], other[place] = copied(other[place]), copied(value)
    elif kind == 8:
        branch[key] = rng.choice(([copied(value)], {"a": copied(value)}, [copied(value)] * rng.choice((0, 2, 50)),
                                  deep(rng.choice((50, 50, 50, 900)), copied(value))))
    elif isinstance(branch, list):
        branch *= rng.choice((0, 2, 30))
    else:
        branch.clear()
    return tree


def deep(levels, value):
    for number in range(levels):
        value = [value] if number % 2 else {"a": value}
    return value


def twisted(rng, value, tensors=False):
    """A value of the same or a near kind."""
    if torch.is_tensor(value):
        return twisted_tensor(rng, value)
    if isinstance(value, bool) or value is None:
        return rng.choice((not value, int(bool(value)), str(value), None))
    if isinstance(value, (int, float)):
        options = [-value, value + 1, str(value), float(value), value * 1000, rng.choice(NUMBERS), rng.choice(FLOATS),
                   bool(value), [value]]
        if tensors:
            options += [torch.tensor(value), complex(value, 1), torch.tensor([value] * 2)]
        return rng.choice(options)
    if isinstance(value, str):
        place = rng.randint(0, len(value))
        return rng.choice((value[:place], value * 2, value[:place] + rng.choice(TEXTS) + value[place:], value.upper(),
                           f"../{value}", f"/{value}", rng.choice(TEXTS), list(value[:20]), rng.choice(NUMBERS)))
    if isinstance(value, dict):
        return rng.choice((list(value), list(value.items()) if not tensors else tuple(value.items()),
                           {**value, rng.choice(TEXTS): 1}, dict(list(value.items())[:-1]), str(value)[:200]))
    if isinstance(value, (list, tuple)):
        return rng.choice(([*value[:-1]], [*value, *value], dict(enumerate(value[:20])) if tensors else
                           {str(i): entry for i, entry in enumerate(value[:20])}, list(reversed(value)),
                           [*value, None], str(value)[:200]))
    return rng.choice(TEXTS)


def twisted_tensor(rng, tensor):
    """A tensor of another shape, type, layout or content, or something else."""
    numbers = tensor.clone() if tensor.numel() <= 2**20 else tensor
    flat = numbers.flatten()
    kind = rng.randrange(16)
    if kind == 0:
        return numbers.to(rng.choice((torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8,
                                      torch.bool, torch.complex64)))
    if kind == 1:
        return torch.full_like(numbers, rng.choice(FLOATS) if numbers.is_floating_point() else 1)
    if kind == 2 and numbers.is_floating_point() and flat.numel():
        flat[rng.randrange(flat.numel())] = rng.choice(FLOATS)
        return flat.reshape(numbers.shape)
    if kind == 3:
        return flat[:rng.choice((0, 1, flat.numel() // 2))]
    if kind == 4:
        return numbers.unsqueeze(rng.randrange(numbers.dim() + 1))
    if kind == 5:
        return numbers.transpose(0, -1) if numbers.dim() else numbers.reshape(1)
    if kind == 6:  # a small file of a large tensor
        return torch.zeros(1, dtype=numbers.dtype).expand(rng.choice((10**6, 10**9, 10**12)))
    if kind == 7:
        return torch.zeros(1, dtype=numbers.dtype).expand(numbers.shape)
    if kind == 8 and numbers.dim() and numbers.dtype != torch.bfloat16:
        return numbers.to_sparse()
    if kind == 9:
        return torch.nn.Parameter(numbers) if numbers.is_floating_point() else numbers
    if kind == 10:
        return torch.empty(0, rng.choice(NUMBERS[:20]) % 2**31, dtype=numbers.dtype)
    if kind == 11:
        return numbers.tolist() if flat.numel() <= 5000 else 0
    if kind == 12:
        return torch.cat([numbers, numbers]) if numbers.dim() and flat.numel() < 10**6 else numbers
    if kind == 13:
        return flat[:1].sum() if flat.numel() else 0
    if kind == 14 and numbers.is_floating_point():
        return numbers * rng.choice((0.0, -1.0, 1e30, 1e-30))
    return rng.choice((None, 0, "tensor", [], {}, torch.empty(3, device="meta"), torch.tensor(1.0)))


def as_json(rng, tree):
    """A tree as JSON text; now and then with a key twice, nested deeper than Python goes, or in another encoding."""
    indent, plain = rng.choice((None, None, 2)), rng.random() < 0.7
    text = json.dumps(tree, ensure_ascii=plain)
    if indent and len(text) < 10**5:  # which takes Python's own, slow encoder
        text = json.dumps(tree, indent=indent, ensure_ascii=plain)
    if rng.random() < 0.02:
        text = text.replace("1", rng.choice(("[" * 100000, '{"a":' * 100000, "9" * 10000)), 1)
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.03:
        data = rng.choice((b"\xef\xbb\xbf" + data, text.encode("utf-16", "surrogatepass"), data + b"\0", data * 2))
    return data
