"""What strangers write: JSON trees and bytes that were valid until something in them was changed."""

import copy

from hypothesis import strategies as st

EDGES = [-1, 0, 1, 2, 3, 2**16, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**400, -(2**63), -(10**400)]
ODD = ["", "..", "../x", "a/b", "/etc/passwd", "\ud800", "\0", "\n", "\x1b[31m", "\u202e", "a" * 9999, "1", "true", "ä"]
FLOATS = [0.0, -0.0, 5e-324, 1e-300, 1e300, 1.0, -1.5, float("inf"), float("nan")]

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(EDGES + ODD + FLOATS)
)
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))


@st.composite
def mutated(draw, originals, values=trees):
    """One of the trees, a few values replaced, dropped, repeated, renamed, nudged or copied from elsewhere in it."""
    tree = copy.deepcopy(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 3))):
        ways = list(_ways(tree))
        if not ways:
            break
        *way, last = draw(st.sampled_from(ways))
        node = _at(tree, way)
        how = draw(st.sampled_from(["replace", "replace", "drop", "repeat", "rename", "nudge", "copy"]))
        if how == "replace":
            node[last] = draw(values)
        elif how == "drop":
            del node[last]
        elif how == "repeat" and isinstance(node, list):
            node.insert(last, copy.deepcopy(node[last]))
        elif how == "rename" and isinstance(node, dict):
            node[draw(st.sampled_from(ODD) | st.text(max_size=8))] = node.pop(last)
        elif how == "nudge" and type(node[last]) in (int, float):
            node[last] += draw(st.sampled_from([-4096, -128, -64, -2, -1, 1, 2, 64, 128, 4096]))
        elif how == "copy":
            node[last] = copy.deepcopy(_at(tree, draw(st.sampled_from(ways))))
    return tree


@st.composite
def spoilt(draw, originals):
    """One of the byte strings with bytes flipped, added, cut out, or all after some place gone."""
    raw = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(raw) - 1, 0)))
        how = draw(st.sampled_from(["flip", "flip", "insert", "cut", "end"]))
        if how == "flip" and raw:
            raw[at] ^= draw(st.integers(1, 255))
        elif how == "insert":
            raw[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif how == "cut":
            del raw[at : at + draw(st.integers(1, 9))]
        elif how == "end":
            del raw[at:]
    return bytes(raw)


def _ways(tree, way=()):
    """Every path in a JSON tree but the root."""
    steps = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for step, child in steps:
        yield (*way, step)
        yield from _ways(child, (*way, step))


def _at(tree, way):
    for step in way:
        tree = tree[step]
    return tree
