"""The exact memo of a prompt: rendered text, cut at a special token, leads to keys already made.

A special token ends what comes before it: the ids of a text are the ids of its pieces, one after
another, if it is cut only where such a token begins. So a chained hash over the pieces stands for
the ids of all of them, and for their block keys, and only pieces never seen are tokenized.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from xxhash import xxh3_64_intdigest, xxh3_128_digest

from extproc.prompt.beginnings import Beginnings, Marked
from extproc.prompt.blocks import block_keys
from extproc.prompt.memo import Memo
from extproc.prompt.types import TooNew
from extproc.stages import Stages
from extproc.terms import KEY_BYTES, TOKEN_BYTES, BlockKey, PackedKeys, TokenIds

NO_IDS = TokenIds(b"")

_UNCUT = b"\xff"
"""Begins a piece that no cut does; no UTF-8 text has this byte."""

_MIN_MARKED = 32 << 10
"""Bytes of the shortest text whose beginning is looked up at once, and not piece by piece."""

_START_BYTES = 300
"""About what a known beginning takes."""

_NODE_BYTES = 650
"""About what one node takes besides its keys and ids."""


@dataclass(slots=True, eq=False)
class Node:
    """A prompt up to the end of a piece.

    digest: of all pieces so far, and of the root. parent: the piece before; None for the root.
    keys: of the blocks that this piece filled. last: the key of the last full block, or the root.
    rest: the ids after the last full block. tokens: of the prompt so far.
    whole: the keys of the prompt so far, where they are kept; nothing else ever changes.
    """

    digest: bytes
    parent: "Node | None"
    keys: PackedKeys
    last: BlockKey
    rest: TokenIds
    tokens: int
    whole: PackedKeys | None = None

    def all_keys(self) -> PackedKeys:
        """The keys of the whole prompt so far, root first.

        They stay with the piece before the last, the one that a next turn begins with (the last
        only opens the answer), and go from the piece of the turn before: one copy a conversation.
        """
        parts = []
        node = self
        while node.parent is not None and node.whole is None:
            parts.append(node.keys)
            node = node.parent
        parts.append(node.whole or PackedKeys(b""))
        parts.reverse()
        before = self.parent
        if before is None or len(parts) < 2:
            return PackedKeys(b"".join(parts))
        before.whole = PackedKeys(b"".join(parts[:-1]))
        if node is not before:
            node.whole = None
        return PackedKeys(before.whole + parts[-1])


def root_node(root: BlockKey, block_size: int, opening: TokenIds = NO_IDS) -> Node:
    """The prompt under this root that has no text yet.

    opening: ids that stand before it, less than a block.
    """
    digest = root.to_bytes(8, "little") + block_size.to_bytes(8, "little") + opening
    return Node(digest, None, PackedKeys(b""), root, opening, len(opening) // TOKEN_BYTES)


class PieceMemo:
    """Prompts by their pieces, least recently used forgotten first. Thread-safe.

    cut: the special token that begins a piece (see `safe_cuts`); None: every text is one piece.
    encode: ids of each of these texts, without added special tokens.
    """

    def __init__(
        self,
        cut: str | None,
        encode: Callable[[Sequence[str]], list[TokenIds]],
        max_bytes: int,
    ) -> None:
        self._cut = cut.encode() if cut else None
        self._encode = encode
        self._starts: Beginnings[bytes] = Beginnings(max_bytes // 32)
        self._nodes: Memo[bytes, Node] = Memo(max_bytes - max_bytes // 32)

    @property
    def size(self) -> int:
        """About how many bytes are remembered now."""
        return self._nodes.size + self._starts.size

    def extend(
        self, node: Node, text: bytes, block_size: int, stages: Stages, most_new: float = inf
    ) -> Node:
        """The prompt of `node` and this text after it; `node` must end where a piece does.

        text: UTF-8. most_new: characters that may be tokenized.

        Raises Unroutable where the tokenizer fails, and TooNew.
        """
        with stages.stage("tokenize"):
            marked = None
            if self._cut and len(text) >= _MIN_MARKED:
                marked = Marked(text, xxh3_64_intdigest(node.digest))
                node, text = self._after_known(node, marked)
            pieces = self._split(text)
            digests = _digests(node.digest, pieces)
            first, node = self._longest(node, digests)
            fresh = [self._text(piece) for piece in pieces[first:]]
            if sum(map(len, fresh)) > most_new:
                raise TooNew
            ids = self._encode(fresh) if fresh else []
        with stages.stage("hash"):
            for digest, piece_ids in zip(digests[first:], ids, strict=True):
                node = _grown(node, digest, piece_ids, block_size)
            self._keep(node)
            if marked:
                self._remember(marked, node, pieces)
        return node

    def _after_known(self, node: Node, text: Marked) -> tuple[Node, bytes]:
        """The node at the end of the text's longest known beginning, and the text after it."""
        found = self._starts.find(text)
        if found is None:
            return node, text.data
        size, digest = found
        known = self._nodes.get(digest)
        if known is None or not text.data.startswith(self._cut or b"", size):
            return node, text.data
        return known, text.data[size:]

    def _remember(self, text: Marked, node: Node, pieces: list[bytes]) -> None:
        """Where the last piece begins: the next turn has it too, and something else after it."""
        before = node.parent
        if before is not None and len(pieces) > 1:
            size = len(text.data) - len(self._cut or b"") - len(pieces[-1])
            self._starts.put(text, size, before.digest, _START_BYTES)

    def digest(self, node: Node, text: bytes) -> bytes:
        """The digest that the prompt of `node` and this text after it has."""
        return [node.digest, *_digests(node.digest, self._split(text))][-1]

    def find(self, digest: bytes) -> Node | None:
        """The node of this digest, if it is still known."""
        return self._nodes.get(digest)

    def _split(self, text: bytes) -> list[bytes]:
        """The pieces of a text, without the cut; what has none before it is marked."""
        pieces = text.split(self._cut) if self._cut else [text]
        if pieces[0]:
            pieces[0] = _UNCUT + pieces[0]
        else:
            del pieces[0]
        return pieces

    def _text(self, piece: bytes) -> str:
        if piece.startswith(_UNCUT):
            return piece[1:].decode()
        return (self._cut + piece).decode() if self._cut else ""

    def _longest(self, node: Node, digests: list[bytes]) -> tuple[int, Node]:
        """How many of these digests are known, and the node of the last of them."""
        for count in range(len(digests), 0, -1):
            known = self._nodes.get(digests[count - 1])
            if known is not None:
                return count, known
        return 0, node

    def _keep(self, node: Node) -> None:
        """Keep a node and what it grew from; a young node's parents are young."""
        nodes = self._nodes
        path = []
        one: Node | None = node
        while one is not None and one.parent is not None and not nodes.is_young(one.digest):
            path.append(one)
            one = one.parent
        for one in reversed(path):
            nodes.put(one.digest, one, _NODE_BYTES + 2 * len(one.keys) + len(one.rest))


def _digests(digest: bytes, pieces: list[bytes]) -> list[bytes]:
    digests = []
    for piece in pieces:
        digest = xxh3_128_digest(digest + piece)
        digests.append(digest)
    return digests


def _grown(node: Node, digest: bytes, ids: TokenIds, block_size: int) -> Node:
    pending = TokenIds(node.rest + ids)
    keys = block_keys(pending, node.last, block_size)
    last = BlockKey(int.from_bytes(keys[-KEY_BYTES:], "little")) if keys else node.last
    used = len(keys) // KEY_BYTES * block_size * TOKEN_BYTES
    rest = TokenIds(pending[used:])
    return Node(digest, node, keys, last, rest, node.tokens + len(ids) // TOKEN_BYTES)


def safe_cuts(tokenizer_json: str, text: str) -> list[str]:
    """The special tokens in `text` before which any text may be cut without changing its ids.

    Those that are matched in the text as it comes (not normalised), wherever they stand, and whose
    neighbours they leave alone: no `lstrip`, `rstrip` or `single_word`, and no other added token
    that could contain them or take their first characters. None at all where the first piece of a
    text is treated unlike the others (Metaspace with `prepend_scheme: first`).
    """
    spec = json.loads(tokenizer_json)
    if _knows_first_piece(spec.get("pre_tokenizer")) or _knows_first_piece(spec.get("normalizer")):
        return []
    added = [token for token in spec.get("added_tokens") or [] if not token.get("normalized")]
    return [
        token["content"]
        for token in added
        if token.get("special")
        and token["content"] in text
        and not (token.get("lstrip") or token.get("rstrip") or token.get("single_word"))
        and token["content"].strip() == token["content"] != ""
        and not any(
            _disturbs(other["content"], token["content"]) for other in added if other is not token
        )
    ]


def _disturbs(other: str, token: str) -> bool:
    """Whether `other` can be matched so that `token`, standing in the text, is not."""
    if token in other:
        return True
    return any(other.endswith(token[:size]) for size in range(1, min(len(other), len(token))))


def _knows_first_piece(part: Any) -> bool:
    if isinstance(part, dict):
        if part.get("prepend_scheme") == "first":
            return True
        return any(map(_knows_first_piece, part.values()))
    return isinstance(part, list) and any(map(_knows_first_piece, part))
