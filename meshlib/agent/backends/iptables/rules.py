"""Rules as the values of objects: what they do, and the comment that says whose they are. Pure.

iptables-save shows rules in words of its own, which differ between versions and between its two kinds. So each rule
carries a comment: where it stands in its chain, what it is for, and a digest of what was written. A rule of ours whose
comment is gone or wrong is not ours any more.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from meshlib.agent.objects import ObjectKey

#: All our chains begin so; nobody else's do.
PREFIX = "MESHLIB-"
#: Rules in our chains, and those in the built-in chains that lead there.
RULES, HOOK = "rules", "hook"
_TARGET = re.compile(rf"-[jg] ({PREFIX}\S+)")
_COMMENT = re.compile(r'--comment (?:"([^"]*)"|(\S+))')
_IDENTITY = re.compile(r"^(\d) (.*) #([0-9a-f]{16})$")


class Name(NamedTuple):
    """Rules that stand together. In a chain the smaller ``rank`` comes first, then the smaller ``words``."""

    table: str
    chain: str
    rank: int
    words: str


@dataclass(frozen=True, slots=True)
class Rules:
    """Equal where the same was written. ``texts``: as iptables-restore takes them, behind the chain's name."""

    digests: tuple[str, ...]
    texts: tuple[str, ...] = field(compare=False, repr=False, default=())

    @property
    def targets(self) -> tuple[str, ...]:
        """Our chains that are led to."""
        return tuple(name for text in self.texts for name in _TARGET.findall(text))


def rules(name: Name, texts: Iterable[str]) -> Rules:
    """Rules with their comments. ``texts``: matches and target."""
    written = tuple(texts)
    digests = tuple(hashlib.blake2b(text.encode(), digest_size=8).hexdigest() for text in written)
    said = f"{name.rank} {name.words}"
    return Rules(
        digests,
        tuple(
            f'-m comment --comment "{said} #{digest}" {text}'
            for text, digest in zip(written, digests, strict=True)
        ),
    )


def identity(text: str) -> tuple[int, str, str] | None:
    """Rank, words and digest, as a rule's comment says; None: it is not of ours."""
    found = _COMMENT.search(text)
    said = _IDENTITY.match(found[1] or found[2] or "") if found else None
    return (int(said[1]), said[2], said[3]) if said else None


def put(objects: dict[ObjectKey, object], name: Name, *texts: str) -> None:
    """Adds rules to what is needed."""
    kind = RULES if name.chain.startswith(PREFIX) else HOOK
    objects[ObjectKey(kind, name)] = rules(name, texts)
