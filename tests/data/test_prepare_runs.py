"""Faults, duplicates, kills and bad input of `vit_jax.data.prepare`."""

import fcntl
import gzip
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.prepared import (
    ROOT,
    Files,
    contents,
    encoded,
    expected,
    folder,
    prepare,
    records,
    report,
    some,
    tar,
    under,
)
from vit_jax import data
from vit_jax.data.prepare import __main__ as command
from vit_jax.data.prepare import sources
from vit_jax.errors import UserError


def with_faults() -> Files:
    files = some()
    whole = files["train/a/0.jpeg"]
    return files | {
        "train/a/cut.jpg": encoded(7, quality=95)[:300],
        "train/a/empty.png": b"",
        "train/b/text.jpg": b"this is no image",
        "train/b/empty.jpg": b"",  # no duplicate of the other: it is no image
        "train/b/again.jpg": whole,
        "test/a/leak.jpg": files["train/b/1.jpeg"],
    }


def test_what_does_not_decode_is_listed_before_anything_final(tmp_path):
    source = folder(tmp_path / "photos", with_faults())
    with pytest.raises(UserError) as caught:
        prepare(tmp_path, source)
    message = str(caught.value)
    assert message.startswith("4 images do not decode; replace or remove them")
    assert "train: a/empty.png is empty (0 bytes)" in message
    assert "train: b/text.jpg cannot be decoded: 16 bytes" in message
    assert not (tmp_path / "data/mine/1.0.0").exists()
    with pytest.raises(UserError, match=r"has no version"):
        data.make(name="mine", data_dir=str(tmp_path / "data"), train={}, eval={})

    said = prepare(tmp_path, source, "--on_bad=skip")
    bad = {"a/cut.jpg", "a/empty.png", "b/text.jpg", "b/empty.jpg"}
    assert {x["path"] for x in report(tmp_path, "undecodable")} == bad
    good = {n: c for n, c in with_faults().items() if n[6:] not in bad}
    assert records(tmp_path) == expected(good)
    lines = report(tmp_path, "duplicates")
    assert [(x["split"], x["path"]) for x in lines] == [
        ("train", "b/1.jpeg"),
        ("train", "b/again.jpg"),
    ]
    assert (
        lines[0]["what"] == "the same bytes as a/leak.jpg of test, with another label"
    )
    assert "LEAKAGE: 1 images of train ARE in test too." in said
    assert any(line.startswith("2 duplicates (kept") for line in said)


def test_drop_duplicates_keeps_the_test_split_whole(tmp_path):
    source = folder(tmp_path / "photos", with_faults())
    prepare(tmp_path, source, "--on_bad=skip")
    with pytest.raises(UserError, match="holds another dataset"):
        prepare(tmp_path, source, "--on_bad=skip", "--drop_duplicates")
    prepare(tmp_path, source, "--on_bad=skip", "--drop_duplicates", name="once")
    read = records(tmp_path, "once")
    lost = set(records(tmp_path)) - set(read)
    assert lost == {"train/b/1.jpeg", "train/b/again.jpg"}
    digests = [hashlib.sha256(content).digest() for content, _ in read.values()]
    assert len(set(digests)) == len(digests)


def test_a_second_call_does_nothing(tmp_path):
    source = folder(tmp_path / "photos", some())
    prepare(tmp_path, source)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*")}
    assert any("is whole already" in line for line in prepare(tmp_path, source))
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*")}
    del before[tmp_path / "data/mine"], after[tmp_path / "data/mine"]
    assert after == before
    manifest = json.loads(contents(tmp_path)["manifest.json"])
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256(contents(tmp_path)[name]).hexdigest() == digest


def start(tmp_path: Path, workers: int, *flags: str) -> subprocess.Popen[bytes]:
    arguments = [f"{tmp_path}/photos", f"--data_dir={tmp_path}/data", "--name=mine"]
    arguments += ["--num_shards=6", f"--num_workers={workers}", *flags]
    with (tmp_path / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "vit_jax.data.prepare", *arguments],
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )


def kill_and_resume(tmp_path: Path, moments: list[int], *flags: str) -> Files:
    """Kills two workers and their master when so many files are there; then goes on."""
    for count in moments:
        process = start(tmp_path, 2, *flags)
        growing = tmp_path / "data/mine/.1.0.0.incomplete"
        while process.poll() is None:
            if growing.is_dir() and len(os.listdir(growing)) >= count:
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    prepare(tmp_path, f"{tmp_path}/photos", "--num_shards=6", *flags)
    return contents(tmp_path)


def faulty(tmp_path: Path, n: int) -> None:
    """Enough images for a kill to hit the middle, with all that can be found."""
    files = {f"train/{'ab'[i % 2]}/{i}.png": encoded(i, "PNG") for i in range(n)}
    folder(tmp_path / "photos", files | with_faults())


FLAGS = ("--on_bad=skip", "--drop_duplicates")


def test_killed_and_resumed_with_other_workers_it_is_the_same(tmp_path):
    faulty(tmp_path, 2000)
    prepare(tmp_path, f"{tmp_path}/photos", "--num_shards=6", *FLAGS)
    wanted = contents(tmp_path)
    (tmp_path / "data").rename(tmp_path / "before")
    found = kill_and_resume(tmp_path, [4], *FLAGS)
    assert found == wanted
    assert os.listdir(tmp_path / "data/mine") == ["1.0.0"]


@pytest.mark.slow
def test_killed_at_many_moments_it_is_the_same(tmp_path):
    faulty(tmp_path, 2000)
    prepare(tmp_path, f"{tmp_path}/photos", "--num_shards=6", *FLAGS)
    wanted = contents(tmp_path)
    (tmp_path / "data").rename(tmp_path / "before")
    assert (
        kill_and_resume(tmp_path, [0, 1, 2, 4, 6, 8, 10, 12, 13, 14, 15, 17], *FLAGS)
        == wanted
    )


def test_finished_files_are_not_written_again(tmp_path):
    source = folder(tmp_path / "photos", with_faults())
    with pytest.raises(UserError):
        prepare(tmp_path, source, "--num_shards=3")
    growing = tmp_path / "data/mine/.1.0.0.incomplete"
    before = {p.name: p.stat().st_ino for p in growing.glob("*array_record*")}
    changed = tmp_path / "photos/train/a/empty.png"
    changed.write_bytes(encoded(50, "PNG"))
    prepare(tmp_path, source, "--num_shards=3", "--on_bad=skip")
    after = {p.name: p.stat().st_ino for p in (tmp_path / "data/mine/1.0.0").iterdir()}
    again = [name for name in before if after[name] != before[name]]
    assert len(before) == 6 and len(again) == 1
    assert records(tmp_path)["train/a/empty.png"][0] == changed.read_bytes()


def test_files_of_a_call_with_other_flags_are_removed(tmp_path):
    source = folder(tmp_path / "photos", with_faults())
    with pytest.raises(UserError):
        prepare(tmp_path, source, "--num_shards=3")
    prepare(tmp_path, source, "--num_shards=2", "--on_bad=skip")
    assert len([n for n in contents(tmp_path) if "array_record" in n]) == 4


def test_two_calls_at_a_time_do_not_disturb_each_other(tmp_path):
    source = folder(tmp_path / "photos", some())
    work = tmp_path / "data/mine/.1.0.0.work"
    work.mkdir(parents=True)
    with (work / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is being prepared already"):
            prepare(tmp_path, source)
    prepare(tmp_path, source)


def test_full_disk_is_said(tmp_path):
    source = folder(tmp_path / "photos", some())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"mine-t.* cannot be written: .*too large"):
            prepare(tmp_path, source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    prepare(tmp_path, source)
    assert records(tmp_path) == expected(some())


BAD = {
    "no such source": (["nowhere"], "there is no nowhere"),
    "no split": (["photos/train"], "which split it is: train="),
    "unknown flag": (["photos", "--on_bda=skip"], 'did you mean "--on_bad"'),
    "unknown choice": (["photos", "--on_bad=skp"], "invalid choice"),
    "nowhere to write": (["photos", "--data_dir=labels.txt"], "cannot be made: Not a"),
    "bad name": (["photos", "--name=My-Set"], "expected small letters"),
    "bad number": (["photos", "--num_shards=0"], "expected 1 or more"),
    "labels that nobody reads": (["photos", "--labels=labels.txt"], "has no effect"),
    "cut tar": (["train=cut.tar"], "cannot be read as a tar file"),
    "flat without labels": (["train=photos/train/a"], "give their labels with"),
    "unknown class": (["photos", "--classes=classes.txt"], "has not: b"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_message(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "photos", some(4, 0))
    whole = tar(tmp_path / "whole.tar", under(some(4, 0), "train/"))
    (tmp_path / "cut.tar").write_bytes(whole[:2000])
    (tmp_path / "labels.txt").write_text("a\n")
    (tmp_path / "classes.txt").write_text("a\nc\n")
    arguments, message = BAD[case]
    common = ["prepare", "--data_dir=data", "--name=mine", "--num_workers=1"]
    assert command.main([*common, *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("error:") == 1


def test_memory_of_an_image_is_bounded():
    """Columns of numbers and names: ~70 bytes an image and its name."""
    n = 10_000
    names = [f"n01440764/n01440764_{i}.JPEG" for i in range(n)]
    items = sources.in_container(
        "/x.tar",
        names,
        [1] * n,
        sources.Labels.of_class("a", n),
        offsets=[0] * n,
        times=[0] * n,
    )
    columns = [items.container, items.names, items.offsets, items.sizes, items.times]
    columns += items.labels[:2]
    assert sum(c.nbytes for c in columns) <= n * (44 + len(max(names, key=len)))


@pytest.mark.parametrize("size", [24, 80, 96, 104, 140, 200])
@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_a_full_disk_at_any_moment(tmp_path, file_format, size):
    """While records are written, when they are closed, and in the last small files."""
    source = folder(tmp_path / "photos", some(40, 0))
    data = tmp_path / "data"
    data.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(data)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    said = ""
    try:
        prepare(tmp_path, source, f"--file_format={file_format}")
    except UserError as error:
        said = str(error)
    finally:
        subprocess.run(["umount", "-l", str(data)], check=True)
    assert "space" in said or not said


def test_what_was_unpacked_is_reported_by_its_source(tmp_path):
    """The unpacked file is gone when the report is read."""
    images = {f"{c}/0.bmp": encoded(i, "BMP") for i, c in enumerate("ab")}
    tar(tmp_path / "whole.tar", images)
    packed = tmp_path / "whole.tar.gz"
    packed.write_bytes(gzip.compress((tmp_path / "whole.tar").read_bytes()))
    prepare(tmp_path, f"train={packed}")
    written = (tmp_path / "data/mine/1.0.0/reencoded.jsonl").read_text()
    lines = [json.loads(line) for line in written.splitlines()]
    assert [line["where"] for line in lines] == [str(packed)] * 2


@pytest.mark.parametrize("data_dir", ["gs://x", "s3://y", "https://z/a", " "])
def test_datasets_are_written_to_this_machine(tmp_path, monkeypatch, data_dir):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="expected a folder on this machine"):
        command.parse(["photos", "--name=mine", f"--data_dir={data_dir}"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flag", ["num_workers=1000000", "max_pixels=0", "num_shards=1000000"]
)
def test_numbers_have_an_upper_bound(flag):
    name, _, value = flag.partition("=")
    with pytest.raises(UserError, match=f"--{name}={value}: expected 1 or more, and"):
        command.parse(["photos", "--name=mine", "--data_dir=data", f"--{flag}"])


def test_images_above_the_limit_of_pixels(tmp_path):
    source = folder(tmp_path / "photos", some(4, 0))
    with pytest.raises(UserError, match="do not decode"):
        prepare(tmp_path, source, "--max_pixels=1")
    prepare(tmp_path, source)
    assert records(tmp_path) == expected(some(4, 0))
