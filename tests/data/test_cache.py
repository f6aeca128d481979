"""The cache of parsed arrays: whole or absent, shared between processes, rebuilt when damaged."""

import io
import json
import logging
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from archives import image_files, tiny_faces, write_folder, write_zip

from fer_lightning.data import cache, cache_entries, fer2013
from fer_lightning.data.archives import Folder
from fer_lightning.data.cache import Allocate, cached, content_key
from fer_lightning.data.faces import Faces
from fer_lightning.runtime.errors import UserError

FACES = tiny_faces()


class Builder:
    """Builds the tiny faces and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, allocate: Allocate) -> Faces:
        self.calls += 1
        return FACES


def assert_equal(faces: Faces) -> None:
    for name in ("images", "labels", "usage", "ids", "twins"):
        np.testing.assert_array_equal(getattr(faces, name), getattr(FACES, name))
        assert getattr(faces, name).dtype == getattr(FACES, name).dtype
    assert (faces.kind, faces.data_hash, faces.synthetic) == (FACES.kind, FACES.data_hash, FACES.synthetic)


def test_second_time_reads_what_the_first_stored(tmp_path: Path) -> None:
    build = Builder()
    assert_equal(cached("key", build, tmp_path / "new" / "folder"))
    assert_equal(cached("key", build, tmp_path / "new" / "folder"))
    assert build.calls == 1


def test_images_are_a_read_only_memory_map_from_the_first_time_on(tmp_path: Path) -> None:
    for _ in range(2):
        images = cached("key", Builder(), tmp_path).images
        assert isinstance(images, np.memmap)
        assert not images.flags.writeable


def test_a_pixel_of_a_colour_image_is_stored_together(tmp_path: Path) -> None:
    """Where it is read into the file, where it was in memory before, and where there is no folder to write to."""
    planes = np.random.default_rng(0).integers(0, 256, (6, 3, 20, 20), np.uint8)
    names, zeros = np.array([f"{number}.png" for number in range(6)]), np.zeros(6)

    def read_into(allocate: Allocate) -> Faces:
        images = allocate(planes.shape)
        assert images.shape == planes.shape
        images[:] = planes
        return Faces.from_arrays(images, zeros, zeros, names, "drawn")

    def in_memory(allocate: Allocate) -> Faces:
        return Faces.from_arrays(planes, zeros, zeros, names, "drawn")

    (tmp_path / "file").touch()  # no folder can be made there
    sets = [cached(build.__name__, build, tmp_path) for build in (read_into, in_memory) for _ in range(2)]
    sets += [cached("key", read_into, tmp_path / "file")]
    digest = blake2b(planes.tobytes() + sets[0].labels.tobytes() + sets[0].usage.tobytes(), digest_size=16)
    for faces in sets:
        np.testing.assert_array_equal(faces.images, planes)
        assert np.moveaxis(faces.images, 1, -1).flags.c_contiguous
        assert faces.data_hash == digest.hexdigest()  # as before images were stored in this way
    for name in ("read_into", "in_memory"):
        assert np.load(tmp_path / name / "images.npy").shape == (6, 20, 20, 3)


def test_keys_do_not_mix(tmp_path: Path) -> None:
    other = tiny_faces(seed=1)
    cached("one", lambda allocate: other, tmp_path)
    assert_equal(cached("two", Builder(), tmp_path))
    assert cached("one", Builder(), tmp_path).data_hash == other.data_hash


def cut(name: str) -> Callable[[Path], object]:
    return lambda entry: os.truncate(entry / name, (entry / name).stat().st_size // 2)


def flip(name: str) -> Callable[[Path], None]:
    def damage(entry: Path) -> None:
        data = bytearray((entry / name).read_bytes())
        data[len(data) // 2] ^= 1
        (entry / name).write_bytes(data)

    return damage


def write_meta(entry: Path, **values: object) -> None:
    """Change values of an entry's description, with a good checksum."""
    meta = {**json.loads((entry / "meta.json").read_text()), **values}
    meta.pop("meta.json")
    (entry / "meta.json").write_text(json.dumps({**meta, "meta.json": cache._checksum(meta)}))


def without_checksum(**values: object) -> Callable[[Path], object]:
    def write(entry: Path) -> None:
        meta = json.loads((entry / "meta.json").read_text())
        (entry / "meta.json").write_text(json.dumps({**meta, **values}))

    return write


def older(entry: Path) -> None:
    write_meta(entry, format=cache.FORMAT - 1)


def foreign(entry: Path) -> None:
    """Another set's images and index under this key, with the hash of the set that belongs there."""
    other = cached("other", lambda allocate: tiny_faces(seed=1), entry.parent / "elsewhere")
    assert other.data_hash != FACES.data_hash
    for name in ("images.npy", "index.npz", "meta.json"):
        shutil.copy(entry.parent / "elsewhere" / "other" / name, entry / name)
    write_meta(entry, data_hash=FACES.data_hash)


def index_with(**arrays: np.ndarray) -> Callable[[Path], None]:
    """An index that does not fit the images, with a good checksum."""

    def write(entry: Path) -> None:
        with np.load(entry / "index.npz") as index:
            np.savez(entry / "index.npz", **{**index, **arrays})
        write_meta(entry, **{"index.npz": zlib.crc32((entry / "index.npz").read_bytes())})

    return write


def index_that_claims(shape: tuple[int, ...]) -> Callable[[Path], None]:
    """An index whose labels claim a shape, with a good checksum."""

    def write(entry: Path) -> None:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(entry / "index.npz", "w") as archive:
            archive.writestr("labels.npy", header.getvalue())
        write_meta(entry, **{"index.npz": zlib.crc32((entry / "index.npz").read_bytes())})

    return write


def holes(name: str) -> Callable[[Path], object]:
    """A file that would take hours to read, of which next to nothing is on the disk."""

    def write(entry: Path) -> None:
        if name == "images.npy":
            np.lib.format.open_memmap(entry / name, mode="w+", dtype=np.uint8, shape=(10**6, 1000, 1000))
        else:
            os.truncate(entry / name, 2**40)

    return write


def images_of_side(side: int) -> Callable[[Path], object]:
    return lambda entry: np.save(entry / "images.npy", np.zeros((len(FACES), side, side), np.uint8))


def pipe(entry: Path) -> None:
    (entry / "images.npy").unlink()
    os.mkfifo(entry / "images.npy")


@pytest.mark.parametrize(
    "damage",
    [
        foreign,
        index_with(labels=FACES.labels[::-1].copy()),
        index_with(labels=FACES.labels + 7),
        index_with(labels=FACES.labels[:, None]),
        index_with(usage=FACES.usage[:, None]),
        index_with(twins=FACES.twins[:-1]),
        index_with(twins=np.zeros_like(FACES.twins)),
        index_with(ids=np.repeat(FACES.ids[:1], len(FACES))),
        without_checksum(synthetic=True),
        without_checksum(kind="Kaggle archive (folder)"),
        index_with(ids=np.arange(len(FACES))),
        pipe,
        cut("images.npy"),
        cut("index.npz"),
        cut("meta.json"),
        flip("images.npy"),
        flip("index.npz"),
        lambda entry: (entry / "images.npy").unlink(),
        lambda entry: (entry / "index.npz").unlink(),
        lambda entry: (entry / "meta.json").unlink(),
        lambda entry: (entry / "meta.json").write_text("[]"),
        lambda entry: (entry / "meta.json").write_text("{}"),
        lambda entry: (entry / "meta.json").write_text("[" * 200_000),
        index_that_claims((10**13,)),
        holes("images.npy"),
        holes("index.npz"),
        images_of_side(2000),
        older,
    ],
)
def test_damaged_entry_is_rebuilt_and_reported(
    damage: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    build = Builder()
    cached("key", build, tmp_path)
    assert not caplog.records
    damage(tmp_path / "key")
    assert_equal(cached("key", build, tmp_path))
    assert build.calls == 2
    assert [record.getMessage().count("unusable") for record in caplog.records] == [1]
    assert_equal(cached("key", build, tmp_path))
    assert build.calls == 2


def test_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(allocate: Allocate) -> Faces:
        raise UserError("damaged")

    with pytest.raises(UserError, match="damaged"):
        cached("key", fail, tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] in ([], [".lock"])
    assert_equal(cached("key", Builder(), tmp_path))


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    write_folder({".key-123/images.npy": b"half", ".other-123/images.npy": b"half"}, tmp_path)
    cached("key", Builder(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [".other-123", "key"]


def test_links_of_others_in_the_cache_folder_are_not_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = cached("key", Builder(), tmp_path / "other").data_hash
    victim, folder = write_folder({"meta.json": b"precious"}, tmp_path / "victim"), tmp_path / "cache"
    folder.mkdir()
    (folder / "key").symlink_to(tmp_path / "other" / "key")
    (folder / ".key-123").symlink_to(victim)
    build = Builder()
    assert cached("key", build, folder).data_hash == stored
    assert build.calls == 1, "an entry that is a link is not read"
    assert not (folder / "key").is_symlink()
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["key"]
    monkeypatch.setattr(cache_entries.secrets, "token_hex", lambda size: "known")
    monkeypatch.setattr(cache_entries, "_remove", lambda path: None)  # the link is made after that
    (folder / ".next-known").symlink_to(victim)
    assert_equal(cached("next", build, folder))
    assert "cannot be used" in caplog.text
    assert [path.name for path in victim.iterdir()] == ["meta.json"]
    assert (victim / "meta.json").read_bytes() == b"precious"
    assert (tmp_path / "other" / "key" / "meta.json").exists()


def test_unusable_cache_folder_warns_and_builds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("not a folder")
    build = Builder()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert_equal(cached("key", build, folder))
    assert build.calls == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "continuing without it" in caplog.text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full to stand for a full disk")
def test_full_disk_warns_and_returns_the_faces(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = np.save

    def save_on_full_disk(path: Path, array: np.ndarray) -> None:
        path.symlink_to("/dev/full")
        save(path, array)

    monkeypatch.setattr(np, "save", save_on_full_disk)
    assert_equal(cached("key", Builder(), tmp_path))
    assert "No space left on device" in caplog.text
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_key_of_a_file_is_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").write_bytes(b"content")
    (tmp_path / "c").write_bytes(b"contenT")
    keys = [content_key(tmp_path / name) for name in "abc"]
    assert keys[0] == keys[1] != keys[2]


def test_files_that_would_take_hours_to_read_have_no_key(tmp_path: Path) -> None:
    for name, size, source in (("big.csv", 2**40, tmp_path / "big.csv"), ("a/big.png", 2**36, tmp_path)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, size)
        with pytest.raises(UserError, match=rf"{name} has [0-9,]+ bytes, and at most [0-9,]+ are read"):
            content_key(source if source.is_file() else Folder(source), [name])


def test_key_of_a_folder_is_the_content_of_what_is_read(tmp_path: Path) -> None:
    folder = write_folder(image_files(FACES), tmp_path / "images")

    def key() -> str:
        return content_key(Folder(folder), list(FACES.ids))

    keys = [key()]
    one = folder / str(FACES.ids[0])
    os.utime(one, ns=(0, 0))
    assert key() == keys[0]
    data = one.read_bytes()
    one.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(one, ns=(0, 0))
    keys.append(key())
    (folder / "notes.txt").write_bytes(b"x")
    keys.append(key())
    assert len(set(keys)) == 3
    (folder / ".DS_Store").write_bytes(b"x")
    assert key() == keys[-1]


def test_equal_names_sizes_and_times_with_other_pixels_are_other_data(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder, pixels in zip(folders, (FACES.images, 255 - FACES.images), strict=True):
        for name, image in zip(FACES.ids, pixels, strict=True):
            path = folder / str(name).replace(".jpg", ".pgm")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"P5\n48 48\n255\n" + image.tobytes())
            os.utime(path, (0, 0))
    loaded = [fer2013.load(str(folder), str(tmp_path / "cache")) for folder in folders]
    np.testing.assert_array_equal(loaded[1].images, 255 - loaded[0].images)
    assert loaded[0].data_hash != loaded[1].data_hash


def test_data_that_change_while_they_are_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(image_files(FACES), tmp_path / "images")
    read = fer2013.read

    def read_and_change(source: Path) -> Faces:
        faces = read(source)
        (folder / "train/angry/new.png").write_bytes(b"x")
        return faces

    monkeypatch.setattr(fer2013, "read", read_and_change)
    with pytest.raises(UserError, match="was changed while it was read"):
        fer2013.load(str(folder), str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob("*/meta.json"))


START = """
import logging, sys, time
from fer_lightning.data import fer2013
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
read = fer2013.read
def slow_read(source):
    print("parsing", flush=True)
    time.sleep(0.5)
    return read(source)
fer2013.read = slow_read
print("ready", flush=True)
sys.stdin.readline()
print("hash", fer2013.load(sys.argv[1], sys.argv[2]).data_hash)
"""


def start_together(source: Path, cache_dir: Path, count: int = 2) -> list[str]:
    """Outputs of processes that load the same source at the same moment."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START, str(source), str(cache_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    return outputs


def test_two_processes_that_start_together_parse_once(tmp_path: Path) -> None:
    source = write_zip(image_files(FACES), tmp_path / "archive.zip")
    outputs = start_together(source, tmp_path / "cache")
    assert sum("parsing" in output for output in outputs) == 1
    assert all(f"hash {FACES.data_hash}" in output for output in outputs)


def test_two_processes_rebuild_a_damaged_entry_once(tmp_path: Path) -> None:
    source = write_zip(image_files(FACES), tmp_path / "archive.zip")
    fer2013.load(str(source), str(tmp_path / "cache"))
    cut("images.npy")(tmp_path / "cache" / content_key(source))
    outputs = start_together(source, tmp_path / "cache")
    assert sum("parsing" in output for output in outputs) == 1
    assert all(f"hash {FACES.data_hash}" in output for output in outputs)


@pytest.mark.nightly
@pytest.mark.skipif(not os.environ.get("FER2013_PATH"), reason="FER2013_PATH does not name the real FER-2013 zip")
def test_two_processes_share_the_real_archive_and_damage_is_repaired(tmp_path: Path) -> None:
    source = Path(os.environ["FER2013_PATH"])
    outputs = start_together(source, tmp_path)
    assert sum("parsing" in output for output in outputs) == 1
    assert all("counts equal the official" in output for output in outputs)
    cut("images.npy")(tmp_path / content_key(source))
    faces = fer2013.load(str(source), str(tmp_path))
    assert f"hash {faces.data_hash}" in outputs[0]
