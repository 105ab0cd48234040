"""The file resolver on a real loop, with an editor that does not wait for it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from meshlib.discovery.file.resolver import BUILDER
from meshlib.model.events import SourceFailed
from meshlib.model.update import DoesNotExist, Failure, Snapshot
from tests.integration.resolver_support import resolver
from tests.unit.discovery.file.test_folder import SERVICE, slice_


def manifest(*addresses: str) -> str:
    return SERVICE + "---\n" + slice_(*addresses)


def test_live_edits_and_broken_ones(tmp_path: Path) -> None:
    """In place, by rename, broken, mended, emptied: the set follows what is good and survives what is not."""
    file = tmp_path / "shop.yaml"
    file.write_text(manifest("127.0.0.2"))

    async def body() -> None:
        async with resolver(BUILDER) as files:
            shop = files.watch(f"file://{file}#shop/orders:http")
            await shop.until_addresses("127.0.0.2:8080")
            file.write_text(manifest("127.0.0.2", "127.0.0.3"))
            await shop.until_addresses("127.0.0.2:8080", "127.0.0.3:8080")
            (tmp_path / "new").write_text(manifest("127.0.0.4"))
            os.replace(tmp_path / "new", file)
            await shop.until_addresses("127.0.0.4:8080")
            file.write_text("kind: Service\n\tbroken")
            await shop.until(lambda: isinstance(shop.updates[-1], Failure), "the failure")
            assert shop.addresses() == {"127.0.0.4:8080"}
            assert "shop.yaml:2" in str(files.of(SourceFailed)[0].error)
            file.write_text(manifest())
            await shop.until_addresses()

    asyncio.run(body())


def test_a_busy_writer_never_empties_the_set(tmp_path: Path) -> None:
    """200 rewrites in place, in pieces, of a set that always has 127.0.0.2: it is never seen without it."""
    file = tmp_path / "shop.yaml"
    file.write_text(manifest("127.0.0.2"))

    async def write() -> None:
        for n in range(200):
            text = manifest("127.0.0.2", *(f"127.0.1.{k}" for k in range(1, n % 7 + 1)))
            with file.open("w") as out:
                for start in range(0, len(text), 120):
                    out.write(text[start : start + 120])
                    out.flush()
                    await asyncio.sleep(0)
            await asyncio.sleep(0.01)

    async def body() -> None:
        async with resolver(BUILDER, poll=0.005) as files:
            shop = files.watch(f"file://{file}#shop/orders:http")
            await shop.until_addresses("127.0.0.2:8080")
            await write()
            last = [f"127.0.1.{k}:8080" for k in range(1, 199 % 7 + 1)]
            await shop.until_addresses("127.0.0.2:8080", *last)
            seen = [
                e.address
                for update in shop.updates
                if isinstance(update, Snapshot)
                for e in update.slices[0].endpoints
            ]
            snapshots = sum(isinstance(update, Snapshot) for update in shop.updates)
            assert seen.count("127.0.0.2") == snapshots > 1
            assert not any(isinstance(update, DoesNotExist) for update in shop.updates)

    asyncio.run(body())
