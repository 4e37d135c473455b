"""What goes wrong between here and the hub: each failure's sentence, and what is tried again."""

import hashlib
import os
import re
import resource
import shutil
import socket
from collections import namedtuple
from json import dumps
from pathlib import Path

import pytest
from fsspec.utils import glob_translate
from huggingface_hub import constants

from lorasp.config import Config
from lorasp.data import download, tries
from lorasp.data.download import Entry, fetch, matching
from lorasp.data.prepare import prepare_dataset, prepare_model
from lorasp.data.tries import TRIES
from lorasp.errors import WorkError
from lorasp.rehearsal import hub as hub_module
from lorasp.rehearsal.hub import STRANGER, TOKEN, Fault, Hub, Repository

LARGE = os.urandom(3 << 20)
SMALL = b'{"a": 1}\n'
PIN = {"kind": "hub", "id": "owner/thing", "revision": "a" * 40}
STORED = "/storage/models/owner/thing/model.safetensors"
EVERYTHING = ["*.json", "*.safetensors"]


@pytest.fixture
def thing(hub: Hub) -> Hub:
    """The stand-in with one more model: a file in git and one in large-file storage."""
    files = {"config.json": SMALL, "model.safetensors": LARGE, "pytorch_model.bin": b"trap"}
    hub.repositories["models", "owner/thing"] = Repository("a" * 40, files)
    return hub


def fetched(folder: Path) -> dict[str, bytes]:
    place = fetch(PIN, "model", EVERYTHING, folder)
    return {file.name: file.read_bytes() for file in place.iterdir() if file.name[0] != "."}


def test_only_what_is_asked_for_comes(thing: Hub, tmp_path: Path) -> None:
    assert fetched(tmp_path) == {"config.json": SMALL, "model.safetensors": LARGE}
    assert not thing.asked("pytorch_model.bin")
    asked = len(thing.log)
    assert fetched(tmp_path) == {"config.json": SMALL, "model.safetensors": LARGE}
    assert len(thing.log) == asked  # all there and sound: the hub is not even asked


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 408])
def test_a_hub_in_trouble_is_asked_again(
    thing: Hub,
    tmp_path: Path,
    waits: list[float],
    capfd: pytest.CaptureFixture[str],
    status: int,
) -> None:
    thing.faults.append(Fault("resolve/" + "a" * 40 + "/model", status, times=3))
    assert fetched(tmp_path)["model.safetensors"] == LARGE
    assert waits == [1, 2, 4]
    told = capfd.readouterr().err
    assert (
        f"HTTP status {status} after 0 of {len(LARGE)} bytes; trying again in 4 s (3 of 5)" in told
    )


def test_the_hub_says_how_long_to_wait(thing: Hub, tmp_path: Path, waits: list[float]) -> None:
    thing.faults.append(Fault("/config.json", 429, headers={"Retry-After": "37"}))
    fetched(tmp_path)
    assert waits == [37]
    shutil.rmtree(tmp_path)
    allowance = {"RateLimit": '"resolvers";r=0;t=121', "Retry-After": "3"}
    thing.faults.append(Fault("/config.json", 429, headers=allowance))
    fetched(tmp_path)
    assert waits == [37, 121]
    shutil.rmtree(tmp_path)
    thing.faults.append(Fault("/config.json", 429, headers={"Retry-After": "86400"}))
    with pytest.raises(WorkError, match="refuses more requests for now"):
        fetched(tmp_path)
    assert waits == [37, 121]


def test_a_listing_in_trouble_is_asked_for_again(
    thing: Hub, tmp_path: Path, waits: list[float]
) -> None:
    thing.faults.append(Fault("/tree/", 503, times=2))
    fetched(tmp_path)
    assert len(waits) == 2
    assert [request["status"] for request in thing.asked("/tree/")] == [503, 503, 200]


def test_a_list_on_two_pages(thing: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = iter(
        [f'<{thing.endpoint}/api/models/owner/thing/tree/{"a" * 40}?cursor=x>; rel="next"']
    )

    def linked(handler: hub_module._Handler, value: object) -> None:
        link = next(pages, None)
        value, rest = (value[:1], {"Link": link}) if link else (value[1:], {})
        content = dumps(value).encode()
        handler._answer(200, content, {"Content-Type": "application/json"} | rest)

    monkeypatch.setattr(hub_module._Handler, "_json", linked)
    assert set(fetched(tmp_path)) == {"config.json", "model.safetensors"}
    assert len(thing.asked("/tree/")) == 2


@pytest.mark.parametrize("where", ["/tree/", "/config.json"])
def test_a_wait_of_a_day_is_refused(
    thing: Hub, tmp_path: Path, waits: list[float], where: str
) -> None:
    for status in (429, 503):
        thing.faults.append(Fault(where, status, headers={"Retry-After": "86400"}))
    with pytest.raises(WorkError, match=r"refuses more requests .* 429, .*: wait 86400 s, log in"):
        fetched(tmp_path)
    with pytest.raises(WorkError, match=r"\(HTTP status 503\): run this again in 86400 s; what"):
        fetched(tmp_path)
    assert waits == [] and len(thing.asked(where)) == 2


@pytest.mark.parametrize("status", [403, 404, 410, 418])
@pytest.mark.parametrize(
    ("where", "path"), [("/tree/", "the list of files"), ("/config.json", "config.json")]
)
def test_a_refusal_claims_no_tries(
    thing: Hub, tmp_path: Path, waits: list[float], where: str, path: str, status: int
) -> None:
    thing.faults.append(Fault(where, status))
    told = rf"^the hub refuses {path} of owner/thing at .* \(HTTP status {status}\): see that HF_"
    with pytest.raises(WorkError, match=told) as caught:
        fetched(tmp_path)
    assert "tries" not in str(caught.value) and waits == []


@pytest.mark.parametrize(
    ("where", "status", "sentence"),
    [
        (
            "/tree/",
            503,
            r"the hub fails on the list of files of owner/thing at .*\(HTTP status 503",
        ),
        ("/tree/", 429, r"refuses more requests for now \(HTTP status 429, for owner/thing at"),
        (
            "/config.json",
            500,
            r"fails on config.json of owner/thing at .* 6 tries in a row: run this",
        ),
        (
            "/config.json",
            429,
            r"refuses more requests .* log in .* what has been downloaded is kept",
        ),
    ],
)
def test_trouble_for_good(
    thing: Hub, tmp_path: Path, waits: list[float], where: str, status: int, sentence: str
) -> None:
    thing.faults.append(Fault(where, status, times=99))
    with pytest.raises(WorkError, match=sentence):
        fetched(tmp_path)
    assert len(thing.asked(where)) == TRIES
    assert len(waits) == TRIES - 1


def test_a_cut_download_goes_on_where_it_was(
    thing: Hub, tmp_path: Path, waits: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    thing.faults.append(Fault(STORED, "cut", times=8))
    assert fetched(tmp_path)["model.safetensors"] == LARGE
    starts = [0]
    for _ in range(8):  # half of what is missing comes each time
        starts.append(starts[-1] + (len(LARGE) - starts[-1]) // 2)
    wanted = [None, *(f"bytes={start}-" for start in starts[1:])]
    assert [request["range"] for request in thing.asked(STORED)] == wanted
    assert waits == [1] * 8  # each brought something, so none counts as a failure in a row
    told = capfd.readouterr().err
    assert "closed connection without sending complete message body" in told
    assert f"after {len(LARGE) // 2} of {len(LARGE)} bytes; trying again in 1 s" in told


def test_a_killed_download_goes_on_in_the_next_process(
    thing: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thing.faults.append(Fault(STORED, "cut"))

    def killed(_: float) -> None:
        raise SystemExit(143)

    with monkeypatch.context() as patched:
        patched.setattr(tries.time, "sleep", killed)
        with pytest.raises(SystemExit):
            fetched(tmp_path)
    assert fetched(tmp_path)["model.safetensors"] == LARGE
    assert thing.asked(STORED)[-1]["range"] == f"bytes={len(LARGE) // 2}-"


def test_a_connection_cut_for_good(thing: Hub, tmp_path: Path, waits: list[float]) -> None:
    thing.repositories["models", "owner/thing"].files["model.safetensors"] = LARGE[:1]
    thing.faults.append(Fault(STORED, "cut", times=99))  # half of one byte is none
    with pytest.raises(
        WorkError,
        match=r"hub cannot be reached for owner/thing at .*\(RemoteProtocolError\): connect this",
    ):
        fetched(tmp_path)
    assert waits == [1, 2, 4, 8, 16]


@pytest.mark.parametrize(
    ("where", "file", "kind"),
    [(STORED, "model.safetensors", "sha256"), ("/config.json", "config.json", "git blob id")],
)
def test_a_changed_file_is_fetched_once_more_and_then_refused(
    thing: Hub,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    where: str,
    file: str,
    kind: str,
) -> None:
    thing.faults.append(Fault(where, "corrupt"))
    assert fetched(tmp_path)["model.safetensors"] == LARGE
    told = capfd.readouterr().err
    assert f"{file} of owner/thing at revision {'a' * 40} has {kind} " in told
    assert told.rstrip().endswith("as the hub lists it; downloading it again")

    shutil.rmtree(tmp_path)
    before = len([r for r in thing.asked(where) if r["status"] == 200])
    thing.faults.append(Fault(where, "corrupt", times=99))
    with pytest.raises(WorkError, match=f"{file} of .* has {kind} .*, twice in a row, and is not"):
        fetched(tmp_path)
    assert len([r for r in thing.asked(where) if r["status"] == 200]) == before + 2
    assert not [path for path in tmp_path.rglob("*") if file in path.name]


def test_a_file_damaged_on_disk_is_fetched_again(thing: Hub, tmp_path: Path) -> None:
    fetched(tmp_path)
    (file,) = tmp_path.rglob("model.safetensors")
    file.write_bytes(LARGE[:-1] + b"x" if LARGE[-1:] != b"x" else LARGE[:-1] + b"y")
    assert hashlib.sha256(fetched(tmp_path)["model.safetensors"]).digest() == (
        hashlib.sha256(LARGE).digest()
    )
    assert len(thing.asked(STORED)) == 2


def test_the_token_goes_to_the_hub_and_nowhere_else(
    thing: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fetched(tmp_path)
    assert all(request["token"] for request in thing.log if "/storage/" not in request["path"])
    assert [request["token"] for request in thing.asked("/storage/")] == [False]


@pytest.mark.parametrize(
    ("token", "pin", "sentence"),
    [
        (None, {"revision": "b" * 40}, f"owner/thing has no revision {'b' * 40}: correct the pin"),
        (
            None,
            {"id": "owner/none"},
            "the hub has no owner/none, or shows it only to those who log",
        ),
        (TOKEN, {"id": "owner/none"}, "the hub has no owner/none, or shows it only to those who"),
        (None, {"id": "owner/shut"}, "is gated, and no token came .* accept its licence on http"),
        (STRANGER, {"id": "owner/shut"}, "account of the token has not been let in: accept its"),
        ("hf_unknown", {}, "the hub does not know the token that asks for owner/thing"),
    ],
)
def test_what_no_second_try_mends(
    thing: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    waits: list[float],
    token: str | None,
    pin: dict[str, str],
    sentence: str,
) -> None:
    thing.repositories["models", "owner/shut"] = Repository("a" * 40, {"config.json": b"{}"}, True)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(WorkError, match=sentence) as caught:
        fetch(PIN | pin, "model", EVERYTHING, tmp_path)
    assert waits == []
    assert "\n" not in str(caught.value) and "hf_" not in str(caught.value)


def test_a_file_that_the_hub_lists_and_does_not_have(
    thing: Hub, tmp_path: Path, waits: list[float]
) -> None:
    thing.faults.append(Fault("/config.json", 404, headers={"X-Error-Code": "EntryNotFound"}))
    with pytest.raises(WorkError, match=r"has no file config\.json, which it lists"):
        fetched(tmp_path)
    assert waits == []


def test_nobody_answers(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    with socket.socket() as taken:  # bound and not listening
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(WorkError, match=r"cannot be reached for .*\(ConnectError\).*make mini"):
            fetch(PIN, "model", EVERYTHING, tmp_path)
    assert len(waits) == TRIES - 1


def test_offline(thing: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WorkError, match=r"\(OfflineModeIsEnabled\).* unset HF_HUB_OFFLINE"):
        fetch(PIN, "model", EVERYTHING, tmp_path)
    assert thing.log == []


def test_no_hub_answers_there(thing: Hub, tmp_path: Path) -> None:
    thing.faults.append(Fault("/tree/", 200))  # a page of something else
    with pytest.raises(
        WorkError, match=f"what {thing.endpoint} answers on owner/thing .* cannot be"
    ):
        fetch(PIN, "model", EVERYTHING, tmp_path)


def test_a_path_that_leads_out(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["models", "owner/thing"] = Repository("a" * 40, {"../../x.json": b"{}"})
    with pytest.raises(
        WorkError, match=r"refusing to write .*'\.\./\.\./x\.json'|inside the repos"
    ):
        fetch(PIN, "model", EVERYTHING, tmp_path / "deep")
    assert not list(tmp_path.rglob("x.json"))


def test_a_disk_that_is_too_small(
    thing: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage(9, 0, 9))
    with pytest.raises(
        WorkError, match=r"needs 0\.0 GiB more in .* and its disk has 0\.0 GiB: free"
    ):
        fetched(tmp_path)
    assert not thing.asked("/resolve/")


def test_a_resumed_download_needs_room_for_the_rest_alone(
    thing: Hub, tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    thing.faults.append(Fault(STORED, 403))
    with pytest.raises(WorkError, match="HTTP status 403"):
        fetched(tmp_path)
    (partial,) = tmp_path.rglob(".model.safetensors.partial")
    partial.write_bytes(LARGE[:-100])
    usage = namedtuple("usage", "total used free")
    for free, there in ((99, False), (100, True)):
        monkeypatch.setattr(download.shutil, "disk_usage", lambda _, free=free: usage(9, 0, free))
        if there:
            assert fetched(tmp_path)["model.safetensors"] == LARGE
            assert thing.asked(STORED)[-1]["range"] == f"bytes={len(LARGE) - 100}-"
        else:
            with pytest.raises(WorkError, match=r"needs 0\.0 GiB more in .*`ln -s`"):
                fetched(tmp_path)


def test_a_disk_that_refuses(thing: Hub, tmp_path: Path) -> None:
    """A file may not grow beyond 2 MiB: what came is kept, and gone on from."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, limits[1]))
    try:
        with pytest.raises(
            WorkError, match=r"cannot write .*model\.safetensors\.partial: File too"
        ):
            fetched(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert fetched(tmp_path)["model.safetensors"] == LARGE
    assert thing.asked(STORED)[-1]["range"] == f"bytes={2 << 20}-"


def test_a_revision_without_safetensors(thing: Hub, rehearse: Config) -> None:
    del thing.repositories["models", "owner/thing"].files["model.safetensors"]
    rehearse["models"]["m"] = {"architecture": "encoder", "source": PIN}
    with pytest.raises(
        WorkError, match=f"owner/thing has no safetensors weights at revision {'a' * 40}"
    ):
        prepare_model(rehearse, "m")
    assert not thing.asked("pytorch_model.bin")


@pytest.mark.parametrize(
    ("card", "config", "sentence"),
    [
        (b"", "sst2", "has no configuration 'sst2'; its card lists none"),
        (b"---\nconfigs: [{config_name: a, data_files: a.csv}]\n---\n", "b", "its card lists a"),
        (
            b"---\nconfigs: [{config_name: a, data_files: a.csv}]\n---\n",
            "a",
            "has no parquet files of",
        ),
        (b"", None, "has no parquet files of its data"),
        (b"---\nconfigs: [a]\n---\n", "a", "has a head that is no card of a data set"),
        *(
            (card % entry, "a", "has a head that is no card of a data set: .* names no split and")
            for card in (b"---\nconfigs: [{config_name: a, data_files: %b}]\n---\n",)
            for entry in (b"[{path: a}]", b"[{split: a}]", b"[{split: 1, path: a}]", b"{train: a}")
        ),
    ],
)
def test_data_that_are_not_there(
    hub: Hub, rehearse: Config, card: bytes, config: str | None, sentence: str
) -> None:
    files = {"README.md": card, "a.csv": b"a\n1\n", "thing.py": b"raise SystemExit"}
    hub.repositories["datasets", "owner/thing"] = Repository("a" * 40, files)
    rehearse["datasets"]["d"] = {"source": PIN | ({"config": config} if config else {})}
    with pytest.raises(WorkError, match=sentence):
        prepare_dataset(rehearse, "d")
    assert not hub.asked("thing.py") and not hub.asked("a.csv")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("data/*", "data/train-0.parquet data/train-1.parquet"),
        ("data/train-*", "data/train-0.parquet data/train-1.parquet"),
        ("data/train-[1-9]*", "data/train-1.parquet"),
        (
            "data/**/train-*",
            "data/train-0.parquet data/train-1.parquet data/old/train-0.parquet "
            "data/old/er/train-0.parquet",
        ),
        ("data/*/train-*", "data/old/train-0.parquet"),
        ("**/er/*", "data/old/er/train-0.parquet"),
        ("data/old/**", "data/old/train-0.parquet data/old/er/train-0.parquet"),
        ("*.parquet", "a.parquet"),
        ("odd[1].md", "odd[1].md"),
    ],
)
def test_patterns_are_those_of_the_hub(pattern: str, found: str) -> None:
    """What fsspec, with which `datasets` reads a repository, makes of them."""
    paths = ["a.parquet", "odd[1].md", "data/train-0.parquet", "data/train-1.parquet"]
    paths += ["data/old/train-0.parquet", "data/old/er/train-0.parquet"]
    got = [entry.path for entry in matching([Entry(p, 0, None, "") for p in paths], [pattern])]
    assert got == found.split()
    if "odd" not in pattern:
        assert got == [path for path in paths if re.match(glob_translate(pattern), path)]
