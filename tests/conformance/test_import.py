"""Importing what hostile people made: root's command over a corpus, the sandbox with probes in it, servers that lie.

No guest runs. A name server is not asked and no packet leaves this machine: the servers are on loopback, and that
nothing is sent to other addresses is what `no_other_address` sees to.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from haneul.errors import SettingsError
from haneul.images.importing import fetch, importer, sandbox
from haneul.images.importing.formats import GIB, MIB, parse
from haneul.images.importing.importer import Bounds, Wanted, import_image
from haneul.images.store import ImageStore
from tests.unit.hostile import BOOT_SECTOR, CLUSTER, DISK, GOOD, HOSTILE, compressed_bomb, put, qcow2, vhd, vmdk

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="importing needs root"),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
    pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed"),
]
Tally = Callable[[str], None]
BOUNDS = Bounds(256 * GIB, 64 * MIB)


def quiet(_: str) -> None:
    pass


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def bring(store: ImageStore, source: str | Path, format: str, bounds: Bounds = BOUNDS, **more: Any) -> Path:
    """The imported disk."""
    again = more.pop("again", False)
    wanted = Wanted(str(source), more.pop("name", "hostile"), format, **more)
    import_image(store, wanted, bounds, quiet, again=again)
    return store.directory / wanted.name / "disk.qcow2"


def nothing_is_left(store: ImageStore) -> bool:
    return not store.directory.exists() or not list(store.directory.iterdir())


# --- the corpus --------------------------------------------------------------------------------------------


def broken_inside() -> dict[str, tuple[str, bytes, str]]:
    """What is right in every header and wrong behind it: for QEMU, in the sandbox, to find."""
    copied, far = 1 << 63, 1 << 50
    return {
        "L1 entry beyond the end": ("qcow2", put(qcow2(), 3 * CLUSTER, ">Q", copied | far), "could not"),
        "L1 entry not at a cluster": ("qcow2", put(qcow2(), 3 * CLUSTER, ">Q", copied | 4 * CLUSTER | 512), "could not"),
        "L2 entry not at a cluster": ("qcow2", put(qcow2(), 4 * CLUSTER, ">Q", copied | 5 * CLUSTER | 512), "could not"),
        "first cluster not there": ("qcow2", put(qcow2(), 4 * CLUSTER, ">Q", 0), "no boot record"),
        "first cluster is zero": ("qcow2", put(qcow2(), 4 * CLUSTER, ">Q", 1), "no boot record"),
        "compressed cluster of noise": ("qcow2", put(qcow2(), 4 * CLUSTER, ">Q", 1 << 62 | 3 * CLUSTER), "could not"),
        "feature names that end": ("qcow2", put(qcow2(), 5 * CLUSTER + 510, "2s", b"\0\0"), "no boot record"),
        "a boot record without code": ("qcow2", put(qcow2(), 5 * CLUSTER, "2s", b"\0\0"), "no code"),
        "snapshot table of noise": ("qcow2", put(qcow2(), 60, ">IQ", 16, 6 * CLUSTER) + b"\xff" * CLUSTER, "could not"),
        "grain beyond the end": ("vmdk", put(vmdk(), 22 * 512, "<I", 0x7FFFFFFF), "refused"),
        "grain table beyond the end": ("vmdk", put(vmdk(), 21 * 512, "<I", 0x7FFFFFFF), "could not"),
        "vmdk without its first grain": ("vmdk", put(vmdk(), 22 * 512, "<I", 0), "no boot record"),
        "block beyond the end": ("vhd", put(vhd(), 1536, ">I", 0x7FFFFFFF), "refused"),
        "vhd without its first block": ("vhd", put(vhd(), 1536, ">I", 0xFFFFFFFF), "no boot record"),
    }  # fmt: skip


def test_no_hostile_image_is_let_through(store: ImageStore, tmp_path: Path, record_tally: Tally) -> None:
    corpus = {name: (declared, make(), why) for name, (declared, make, why) in HOSTILE.items()} | broken_inside()
    let_through, wrong = [], {}
    for name, (declared, image, why) in corpus.items():
        file = tmp_path / "given"
        file.write_bytes(image)
        try:
            bring(store, file, declared)
            let_through.append(name)
        except SettingsError as refusal:
            if why not in str(refusal) and "--format is one of" not in str(refusal):
                wrong[name] = str(refusal)
        assert nothing_is_left(store), f"{name}: {list(store.directory.rglob('*'))}"
    record_tally(f"hostile images: {len(corpus)} tried, {len(let_through)} let through")
    assert not let_through
    assert not wrong


def test_good_images_are_imported(store: ImageStore, tmp_path: Path) -> None:
    for name, (declared, make, size) in GOOD.items():
        file = tmp_path / "given"
        file.write_bytes(make())
        disk = bring(store, file, declared, again=True, user="ec2-user", description=name)
        plain = tmp_path / "plain"
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(disk), str(plain)], check=True)
        assert plain.read_bytes() == DISK.ljust(size, b"\0"), name
        (found,) = store.catalogue()
        assert (found.disk, found.user, found.description, found.imported) == ("hostile", "ec2-user", name, declared)
        about = json.loads((disk.parent / "image.json").read_text())
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert about["generations"] == ["emulated", "hvm"]
        assert about["imported"] == {"format": declared, "sha256": digest, "source": "given"}
        assert sorted(path.name for path in disk.parent.iterdir()) == ["disk.qcow2", "image.json"]
        assert disk.stat().st_mode & 0o7777 == 0o644 and disk.stat().st_uid == 0 and disk.stat().st_gid == 0
        assert [path.name for path in store.directory.iterdir()] == ["hostile"]


def test_what_the_parser_accepts_qemu_understands_in_the_same_way(tmp_path: Path, record_tally: Tally) -> None:
    """Damaged headers that are accepted: QEMU refuses them too, or sees the same disk and no other file."""
    given, accepted, looks = tmp_path / "given", 0, []
    for name, (declared, make, _) in GOOD.items():
        if declared == "raw":
            continue
        good, chance = make(), random.Random(name)
        for _ in range(600):
            damaged = bytearray(good)
            for _ in range(chance.randint(1, 3)):
                place = chance.choice((chance.randrange(112), chance.randrange(1100), chance.randrange(-1024, 0)))
                damaged[place] = chance.choice((0, 1, 2, 0xFF, chance.randrange(256)))
            if bytes(damaged) == good:
                continue
            given.unlink(missing_ok=True)
            given.write_bytes(damaged)
            try:
                with given.open("rb") as file:
                    header = parse(file, declared, 256 * GIB)
            except SettingsError:
                continue
            accepted += 1
            if accepted % 4 == 0:  # a look takes as long as fifty refusals
                looks.append(_seen_otherwise(given, tmp_path / "output", header))
    read = [one for one in looks if one is not None]
    differing = [one for one in read if one]
    record_tally(
        f"damaged headers that are accepted: {len(looks)} shown to QEMU, {len(read)} read by it, "
        f"{len(differing)} seen otherwise"
    )
    assert len(read) > 50
    assert not differing


def _seen_otherwise(given: Path, output: Path, header: importer.Header) -> list[str] | None:
    """What QEMU sees beside or instead of the header; None if it refuses."""
    source = f"{importer._DRIVERS[header.format]},file.driver=file,file.filename=/input"
    words = ["qemu-img", "info", "--output=json", "--image-opts", source]
    try:
        said = sandbox.run(words, read=given, write=output, limits=sandbox.Limits(MIB, 20, 30)).decode()
    except sandbox.ConfinedError:
        return None
    found = json.loads(said[said.index("{\n") :])
    extents = found.get("format-specific", {}).get("data", {}).get("extents", [])
    others = [one for one in ("backing-filename", "full-backing-filename", "data-file") if one in said]
    others += [one["filename"] for one in extents if one["filename"] != "/input"]
    same = found["virtual-size"] == header.virtual_size
    return others if same else [*others, f"{header}: {found['virtual-size']}"]


# --- secrets -----------------------------------------------------------------------------------------------


def test_no_secret_gets_in_even_if_the_parser_is_fooled(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_tally: Tally
) -> None:
    """Headers that name other files go past the parser here: then there is only the sandbox."""
    secret = tmp_path / "secret"
    secret.write_bytes(BOOT_SECTOR[:2] + b"THE-SECRET" * 50 + BOOT_SECTOR[502:] + b"THE-SECRET" * 60000)
    tmp_path.chmod(0o755), secret.chmod(0o644)
    naming = []
    for target in (str(secret), "/etc/shadow", "/input", "/output", "/proc/self/environ"):
        for kind in (
            "-f qcow2 -b {} -F raw",
            '-f qcow2 -b json:{{"driver":"raw","file":{{"driver":"file","filename":"{}"}}}} -F raw',
        ):
            naming.append(("qcow2", ["qemu-img", "create", "-q", "-u", *kind.format(target).split(), "GIVEN", "1M"]))
    for target in (str(secret), "/etc/shadow"):
        naming.append(("vmdk", f'RW 1024 FLAT "{target}" 0'))
    letting = parse

    def fooled(file: Any, declared: str, limit: int) -> Any:
        try:
            return letting(file, declared, limit)
        except SettingsError:
            return importer.Header(declared, MIB)

    monkeypatch.setattr(importer.formats, "parse", fooled)
    got_in = 0
    for declared, how in naming:
        given = tmp_path / "given"
        given.unlink(missing_ok=True)
        if isinstance(how, list):
            subprocess.run([str(given) if word == "GIVEN" else word for word in how], check=True)
        else:
            given.write_text(
                f'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\n{how}\n'
            )
        try:
            disk = bring(store, given, declared, again=True)
        except SettingsError as refusal:
            assert "THE-SECRET" not in str(refusal) and "root:" not in str(refusal)
            continue
        got_in += b"THE-SECRET" in disk.read_bytes() or b"root:" in disk.read_bytes()
    record_tally(f"files named by headers that pass the parser: {len(naming)} tried, {got_in} read")
    assert not got_in


# --- the sandbox -------------------------------------------------------------------------------------------

# Each ends with 0 if what must not be possible was possible.
PROBES = {
    "read /etc/shadow": "open('/etc/shadow').read()",
    "read /etc/passwd": "open('/etc/passwd').read()",
    "see /var/lib/haneul": "os.listdir('/var/lib/haneul')",
    "see /root": "os.listdir('/root')",
    "see /home": "os.listdir('/home')",
    "see /tmp": "os.listdir('/tmp')",
    "see /run": "os.listdir('/run')",
    "see /proc": "os.listdir('/proc')",
    "read /proc/1/environ": "open('/proc/1/environ').read()",
    "read the kernel's log": "assert ctypes.CDLL(None).klogctl(3, ctypes.create_string_buffer(100), 100) > 0",
    "see devices": "assert set(os.listdir('/dev')) - {'null'}",
    "make a device": "os.mknod('/output2', 0o600 | stat.S_IFBLK, os.makedev(8, 0))",
    "write to the input": "open('/input', 'r+b').write(b'x')",
    "change the input's mode": "os.chmod('/input', 0o777)",
    "remove the input": "os.unlink('/input')",
    "replace the output by a link": "os.unlink('/output'); os.symlink('/etc/shadow', '/output')",
    "make another file": "open('/more', 'w')",
    "make a directory": "os.mkdir('/more')",
    "write below /usr": "open('/usr/bin/haneul-was-here', 'w')",
    "write to /dev": "open('/dev/more', 'w')",
    "remount writable": "assert not ctypes.CDLL(None).mount(b'none', b'/', None, 4096 | 32, None)",
    "mount a tmpfs": "assert not ctypes.CDLL(None).mount(b'none', b'/dev', b'tmpfs', 0, None)",
    "a user namespace": "assert not ctypes.CDLL(None).unshare(0x10000000)",
    "a user namespace by clone": "assert ctypes.CDLL(None).syscall(56, 0x10000000 | 17, 0, 0, 0, 0) >= 0",
    "clone3": "a = ctypes.create_string_buffer(88); assert ctypes.CDLL(None).syscall(435, a, 88) >= 0",
    "a network of its own": "assert not ctypes.CDLL(None).unshare(0x40000000)",
    "a socket": "socket.socket()",
    "a connection to loopback": "socket.create_connection(('127.0.0.1', PORT), 2)",
    "a unix socket": "socket.socket(socket.AF_UNIX)",
    "an abstract socket": "socket.socket(socket.AF_UNIX).bind('\\0x')",
    "a raw socket": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "setuid to root": "os.setuid(0)",
    "setgid to root": "os.setgid(0)",
    "to be root": "assert 0 in (os.getuid(), os.geteuid(), os.getgid(), os.getegid())",
    "groups": "assert [g for g in os.getgroups() if g != os.getgid()]",
    "setgroups": "os.setgroups([0])",
    "su": "assert subprocess.run(['/usr/bin/su', '-c', 'true'], stdin=subprocess.DEVNULL).returncode == 0",
    "capabilities": "assert capabilities()",
    "new privileges": "assert ctypes.CDLL(None).prctl(39, 0, 0, 0, 0) == 0",
    "ptrace its parent": "assert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0",
    "kill the first process": "os.kill(1, 9); time.sleep(1); assert False",
    "kill a process outside": "os.kill(OUTSIDE, 9)",
    "see the host's name": "assert os.uname().nodename == 'HOST'",
    "change the host's name": "socket.sethostname('x')",
    "the host's shared memory": "assert ctypes.CDLL(None).shmget(KEY, 4096, 0) >= 0",
    "fork many": "[os.fork() or time.sleep(3) or os._exit(0) for _ in range(200)]",
    "many threads": "[threading.Thread(target=time.sleep, args=(3,), daemon=True).start() for _ in range(200)]",
    "much memory": "bytearray(4 << 30)",
    "more files than allowed": "[os.open('/input', 0) for _ in range(200)]",
    "higher limits": "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 40, 1 << 40))",
    "a core file": "assert resource.getrlimit(resource.RLIMIT_CORE)[1]",
    "write beyond the limit": "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); f = open('/output', 'wb'); f.truncate(1 << 30)",
    "write far behind": "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); os.pwrite(os.open('/output', 1), b'x', 1 << 30)",
    "the environment": "assert set(os.environ) - {'PATH', 'LC_ALL', 'PWD', 'LC_CTYPE'}",
    "inherited descriptors": "assert [n for n in range(3, 1024) if is_open(n)]",
    "bpf": "assert ctypes.CDLL(None).syscall(321, 0, 0, 0) >= 0 or ctypes.get_errno() not in (1, 0)",
    "io_uring": "assert ctypes.CDLL(None).syscall(425, 8, ctypes.create_string_buffer(120)) >= 0",
    "userfaultfd": "assert ctypes.CDLL(None).syscall(323, 1) >= 0",
    "keys": "assert ctypes.CDLL(None).syscall(250, 0, -3, 1) >= 0",
    "chroot": "os.chroot('/usr')",
    "a file handle": "assert ctypes.CDLL(None).syscall(304, -100, ctypes.create_string_buffer(64), 0) >= 0",
    "the x32 calls": "assert ctypes.CDLL(None).syscall(0x40000000 | 39) >= 0",
    "terminal input": "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSTI, b'x')",
    "set the clock": "time.clock_settime(time.CLOCK_REALTIME, time.time())",
    "a higher priority": "os.nice(-5)",
    "lock memory": "assert ctypes.CDLL(None).mlock(ctypes.create_string_buffer(1 << 20), 1 << 20) == 0",
}  # fmt: skip

PROLOGUE = """\
import ctypes, os, resource, signal, socket, stat, subprocess, sys, threading, time
def is_open(number):
    try: os.fstat(number)
    except OSError: return False
    return True
def capabilities():
    head, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capget(head, data) == 0
    return [one for one in data if one] + [n for n in range(41) if ctypes.CDLL(None).prctl(23, n, 0, 0, 0) == 1]
try:
    exec(sys.argv[1])
except BaseException as error:
    print("refused:", type(error).__name__, error, flush=True)
    os._exit(7)
os._exit(0)
"""


@pytest.fixture
def listening() -> Iterator[int]:
    """A port of loopback on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_nothing_gets_out_of_the_sandbox(
    tmp_path: Path, listening: int, record_tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "given"
    given.write_bytes(DISK)
    monkeypatch.setenv("A_SECRET", "of the environment")
    outside = subprocess.Popen(["sleep", "600"])
    key = 0x6861 + os.getpid()
    subprocess.run(
        [sys.executable, "-c", f"import ctypes; assert ctypes.CDLL(None).shmget({key}, 4096, 0o1666) >= 0"], check=True
    )
    values = {"PORT": listening, "OUTSIDE": outside.pid, "HOST": os.uname().nodename, "KEY": key}
    limits = sandbox.Limits(8 * MIB, cpu_seconds=20, seconds=30)
    succeeded, silent = [], []
    try:
        for name, probe in PROBES.items():
            for word, value in values.items():
                probe = probe.replace(word, str(value))
            try:
                sandbox.run(["python3", "-ISc", PROLOGUE, probe], read=given, write=tmp_path / "output", limits=limits)
                succeeded.append(name)
            except sandbox.ConfinedError as refusal:
                # Ended by the filter (x32), or refused as the prologue says: not for another fault of the probe.
                if "refused:" not in str(refusal) and "signal" not in str(refusal):
                    silent.append(f"{name}: {refusal}")
            assert (tmp_path / "output").stat().st_size <= 8 * MIB
        assert outside.poll() is None
    finally:
        outside.kill()
        outside.wait()
        subprocess.run(["ipcrm", "-M", str(key)], check=False)
    assert given.read_bytes() == DISK
    assert not Path("/usr/bin/haneul-was-here").exists()
    record_tally(f"sandbox probes: {len(PROBES)} tried, {len(succeeded)} succeeded")
    assert not succeeded
    assert not silent


def test_the_probes_would_succeed_outside(tmp_path: Path) -> None:
    """A probe that could never succeed would prove nothing."""
    for name in ("read /etc/shadow", "a socket", "a user namespace", "capabilities", "inherited descriptors"):
        probe = PROBES[name]
        more = {"pass_fds": [os.open("/dev/null", 0)]} if name == "inherited descriptors" else {}
        done = subprocess.run([sys.executable, "-ISc", PROLOGUE, probe], check=False, capture_output=True, **more)
        assert done.returncode == 0, (name, done.stdout)


def test_what_takes_too_long_is_ended(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_bytes(DISK)
    for words, limits, why in (
        ("while :; do :; done", sandbox.Limits(MIB, 1, 60), "for the time that it took"),
        ("exec >&- 2>&-; sleep 60", sandbox.Limits(MIB, 60, 1), "ended after 1 s"),
        ("yes", sandbox.Limits(MIB, 60, 1), "ended after 1 s"),
        ("yes > /output", sandbox.Limits(MIB, 60, 60), "grew beyond the limit"),
    ):
        began = time.monotonic()
        with pytest.raises(sandbox.ConfinedError, match=why):
            sandbox.run(["sh", "-c", words], read=given, write=tmp_path / "output", limits=limits)
        assert time.monotonic() - began < 20
        while _processes_of(sandbox.uid()):
            assert time.monotonic() - began < 20
            time.sleep(0.01)


def test_nobody_writes_after_the_end(tmp_path: Path) -> None:
    """A program that leaves a process behind: when the sandbox has ended, so has that, and what is checked stays."""
    given = tmp_path / "given"
    given.write_bytes(DISK)
    leaving = (
        "import os, time\nif os.fork(): time.sleep(0.1); os._exit(0)\nos.setsid(); os.closerange(1, 9)\n"
        "fd = os.open('/output', os.O_WRONLY)\nwhile True: os.pwrite(fd, b'%d' % time.monotonic_ns(), 0)"
    )
    limits = sandbox.Limits(MIB, 20, 30)
    for _ in range(15):
        sandbox.run(["python3", "-ISc", leaving], read=given, write=tmp_path / "output", limits=limits)
        found = (tmp_path / "output").read_bytes()
        assert not _processes_of(sandbox.uid())
        assert found and (tmp_path / "output").read_bytes() == found


def _processes_of(uid: int) -> list[str]:
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = status.read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if f"\nUid:\t{uid}\t" in lines and "State:\tZ" not in lines:
            found.append(status.parent.name)
    return found


# --- files -------------------------------------------------------------------------------------------------


def test_only_a_regular_file_is_read(store: ImageStore, tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.write_bytes(DISK)
    link, fifo, folder = tmp_path / "link", tmp_path / "fifo", tmp_path / "folder"
    link.symlink_to(real), os.mkfifo(fifo), folder.mkdir()
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "socket"))
    for given, why in (
        (link, "symbolic link"), (fifo, "no regular file"), (folder, "no regular file"), (tmp_path / "socket", "socket"),
        ("/dev/zero", "no regular file"), ("/dev/null", "no regular file"), (tmp_path / "nothing", "No such file"),
        ("/proc/self/mem", "refused|empty|changed|could not"), ("/proc/kmsg", "."),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=why):
            bring(store, given, "raw")
        assert nothing_is_left(store)
    unix.close()


def test_a_file_that_grows_or_is_too_large(store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "given"
    given.write_bytes(DISK.ljust(4 * MIB, b"\1"))
    with pytest.raises(SettingsError, match="import_max_file_gib"):
        bring(store, given, "raw", Bounds(GIB, 4 * MIB - 1))
    real = fetch._write

    def growing(descriptor: int, piece: bytes) -> None:
        real(descriptor, piece)
        with given.open("ab") as more:
            more.write(b"\2" * MIB)

    monkeypatch.setattr(fetch, "_write", growing)
    with pytest.raises(SettingsError, match="changed while it was copied"):
        bring(store, given, "raw")
    assert nothing_is_left(store)


def test_a_file_that_is_changed_after_its_check(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is converted is what was checked."""
    given, real = tmp_path / "given", importer._convert
    given.write_bytes(DISK)

    def late(*arguments: Any) -> None:
        given.write_bytes(b"THE-SECRET" * MIB)
        real(*arguments)

    monkeypatch.setattr(importer, "_convert", late)
    disk = bring(store, given, "raw")
    assert b"THE-SECRET" not in disk.read_bytes()


def test_a_wrong_digest(store: ImageStore, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_bytes(b"not even an image")
    with pytest.raises(SettingsError, match="not the file that was meant"):
        bring(store, given, "raw", sha256="0" * 64)
    given.write_bytes(DISK)
    assert bring(store, given, "raw", sha256=hashlib.sha256(DISK).hexdigest().upper()).exists()


def test_bombs(store: ImageStore, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_bytes(compressed_bomb(8 * GIB))
    assert given.stat().st_size < MIB
    with pytest.raises(SettingsError, match=r"grew beyond the limit"):
        bring(store, given, "qcow2", Bounds(256 * GIB, 32 * MIB))
    with pytest.raises(SettingsError, match="above the limit"):
        bring(store, given, "qcow2", Bounds(4 * GIB, 32 * MIB))
    # A disk of 200 GiB with one sector in it is no bomb.
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(given), "200G"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0x55 0 512", str(given)], check=True, capture_output=True)
    with pytest.raises(SettingsError, match="no boot record"):
        bring(store, given, "qcow2")
    assert nothing_is_left(store)


# --- names -------------------------------------------------------------------------------------------------


def test_names(store: ImageStore, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_bytes(DISK)
    for name in (
        "",
        "ab",
        ".abc",
        "..",
        "-abc",
        "a/bc",
        "../abc",
        "a bc",
        "abc\n",
        "a\0bc",
        "ä" * 5,
        "a" * 101,
        "abc,d",
    ):
        with pytest.raises(SettingsError, match="no name of an image"):
            bring(store, given, "raw", name=name)
    with pytest.raises(SettingsError, match="name of a recipe"):
        bring(store, given, "raw", name="tiny")
    for user in ("", "-x", "a b", "$(id)", "root\n", "A"):
        with pytest.raises(SettingsError, match="no name of a user"):
            bring(store, given, "raw", user=user)
    with pytest.raises(SettingsError, match="description"):
        bring(store, given, "raw", description="\x1b[2J")
    assert nothing_is_left(store)
    first = bring(store, given, "raw", name="a" * 100)
    with pytest.raises(SettingsError, match="--again replaces it"):
        bring(store, given, "raw", name="a" * 100)
    inode = first.stat().st_ino
    assert bring(store, given, "raw", name="a" * 100, again=True).stat().st_ino != inode
    with pytest.raises(SettingsError, match="no boot record"):
        given.write_bytes(b"\0" * MIB)
        bring(store, given, "raw", name="a" * 100, again=True)
    assert store.has("a" * 100), "a failed import leaves the old image"


def test_sizes(store: ImageStore, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_bytes(DISK)
    bring(store, given, "raw", size_gib=7)
    assert store.catalogue()[0].size_gib == 7
    subprocess.run(["qemu-img", "resize", "-q", "-f", "raw", str(given), "1025M"], check=True)
    with pytest.raises(SettingsError, match="too small: the disk has 2 GiB"):
        bring(store, given, "raw", Bounds(4 * GIB, 4 * GIB), again=True, size_gib=1)


# --- the command -------------------------------------------------------------------------------------------


def command(data: Path, *words: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HANEUL_")}
    return subprocess.Popen(
        [sys.executable, "-m", "haneul", "image", *words],
        env=kept | {"HANEUL_DATA": str(data)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    said, complained = process.communicate(timeout=120)
    return process.returncode, said, complained


def test_the_command(tmp_path: Path) -> None:
    given = tmp_path / "given.raw"
    given.write_bytes(DISK)
    code, said, complained = finished(command(tmp_path, "import", str(given), "--name", "mine", "--format", "raw"))
    assert (code, complained) == (0, "") and said.startswith("mine is ami-0") and said.count("\n") == 1
    code, said, _ = finished(command(tmp_path, "list"))
    assert "mine" in said and "Imported from given.raw" in said
    code, said, _ = finished(command(tmp_path, "list", "--json"))
    assert json.loads(said)[0]["imported"] == "raw"
    code, _, complained = finished(command(tmp_path, "import", str(given), "--name", "mine", "--format", "raw"))
    assert code == 3 and "--again replaces it" in complained
    (tmp_path / "volumes").mkdir()
    base = tmp_path / "images" / "mine" / "disk.qcow2"
    volume = tmp_path / "volumes" / "vol-1.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(volume)], check=True)
    code, _, complained = finished(
        command(tmp_path, "import", str(given), "--name", "mine", "--format", "raw", "--again")
    )
    assert code == 3 and "vol-1" in complained
    code, _, complained = finished(command(tmp_path, "import", str(given), "--name", "other", "--format", "qcow2"))
    assert code == 3 and "say --format raw" in complained
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["mine"]


def test_killed_at_any_moment_it_leaves_nothing_after_the_next(tmp_path: Path) -> None:
    big, small = tmp_path / "big.raw", tmp_path / "small.raw"
    small.write_bytes(DISK)
    with big.open("wb") as file:
        file.write(BOOT_SECTOR)
        for _ in range(192):
            file.write(os.urandom(MIB))
        file.truncate(256 * MIB)
    images, seen = tmp_path / "images", set()
    for step in range(6):
        importing = command(tmp_path, "import", str(big), "--name", "big-one", "--format", "raw")
        work = images / ".building-big-one" / "work"
        # A moment of each kind: at the copy, at the conversion.
        wanted = work / ("input" if step % 2 == 0 else "disk.qcow2")
        deadline = time.monotonic() + 60
        while not wanted.exists() and importing.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(0.05 * (step // 2))
        seen.add(tuple(sorted(path.name for path in work.iterdir())) if work.exists() else ())
        importing.send_signal(signal.SIGKILL)
        importing.communicate()
        deadline = time.monotonic() + 10
        while _processes_of(sandbox.FIRST_UID + importing.pid % 65536):
            assert time.monotonic() < deadline, "the sandbox outlives its importer"
            time.sleep(0.01)
        if step == 5:
            assert (images / ".building-big-one").exists()
    assert len(seen) > 1, seen
    assert finished(command(tmp_path, "import", str(small), "--name", "small", "--format", "raw"))[0] == 0
    assert [path.name for path in images.iterdir()] == ["small"]


def test_two_imports_of_one_name(tmp_path: Path) -> None:
    given = tmp_path / "given.raw"
    given.write_bytes(DISK)
    both = [command(tmp_path, "import", str(given), "--name", "same", "--format", "raw") for _ in range(3)]
    assert sorted(finished(one)[0] for one in both) == [0, 3, 3]
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["same"]


def test_killed_between_the_renames(store: ImageStore, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_bytes(DISK)
    bring(store, given, "raw", name="old-one")
    (store.directory / "old-one").rename(store.directory / ".old-old-one")
    bring(store, given, "raw", name="another")
    assert sorted(path.name for path in store.directory.iterdir()) == ["another", "old-one"]


# --- servers -----------------------------------------------------------------------------------------------


@contextmanager
def serving(answer: Callable[[socket.socket, str, int], None]) -> Iterator[str]:
    """A server on loopback that says what `answer` says, to (connection, path, port)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def one(connection: socket.socket) -> None:
            with connection:
                asked = b""
                try:
                    while b"\r\n\r\n" not in asked:
                        piece = connection.recv(4096)
                        if not piece:
                            return
                        asked += piece
                    answer(connection, asked.split()[1].decode(), port)
                except OSError:
                    pass

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{port}"
        server.shutdown(socket.SHUT_RDWR)


def redirect(connection: socket.socket, to: str) -> None:
    connection.sendall(f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode())


def page(connection: socket.socket, head: str, body: bytes = b"") -> None:
    connection.sendall(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + body)


@pytest.fixture
def no_other_address(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Fails for a connection that is not to loopback, before it is made."""
    real, asked = fetch._connect, []

    def only_loopback(address: fetch.Address, port: int, seconds: float) -> socket.socket:
        asked.append(str(address))
        assert address.is_loopback, address
        return real(address, port, seconds)

    monkeypatch.setattr(fetch, "_connect", only_loopback)
    yield asked
    assert all(ipaddress.ip_address(one).is_loopback for one in asked), asked


FORBIDDEN = (
    "file:///etc/shadow", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x", "data:text/plain,x", "javascript:x",
    "http://169.254.169.254/latest/meta-data/", "http://[fe80::1]/x", "http://[::ffff:169.254.169.254]/x",
    "http://[fd00:ec2::254]/latest/", "http://[64:ff9b::a9fe:a9fe]/x", "http://[::169.254.169.254]/x",
    "http://[2002:a9fe:a9fe::1]/x", "http://2852039166/x", "http://0xa9fea9fe/x", "http://0251.0376.0251.0376/x",
    "http://169.254.43518/x", "http://100.100.100.200/x", "http://168.63.129.16/x", "http://0.0.0.0/x",
    "http://[::]/x", "http://224.0.0.1/x", "http://user:word@127.0.0.1/x", "http:///x", "http://127.0.0.1:0/x",
    "http://127.0.0.1:99999/x", "http://[::1/x", "http://127.0.0.1/a b", "http://127.0.0.1/\xe4", "//169.254.169.254/x",
    "http://127.0.0.1\\@169.254.169.254/x", "http://169.254.169.254#@127.0.0.1/", "http://a.invalid\r\nX: y/",
)  # fmt: skip


@pytest.mark.usefixtures("no_other_address")
def test_redirects_lead_nowhere_else(store: ImageStore, record_tally: Tally) -> None:
    followed = []

    def answer(connection: socket.socket, path: str, port: int) -> None:
        if path.strip("/").isdigit():
            redirect(connection, FORBIDDEN[int(path.strip("/"))])

    with serving(answer) as url:
        for number, forbidden in enumerate(FORBIDDEN):
            for given in (f"{url}/{number}", forbidden):
                if given.startswith("//") or "://" not in given:
                    continue
                try:
                    bring(store, given, "raw")
                    followed.append(given)
                except SettingsError as refusal:
                    assert "root:" not in str(refusal)
            assert nothing_is_left(store)
    record_tally(f"URLs and redirects to forbidden places: {len(FORBIDDEN)} tried, {len(followed)} followed")
    assert not followed


def test_every_address_of_a_name_is_checked(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, no_other_address: list[str]
) -> None:
    """Also of a name that has a good address first; and it is asked for its addresses once."""
    answers = [["127.0.0.1", "169.254.169.254"], ["169.254.169.254"], ["127.0.0.1"], ["fe80::1%1"]]
    calls = []

    def lying(host: str, port: int, **_: Any) -> list[Any]:
        calls.append(host)
        return [(0, 0, 0, "", (one, port)) for one in answers[len(calls) - 1]]

    monkeypatch.setattr(fetch.socket, "getaddrinfo", lying)
    for number in range(4):
        with pytest.raises(SettingsError, match="refused" if number == 2 else "link-local"):
            bring(store, "http://rebinding.example:9/x", "raw")
        assert len(calls) == number + 1
    assert no_other_address == ["127.0.0.1"]


def test_a_public_server_leads_to_no_private_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The public one is played: nothing is sent anywhere."""
    addresses = iter([ipaddress.ip_address("8.8.8.8"), ipaddress.ip_address("127.0.0.1")])

    @contextmanager
    def asked(*_: Any) -> Iterator[Any]:
        class Answer:
            status = 302

            def getheader(self, _: str) -> str:
                return "http://127.0.0.1/admin"

        yield Answer()

    monkeypatch.setattr(fetch, "_resolve", lambda _: next(addresses))
    monkeypatch.setattr(fetch, "_asked", asked)
    with pytest.raises(SettingsError, match="into a private network"):
        fetch.download("http://public.example/x", tmp_path / "x", MIB, quiet)


@pytest.mark.usefixtures("no_other_address")
def test_servers_that_lie(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "download", _hurried(fetch.download))

    def forever(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"\1" * 65536)

    def dripping(connection: socket.socket) -> None:
        for letter in "HTTP/1.1 200 OK\r\n" + "X: y\r\n" * 1000:
            connection.sendall(letter.encode())
            time.sleep(0.05)

    def answer(connection: socket.socket, path: str, port: int) -> None:
        size = len(DISK)
        match path:
            case "/circle":
                redirect(connection, f"http://127.0.0.1:{port}/circle")
            case "/never-ends":
                page(connection, "X: y")
                forever(connection)
            case "/never-ends-chunked":
                page(connection, "Transfer-Encoding: chunked", b"fffffff\r\n")
                forever(connection)
            case "/huge":
                page(connection, f"Content-Length: {1 << 50}")
                forever(connection)
            case "/short":
                page(connection, f"Content-Length: {size + 1}", DISK)
            case "/long":
                page(connection, f"Content-Length: {size - 1}", DISK)
            case "/negative":
                page(connection, "Content-Length: -1", DISK)
            case "/two-lengths":
                page(connection, f"Content-Length: 5\r\nContent-Length: {size}", DISK)
            case "/cut-chunks":
                page(connection, "Transfer-Encoding: chunked", b"100000\r\n" + DISK[:100])
            case "/packed":
                page(connection, f"Content-Encoding: gzip\r\nContent-Length: {size}", DISK)
            case "/drips":
                dripping(connection)
            case "/silent":
                time.sleep(20)
            case "/body-drips":
                page(connection, f"Content-Length: {size}")
                for _ in range(400):
                    connection.sendall(b"x")
                    time.sleep(0.05)
            case "/no-http":
                connection.sendall(b"220 ftp ready\r\n")
            case "/long-header":
                connection.sendall(b"HTTP/1.1 200 OK\r\nX: " + b"y" * (1 << 20))
            case "/many-headers":
                connection.sendall(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10000 + b"\r\n")
            case "/missing":
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            case "/part":
                connection.sendall(b"HTTP/1.1 206 Partial Content\r\nContent-Length: 0\r\n\r\n")

    refusals = {
        "circle": "more than 5 redirects", "never-ends": "more than", "never-ends-chunked": "more than",
        "huge": "import_max_file_gib", "short": "promised", "long": "no multiple of 512", "negative": "Content-Length",
        "two-lengths": "Content-Length", "cut-chunks": "HTTP", "packed": "packs its answer", "drips": "too long",
        "silent": "timed out", "body-drips": "too long|promised", "no-http": "HTTP", "long-header": "HTTP",
        "many-headers": "HTTP", "missing": "404", "part": "206",
    }  # fmt: skip
    with serving(answer) as url:
        for path, why in refusals.items():
            began = time.monotonic()
            with pytest.raises(SettingsError, match=why):
                bring(store, f"{url}/{path}", "raw")
            assert time.monotonic() - began < 15, path
            assert nothing_is_left(store), path


def _hurried(real: Callable[..., fetch.Copied]) -> Callable[..., fetch.Copied]:
    return lambda *given, **more: real(*given, **more, silence=1.0, seconds=4.0)


@pytest.mark.usefixtures("no_other_address")
def test_a_good_download(store: ImageStore) -> None:
    def answer(connection: socket.socket, path: str, port: int) -> None:
        if path == "/here?token=secret":
            redirect(connection, "there")
        elif path == "/there":
            page(connection, "Transfer-Encoding: chunked", b"%x\r\n" % len(DISK) + DISK + b"\r\n0\r\n\r\n")

    with serving(answer) as url:
        digest = hashlib.sha256(DISK).hexdigest()
        disk = bring(store, f"{url}/here?token=secret", "raw", sha256=digest)
        with pytest.raises(SettingsError, match="SHA-256"):
            bring(store, f"{url}/here?token=secret", "raw", name="other", sha256="1" * 64)
    about = (disk.parent / "image.json").read_text()
    assert "secret" not in about and f"{url}/here" in about
