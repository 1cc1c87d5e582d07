"""What a save leaves where it fails, is interrupted or killed, and what it can be written to."""

import errno
import gc
import io
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import onepass as op
from helpers import digest
from interrupting import PACKAGE, at_each_place
from onepass._files import read_from, write_atomically, write_text
from onepass._npz import write_npz

if os.name != "posix":
    pytest.skip("POSIX's files, signals and limits", allow_module_level=True)

import resource

N = 50


def stepped(steps):
    opt = op.Adam(np.zeros(N), lr=1.0)
    for _ in range(steps):
        opt.step(np.ones(N))
    return opt


def steps_of(path):
    """How many steps the optimizer had done that was saved here."""
    opt = op.Adam(np.zeros(N))
    opt.load(path)
    return opt.state_dict()["state"][0]["step"]


@pytest.fixture
def path(tmp_path):
    """The file of an optimizer that has done one step."""
    stepped(1).save(tmp_path / "run.npz")
    return tmp_path / "run.npz"


@pytest.fixture
def device(tmp_path):
    """Makes a device of Linux's memory driver of its own: a test may destroy it, none of /dev."""

    def make(name, minor):
        try:
            os.mknod(tmp_path / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
            (tmp_path / name).open("wb").close()
        except PermissionError:
            pytest.skip("making a device takes more rights")
        return tmp_path / name

    if sys.platform != "linux":
        pytest.skip("Linux's numbers of devices")
    return make


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def descriptors():
    return names("/proc/self/fd") if sys.platform == "linux" else []


# Interrupted


def check_interrupts(write, path, event, **options):
    """Check that the file is the old or the new one, what else is left, and what comes out."""
    old = path.read_bytes()
    write()
    new = path.read_bytes()
    assert new != old
    path.write_bytes(old)
    before, seen = descriptors(), set()
    for where, came_out in at_each_place(lambda: write, event=event, **options):
        assert type(came_out) is KeyboardInterrupt, where
        assert descriptors() == before, where
        assert names(path.parent) == [path.name], where
        content = path.read_bytes()
        assert content in (old, new), where
        seen.add(content)
        path.write_bytes(old)
    assert seen == {old, new}


def test_interrupted_at_every_line_of_a_save(path):
    """NumPy's included."""
    opt, ours = stepped(2), (PACKAGE, str(Path(np.__file__).parent))
    check_interrupts(lambda: opt.save(path), path, "line", within=ours)


@pytest.mark.parametrize("durable", [True, False])
def test_interrupted_at_every_instruction_of_a_write(path, durable):
    """A signal may arrive between the call that opens a file and whoever keeps it."""

    def write():
        write_atomically(path, lambda file: file.write(b"new"), durable=durable)

    check_interrupts(write, path, "opcode")


def check_descriptors(call):
    before, count = descriptors(), 0
    for where, came_out in at_each_place(lambda: call, event="opcode"):
        assert type(came_out) is KeyboardInterrupt, where
        assert descriptors() == before, where
        count += 1
    assert count


def test_interrupted_at_every_instruction_of_a_read(path):
    check_descriptors(lambda: read_from(path, lambda file: file.read()))


def test_interrupted_at_every_instruction_of_a_stream(device):
    null = device("null", 3)
    check_descriptors(lambda: write_atomically(null, lambda file: file.write(b"new")))
    assert stat.S_ISCHR(null.stat().st_mode)
    assert names(null.parent) == ["null"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupted_at_every_line_of_a_load(path):
    """(A ZipFile that was interrupted while it was made complains when it is destroyed.)"""
    opt, before = stepped(2), descriptors()
    one, two = digest(stepped(1).state_dict()), digest(opt.state_dict())
    for where, came_out in at_each_place(lambda: lambda: opt.load(path), at_most=4):
        assert type(came_out) is KeyboardInterrupt, where
        assert descriptors() == before, where
        assert digest(opt.state_dict()) in (one, two), where
    assert digest(opt.state_dict()) == one
    gc.collect()  # or the ZipFiles would complain in another test


# Failed and killed


def limited(nbytes):
    """Let no file grow beyond so many bytes; how a full disk looks, at a byte that we choose."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))


def offsets(size):
    return [0, 1, size - 1, *np.random.default_rng(0).integers(0, size, 4).tolist()]


def test_a_disk_that_is_full_leaves_the_old_file_and_no_litter(path):
    opt, old = stepped(2), path.read_bytes()
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = descriptors()
    for nbytes in offsets(len(old)):
        limited(nbytes)
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                opt.save(path)
        finally:
            limited(soft)
        assert path.read_bytes() == old
        assert names(path.parent) == [path.name]
        assert descriptors() == before
        del caught
    opt.save(path)
    assert steps_of(path) == 2


@pytest.mark.parametrize("which", ["file", "directory"])
def test_what_cannot_be_synced(path, which, monkeypatch):
    """A file: an error, and the old one stays. A directory: the new one is there, so no error."""
    fsync, old, before = os.fsync, path.read_bytes(), descriptors()

    def failing(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == (which == "directory"):
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    if which == "file":
        with pytest.raises(OSError, match="Input/output error"):
            stepped(2).save(path)
        assert path.read_bytes() == old
    else:
        stepped(2).save(path)
        assert steps_of(path) == 2
    assert names(path.parent) == [path.name]
    assert descriptors() == before


UNREADABLE = """
import os, sys, numpy as np, onepass as op
import zipfile  # numpy.load does, and whom this becomes may not read the interpreter's files
os.chdir(sys.argv[1])
if os.getuid() == 0:  # who may read everything
    os.chown(".", 65534, 65534)
    os.setgid(65534)
    os.setuid(65534)
opt = op.SGD(np.zeros(3), momentum=0.9)
opt.step(np.ones(3))
opt.save("run.npz")
os.chmod(".", 0o333)
opt.step(np.ones(3))
opt.save("run.npz")
os.chmod(".", 0o755)
assert os.listdir() == ["run.npz"]
other = op.SGD(np.zeros(3))
other.load("run.npz")
assert other.state_dict()["state"][0]["step"] == 2
"""


def test_a_folder_that_can_be_written_but_not_read(tmp_path):
    subprocess.run([sys.executable, "-c", UNREADABLE, str(tmp_path)], check=True)


DYING = """
import resource, signal, sys, numpy as np, onepass as op
opt = op.Adam(np.zeros(50), lr=1.0)
opt.step(np.ones(50))
opt.step(np.ones(50))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
opt.save(sys.argv[1])
"""


def killed_at(nbytes, path):
    """Return how a process ends that saves two steps and dies once a file has so many bytes."""
    command = [sys.executable, "-c", DYING, str(path), str(nbytes)]
    return subprocess.run(command, check=False).returncode


def test_killed_at_any_byte_of_a_save(path):
    """The file is the old one, to the byte, until the new one is whole."""
    old = path.read_bytes()
    for nbytes in offsets(len(old)):
        assert killed_at(nbytes, path) == -signal.SIGXFSZ
        assert path.read_bytes() == old
    assert killed_at(1 << 20, path) == 0
    assert steps_of(path) == 2


KILLED = """
import sys, numpy as np, onepass as op
params = [np.zeros(200_000, np.float32)]
opt = op.Adam(params, lr=1.0, eps=0.0, ema_decay=0.5)
while True:
    opt.step([np.ones(200_000, np.float32)])
    opt.save(sys.argv[1])
    print(flush=True)
"""


def test_killed_at_any_time_a_save_leaves_a_whole_file(tmp_path):
    path = tmp_path / "run.npz"
    rng = np.random.default_rng(0)
    for _ in range(10):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE
        ) as child:
            child.stdout.readline()
            time.sleep(rng.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
        opt = op.Adam([np.zeros(200_000, np.float32)])
        opt.load(path)
        state = opt.state_dict()["state"][0]
        # With the gradient 1 all along, the first moment of step t is 1 - 0.9^t, everywhere.
        assert np.ptp(state["exp_avg"]) == 0
        np.testing.assert_allclose(state["exp_avg"][0], 1 - 0.9 ** state["step"], rtol=1e-5)
        # And the parameter -t, so the average, which began as -1, is 1 - t - 2 / 2^t.
        t = state["step"]
        np.testing.assert_allclose(state["average"][0], 1 - t - 2 * 0.5**t, rtol=1e-5)


# What is written to


def test_mode_of_the_file_follows_the_umask_and_stays(path):
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    path.chmod(0o600)
    stepped(2).save(path)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("relative", [True, False])
def test_a_link_is_followed(path, relative, tmp_path):
    """Also one to a link, into another folder, and to a file that is not there yet."""
    links = tmp_path / "links"
    links.mkdir()
    latest, again = links / "latest.npz", links / "again.npz"
    latest.symlink_to("../run.npz" if relative else path)
    again.symlink_to("latest.npz" if relative else latest)
    for steps, link in enumerate((latest, again), start=2):
        stepped(steps).save(link)
        assert link.is_symlink()
        assert steps_of(path) == steps
        assert names(links) == ["again.npz", "latest.npz"]
    path.unlink()
    stepped(4).save(again)
    assert steps_of(path) == 4
    assert not path.is_symlink()


def test_a_link_that_leads_nowhere(path, tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match="symbolic links"):
        stepped(2).save(loop)
    assert loop.is_symlink()


def test_a_device_is_written_to(device):
    null, full = device("null", 3), device("full", 7)
    stepped(1).save(null)
    with pytest.raises(OSError, match="No space left"):
        stepped(1).save(full)
    assert names(null.parent) == ["full", "null"]
    assert all(stat.S_ISCHR(each.stat().st_mode) for each in (null, full))


def test_neither_fifo_nor_socket_is_replaced(tmp_path):
    """Nor is one waited for; whoever wants to can open it."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(str(tmp_path / "socket"))
        before = {each: each.stat().st_mode for each in tmp_path.iterdir()}
        for kind in ("fifo", "socket"):
            with pytest.raises(ValueError, match=f"^path: expected a file or a device .*{kind}'$"):
                stepped(1).save(tmp_path / kind)
    assert {each: each.stat().st_mode for each in tmp_path.iterdir()} == before
    read = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    with fifo.open("wb") as file:
        stepped(3).save(file)
    reader.join()
    assert steps_of(io.BytesIO(*read)) == 3


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError):
        stepped(1).save(tmp_path)
    with pytest.raises(FileNotFoundError):
        stepped(1).save(tmp_path / "none" / "run.npz")
    assert names(tmp_path) == []


def test_the_error_names_the_path_that_was_given(tmp_path, monkeypatch):
    """Not the file beside it that was to take its place."""
    path = tmp_path / "missing" / "x.npz"
    with pytest.raises(FileNotFoundError) as failed:
        stepped(1).save(path)
    assert failed.value.filename == str(path)

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="x.npz") as failed:
        stepped(1).save(tmp_path / "x.npz")
    assert failed.value.filename == str(tmp_path / "x.npz")


def test_a_name_as_long_as_names_may_be(tmp_path):
    path = tmp_path / ("ö" * 120 + ".npz")
    stepped(1).save(path)
    assert steps_of(path) == 1


def test_open_files(path, tmp_path):
    """They stay open, and what stood there before stays."""
    buffer = io.BytesIO(b"before")
    buffer.seek(6)
    stepped(2).save(buffer)
    assert buffer.getvalue()[:6] == b"before"
    assert buffer.getvalue()[6:] == saved_bytes(tmp_path, 2)
    buffer.seek(6)
    assert steps_of(buffer) == 2
    assert not buffer.closed
    with path.open("wb") as file:
        stepped(3).save(file)
        assert not file.closed
    with path.open("rb") as file:
        assert steps_of(file) == 3
        assert not file.closed
    with tempfile.TemporaryFile() as file:
        stepped(4).save(file)
        file.seek(0)
        assert steps_of(file) == 4


def saved_bytes(folder, steps):
    stepped(steps).save(folder / "bytes")
    return (folder / "bytes").read_bytes()


@pytest.mark.parametrize("path", [None, 3, b"run.npz", io.StringIO(), [1]])
def test_what_is_neither_path_nor_file(path):
    opt = stepped(1)
    for call in (opt.save, opt.load):
        with pytest.raises(TypeError, match="^path: expected a path or a file open in binary mode"):
            call(path)


# What is read


class Failing(io.BytesIO):
    """A file that cannot be read beyond so many bytes."""

    def __init__(self, content, readable, error):
        super().__init__(content)
        self.readable_to, self.error = readable, error

    def read(self, size=-1):
        content = super().read(size)
        if self.tell() > self.readable_to:
            raise self.error
        return content


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError()])
def test_what_is_no_damage_comes_out_as_it_is(path, error):
    opt = stepped(3)
    before, content = digest(opt), path.read_bytes()
    for readable in offsets(len(content)):
        with pytest.raises(type(error)):
            opt.load(Failing(content, readable, error))
        assert digest(opt) == before
    opt.load(Failing(content, len(content), error))


def test_a_module_that_is_missing_is_no_damage(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zipfile", None)
    with pytest.raises(ImportError):
        stepped(3).load(path)


SHORT_OF_MEMORY = """
import resource, sys, numpy as np, onepass as op
n = 10_000_000
opt = op.SGD(np.zeros(n, np.float32), momentum=0.9)
opt.step(np.broadcast_to(np.float32(1), n))
opt.save(sys.argv[1])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (20 << 20), resource.RLIM_INFINITY))
try:
    opt.load(sys.argv[1])
except MemoryError:
    sys.exit(3)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_lack_of_memory_is_no_damage(tmp_path):
    command = [sys.executable, "-c", SHORT_OF_MEMORY, str(tmp_path / "run.npz")]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    assert subprocess.run(command, check=False, env=environment).returncode == 3


@pytest.mark.parametrize("shape", [(10**15,), (2**70,), (N + 1,), (N - 1,)])
def test_damage_that_asks_for_memory_is_damage(path, shape):
    """An array is no longer than the file says, and the file no longer than it is."""
    damaged = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(damaged, "w") as other:
        for name in archive.namelist():
            content = archive.read(name)
            if name == "0.exp_avg.npy":
                content = content.replace(b"(50,)".ljust(20), str(shape).encode().ljust(20))
            other.writestr(name, content)
    with pytest.raises(ValueError, match="^path: expected a checkpoint that save wrote, got "):
        op.Adam(np.zeros(N)).load(damaged)


def test_what_numpy_wrote_is_read(path):
    """As before files were written here: of the same arrays."""
    other = io.BytesIO()
    with np.load(path) as archive:
        np.savez(other, **archive)
    other.seek(0)
    assert steps_of(other) == 1


# The format


arrays = hnp.arrays(
    st.sampled_from(["f2", "f4", "f8", ">f4", "u1", "u2", "i8", "U3", "?"]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)
layouts = st.sampled_from(
    [np.ascontiguousarray, np.asfortranarray, lambda a: a.T, lambda a: a[..., ::2] if a.ndim else a]
)


@given(
    st.dictionaries(
        st.text("ab.ö0", min_size=1), st.tuples(arrays, layouts), min_size=1, max_size=4
    )
)
def test_an_archive_is_what_numpy_and_zipfile_read(given):
    given = {name: layout(array) for name, (array, layout) in given.items()}
    file = io.BytesIO()
    write_npz(file, given)
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"{name}.npy" for name in given]
    file.seek(0)
    with np.load(file, allow_pickle=False) as found:
        for name, array in given.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
            if array.flags.c_contiguous or array.flags.f_contiguous:
                assert found[name].flags.f_contiguous == array.flags.f_contiguous
    again = io.BytesIO()
    write_npz(again, given)
    assert again.getvalue() == file.getvalue()


def test_no_pickles():
    with pytest.raises(TypeError):
        write_npz(io.BytesIO(), {"a": np.array([{}])})


def test_texts_and_what_is_no_text(tmp_path):
    write_text(tmp_path / "text", "a\udcff\n")
    assert (tmp_path / "text").read_bytes() == b"a\\udcff\n"
