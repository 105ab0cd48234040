"""The status socket itself: who may ask, what hostile and slow readers can do, and that large Services are streamed."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from meshlib.cli.status import ask
from meshlib.cli.status.ask import Silent, Worker
from meshlib.cli.status.find import Socket, find
from meshlib.model.events import EntrySkipped, Event
from meshlib.runtime import status_place, status_socket
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from meshlib.runtime.status_socket import PIECE, StatusSocket
from meshlib.testing.manual import ManualResolver

UID = os.geteuid()
#: Bytes that a socket's buffer and its reader's cannot hold together, so that the writer has to wait.
_MORE_THAN_BUFFERS = 40_000


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take its time: who asks here gives up for no other reason than the test's."""
    monkeypatch.setattr(ask, "PATIENCE", 60.0)
    monkeypatch.setattr(status_socket, "ANSWER_SECONDS", 60.0)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short name: the address of a socket has room for a hundred bytes."""
    with tempfile.TemporaryDirectory(prefix="ms-") as made:
        yield Path(made)


#: Uses a target with so many endpoints, and returns its text.
Use = Callable[[int], str]


@pytest.fixture
def use() -> Iterator[Use]:
    manual = ManualResolver()
    config = load_config({"status_socket": "off", "sync_timeout": 60.0}, environ={})
    with Mesh(config=config, resolvers={"k8s": manual}) as mesh:

        def used(addresses: int) -> str:
            manual.endpoints(
                "shop/orders", [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}:80" for n in range(1, addresses + 1)]
            )
            handle = mesh.target("k8s:///orders.shop:80")
            handle.acquire().done()
            return str(handle.target)

        yield used


@asynccontextmanager
async def serving(setting: str) -> AsyncIterator[tuple[StatusSocket, list[Event]]]:
    """A status socket on this loop, with the events that it told."""
    events: list[Event] = []
    served = StatusSocket(setting, asyncio.create_task, asyncio.to_thread, events.append)
    served.start()
    try:
        yield served, events
    finally:
        await served.close()


async def asked(served: StatusSocket, endpoints: int = 10_000) -> Worker | Silent:
    assert served.address is not None
    question = json.dumps({"endpoints": endpoints, "others": True}).encode() + b"\n"
    return await ask._ask(Socket(served.address, UID, os.getpid()), question)


async def connect(served: StatusSocket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(str(served.address), limit=1 << 20)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def test_one_socket_that_only_its_owner_can_open(place: Path) -> None:
    """Mode 0600 in a directory of mode 0700, both gone or empty afterwards."""

    async def main() -> None:
        async with serving(str(place)) as (served, events):
            assert isinstance(served.address, Path)
            assert stat.S_IMODE(served.address.lstat().st_mode) == 0o600
            assert stat.S_IMODE(served.address.parent.lstat().st_mode) == 0o700
            assert status_place.pid_of(served.address.name) == os.getpid()
            assert events == []
        assert list((place / f"meshlib-{UID}").iterdir()) == []

    run(main)


def test_an_answer_has_everything(place: Path, use: Use) -> None:
    """The document is whole: process, targets and endpoints."""
    target = use(3)

    async def main() -> None:
        async with serving(str(place)) as (served, _):
            answer = await asked(served)
        assert isinstance(answer, Worker)
        assert answer.found["pid"] == os.getpid()
        mine = next(each for each in answer.found["targets"] if each["target"] == target)
        assert [row["address"] for row in mine["endpoints"]] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
        assert mine["left_out"] == 0

    run(main)


def test_ten_thousand_endpoints_come_in_pieces(place: Path, use: Use) -> None:
    """No line carries more than a piece, all of them together are the whole; the loop runs in between."""
    target = use(10_000)

    async def main() -> None:
        async with serving(str(place)) as (served, _):
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            counting = asyncio.create_task(count())
            reader, writer = await connect(served)
            writer.write(b"{}\n")
            rows, pieces, before = 0, 0, turns
            mine = False
            while "end" not in (part := json.loads(await reader.readline())):
                if "target" in part:
                    mine = part["target"]["target"] == target
                elif mine and "endpoints" in part:
                    assert len(part["endpoints"]) <= PIECE
                    rows += len(part["endpoints"])
                    pieces += 1
            counting.cancel()
            writer.close()
            assert rows == 10_000
            assert pieces == 10_000 // PIECE
            assert turns - before >= pieces

    run(main)


def test_no_more_than_asked_for(place: Path, use: Use) -> None:
    """The rest is counted; a negative number is none."""
    target = use(600)

    async def main() -> None:
        async with serving(str(place)) as (served, _):
            for number in (260, 0, -5):
                answer = await asked(served, number)
                assert isinstance(answer, Worker)
                mine = next(each for each in answer.found["targets"] if each["target"] == target)
                assert len(mine["endpoints"]) == max(0, number)
                assert mine["left_out"] == 600 - max(0, number)

    run(main)


@pytest.mark.parametrize(
    "question", [b"GET / HTTP/1.1\r\n", b"[]\n", b'{"endpoints": "all"}\n', b"\xff\xfe\n", b"\n"], ids=repr
)
def test_what_is_no_question_is_refused(place: Path, question: bytes) -> None:
    """One line that says so, and the end."""

    async def main() -> None:
        async with serving(str(place)) as (served, events):
            reader, writer = await connect(served)
            writer.write(question)
            assert "not a question" in json.loads(await reader.readline())["error"]
            assert await reader.read() == b""
            writer.close()
            assert isinstance(await asked(served), Worker)
            assert events == []

    run(main)


def test_an_endless_question_ends(place: Path) -> None:
    """Nobody can have us keep more than a small line."""

    async def main() -> None:
        async with serving(str(place)) as (served, events):
            reader, writer = await connect(served)
            try:
                writer.write(b"x" * (4 << 20))
                await writer.drain()
                assert await reader.read() == b""
            except ConnectionError:
                pass  # it hung up while we still wrote
            writer.close()
            assert isinstance(await asked(served), Worker)
            assert events == []

    run(main)


def test_readers_that_do_not_read_are_dropped(place: Path, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold up nobody, keep one piece each, and are gone when their time is over."""
    use(_MORE_THAN_BUFFERS)
    begun = 0

    async def main() -> None:
        async with serving(str(place)) as (served, events):
            converse = served._converse

            async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                nonlocal begun
                begun += 1
                await converse(reader, writer)

            monkeypatch.setattr(served, "_converse", counting)
            monkeypatch.setattr(status_socket, "ANSWER_SECONDS", 0.5)
            silent = [await connect(served) for _ in range(2)]
            stuck = []
            for _ in range(2):
                one = socket.socket(socket.AF_UNIX)
                one.connect(str(served.address))
                one.sendall(b"{}\n")
                stuck.append(one)
            while begun < 4:
                await asyncio.sleep(0)
            monkeypatch.setattr(status_socket, "ANSWER_SECONDS", 60.0)
            assert isinstance(await asked(served, 10), Worker)
            while served.readers:
                await asyncio.sleep(0.05)
            for one in stuck:
                with closing(one):
                    received = 0
                    while chunk := await asyncio.to_thread(one.recv, 1 << 20):
                        received += len(chunk)
                    assert 0 < received < _MORE_THAN_BUFFERS * 100
            for reader, writer in silent:
                assert await reader.read() == b""
                writer.close()
            assert events == []

    run(main)


def test_too_many_readers_are_turned_away(place: Path) -> None:
    """So many at a time; the next one is told, and gets its turn when somebody has gone."""

    async def main() -> None:
        async with serving(str(place)) as (served, _):
            waiting = [await connect(served) for _ in range(status_socket.MAX_READERS)]
            while len(served.readers) < len(waiting):
                await asyncio.sleep(0)
            answer = await asked(served)
            assert isinstance(answer, Silent)
            assert "others are asking already" in answer.why
            for _, writer in waiting:
                writer.close()
            while served.readers:
                await asyncio.sleep(0)
            assert isinstance(await asked(served), Worker)

    run(main)


def test_closing_ends_answers_under_way(place: Path) -> None:
    """A reader that waits sees the end, and nothing is left on the loop."""

    async def main() -> None:
        async with serving(str(place)) as (served, _):
            reader, writer = await connect(served)
            while not served.readers:
                await asyncio.sleep(0)
        assert await reader.read() == b""
        writer.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main)


def test_a_longer_answer_is_cut_and_says_so(place: Path, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was said until then is whole."""
    use(1000)
    monkeypatch.setattr(status_socket, "MAX_ANSWER", 40_000)

    async def main() -> None:
        async with serving(str(place)) as (served, _):
            answer = await asked(served)
        assert isinstance(answer, Worker)
        assert "longer than" in answer.found["cut"]

    run(main)


def test_a_fault_of_ours_is_reported(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends this answer and shows up as an event; the next question is answered."""

    async def main() -> None:
        async with serving(str(place)) as (served, events):
            with monkeypatch.context() as patched:
                patched.setattr(status_socket.report, "meshes", lambda: 1 // 0)
                assert isinstance(await asked(served), Silent)
            assert isinstance(await asked(served), Worker)
            assert [type(event).__name__ for event in events] == ["SourceFailed"]

    run(main)


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="only Linux tells who the peer is")
def test_another_user_may_not_ask(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes through to the socket in spite of its mode is asked for by the kernel's word; root may."""

    async def main() -> None:
        async with serving(str(place)) as (served, _):
            for uid, allowed in ((UID + 1, False), (0, True), (UID, True)):
                peer = status_place.Peer(1, uid)
                with monkeypatch.context() as patched:
                    patched.setattr(status_socket.status_place, "peer_of", lambda _, peer=peer: peer)
                    patched.setattr(ask, "peer_of", lambda _: None)
                    answer = await asked(served)
                assert isinstance(answer, Worker) is allowed, uid
                if isinstance(answer, Silent):
                    assert f"user {uid} may not ask" in answer.why

    run(main)


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="only Linux tells who the peer is")
def test_somebody_else_who_answers_is_not_asked(place: Path) -> None:
    """The command, too, goes by the kernel's word, not by the name of the socket."""

    async def main() -> None:
        async with serving(str(place)) as (served, _):
            assert served.address is not None
            answer = await ask._ask(Socket(served.address, UID + 1, 5), b"{}\n")
        assert isinstance(answer, Silent)
        assert f"user {UID} answers for user {UID + 1}" in answer.why

    run(main)


def test_a_place_that_is_not_ours_is_passed_over(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of our name that others may enter, a place that is not there, and one too deep: the next one."""
    squatted, deep, good = place / "squatted", place / ("d" * 120), place / "good"
    (squatted / f"meshlib-{UID}").mkdir(parents=True)
    (squatted / f"meshlib-{UID}").chmod(0o755)
    for folder in (deep, good):
        folder.mkdir()
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(
        status_place, "PARENTS", (str(squatted), str(place / "nowhere"), str(deep), str(good))
    )

    async def main() -> None:
        async with serving("auto") as (served, events):
            assert isinstance(served.address, Path)
            assert served.address.parent == good / f"meshlib-{UID}"
            assert events == []
            found = find("auto", {}, UID)
            assert served.address in [each.address for each in found.sockets]
            assert any("0755" in line for line in found.ignored)

    run(main)


def test_a_named_place_that_will_not_do_is_reported(place: Path) -> None:
    """One event with the reason; there is no other place then, and nothing else lacks."""

    async def main() -> None:
        async with serving(str(place / "nowhere")) as (served, events):
            assert served.address is None
            (event,) = events
            assert isinstance(event, EntrySkipped)
            assert "nowhere" in event.reason

    run(main)


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="names outside the file system are Linux's")
def test_without_any_place_a_name_outside_the_file_system(
    place: Path, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found in the kernel's list and answers."""
    use(2)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(status_place, "PARENTS", (str(place / "nowhere"),))

    async def main() -> None:
        async with serving("auto") as (served, events):
            assert isinstance(served.address, bytes)
            assert events == []
            mine = [each for each in find("auto", {}, UID).sockets if each.address == served.address]
            assert [each.pid for each in mine] == [os.getpid()]
            assert str(mine[0]).startswith("@meshlib-status/")
            assert isinstance(await ask._ask(mine[0], b"{}\n"), Worker)

    run(main)


def _leave_behind(folder: Path, pid: int) -> Path:
    """The socket of a process that was killed a while ago."""
    folder.mkdir(0o700, exist_ok=True)
    path = folder / status_place.new_name(pid)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        made.listen(1)
    os.utime(path, (0, 0))
    return path


#: More than the kernel gives out (its limit is 2**22).
_NOBODY = 2**22 + 7


def test_sockets_of_the_dead_are_removed_by_the_next(place: Path) -> None:
    """A process that starts takes them away; what is a living process's, or no socket of ours, stays."""
    folder = place / f"meshlib-{UID}"
    dead, living = _leave_behind(folder, _NOBODY), _leave_behind(folder, os.getpid())
    other = folder / "notes.txt"
    other.touch()

    async def main() -> None:
        async with serving(str(place)):
            assert not dead.exists()
            assert living.exists()
            assert other.exists()

    run(main)


def test_sockets_of_the_dead_are_removed_and_told_by_who_looks(place: Path) -> None:
    """Also where the number belongs to somebody else by now; the kernel knows that nobody listens."""
    folder = place / f"meshlib-{UID}"
    dead = _leave_behind(folder, os.getpid())
    found = find(str(place), {}, UID)
    assert [each.address for each in found.stale] == [dead]
    assert found.sockets == []
    assert not dead.exists()
    assert find(str(place), {}, UID).stale == []


def test_a_worker_that_stands_still_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody listens and never answers: so many seconds, and that is said."""
    monkeypatch.setattr(ask, "PATIENCE", 0.2)
    path = place / "s"
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        made.listen(1)
        (answer,) = ask.ask_all([Socket(path, UID, 5)], 10, others=True)
    assert isinstance(answer, Silent)
    assert "no answer within 0.2 s" in answer.why


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (b"", "ended in the middle"),
        (b'{"process": {"schema": 1, "pid": 5}}\n', "ended in the middle"),
        (b'{"end": true}\n', "an empty answer"),
        (b"hello\n", "not understood"),
        (b"[1]\n", "not understood"),
        (b'{"endpoints": [], "left_out": 0}\n', "not understood"),
        (b'{"process": {"schema": 99, "versions": {"meshlib": "9.0"}}}\n', "version 99"),
        (b'{"error": "no"}\n', "no"),
        (b"x" * (2 << 20), "not understood"),
    ],
    ids=[
        *(
            "nothing",
            "no-end",
            "only-the-end",
            "words",
            "no-object",
            "endpoints-of-nobody",
            "of-another-time",
        ),
        *("refused", "endless-line"),
    ],
)
def test_an_answer_that_is_none_is_told(place: Path, lines: bytes, why: str) -> None:
    """Whatever sits at the socket, the command says what is wrong with it and goes on to the others."""
    path = place / "s"

    def answer(made: socket.socket) -> None:
        connection, _ = made.accept()
        with connection:
            connection.recv(4096)
            with suppress(OSError):  # it had enough
                connection.sendall(lines)

    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        made.listen(1)
        thread = threading.Thread(target=answer, args=(made,))
        thread.start()
        (found,) = ask.ask_all([Socket(path, UID, 5)], 10, others=True)
        thread.join()
    assert isinstance(found, Silent)
    assert why in found.why
