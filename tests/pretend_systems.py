"""Linux as macOS or Windows would be: what those systems lack is taken away from Python, before inrfast is imported.

``become("darwin")`` or ``become("win32")``, in a process of its own. Modules of Python and other libraries that ask
for the system are imported first, and stay those of Linux: it shows that inrfast asks for nothing that is not there.
"""

import builtins
import errno
import importlib
import os
import shutil
import signal
import stat
import sys
from types import SimpleNamespace

ASK_FIRST = (
    "asyncio",
    "concurrent.futures",
    "ctypes",
    "hashlib",
    "igl",
    "imagecodecs",
    "json",
    "logging",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "mmap",
    "multiprocessing",
    "numpy",
    "pathlib",
    "PIL.Image",
    "PIL.PngImagePlugin",
    "platform",
    "psutil",
    "safetensors.torch",
    "scipy.io.wavfile",
    "scipy.ndimage",
    "scipy.optimize",
    "scipy.sparse.linalg",
    "scipy.spatial",
    "skimage.measure",
    "socket",
    "soundfile",
    "subprocess",
    "tempfile",
    "tifffile",
    "torch",
    "torch.distributed",
    "tqdm",
    "trimesh",
)

LINUX_HAS = """
    O_DIRECT O_LARGEFILE O_NOATIME O_PATH O_RSYNC O_TMPFILE copy_file_range eventfd fdatasync getrandom memfd_create
    pipe2 posix_fadvise posix_fallocate sched_getaffinity sched_setaffinity setns splice unshare
"""
"""Of the module ``os``, what macOS lacks."""

POSIX_HAS = """
    O_CLOEXEC O_DIRECTORY O_DSYNC O_NOCTTY O_NOFOLLOW O_NONBLOCK O_SYNC chown fchdir fchmod fchown fork forkpty
    fpathconf fstatvfs getegid geteuid getgid getgroups getloadavg getpgid getpgrp getpriority getsid getuid
    initgroups lchown lockf major minor mkfifo mknod pathconf posix_spawn pread preadv pwrite pwritev
    register_at_fork sendfile setsid statvfs sync sysconf uname wait wait3 wait4
"""
"""And what Windows lacks, besides."""

BINARY = 1 << 28
"""In place of Windows' flag ``O_BINARY``, which Linux has not."""

FREE = 8 << 30


def become(system):
    """Take from this process what the other system (``sys.platform``) lacks."""
    for name in ASK_FIRST:
        importlib.import_module(name)
    assert not [name for name in sys.modules if name.startswith("inrfast")]
    import psutil

    psutil.virtual_memory = lambda: SimpleNamespace(available=FREE)
    without_kernel_files()
    for name in (LINUX_HAS if system == "darwin" else LINUX_HAS + POSIX_HAS).split():
        if hasattr(os, name):
            delattr(os, name)
    if system == "win32":
        without_posix()
    sys.platform = system
    os.environ["INRFAST_NATIVE"] = "absent"
    if system == "win32":
        os.name = "nt"  # for what inrfast asks when it is imported, not for Python's own modules
        import inrfast.system

        os.name = "posix"
        assert not inrfast.system.MOVES_OPEN
        assert inrfast.system.fcntl is None


def without_kernel_files():
    """Hide ``/proc`` and ``/sys``."""

    def hidden(function):
        def call(path, *arguments, **options):
            if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(("/proc", "/sys")):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
            return function(path, *arguments, **options)

        return call

    os.open, builtins.open, os.link = hidden(os.open), hidden(builtins.open), hidden(os.link)
    os.supports_dir_fd |= {os.open, os.link}


def without_posix():
    """Take the modules and signals, and let files behave as they do on Windows."""
    flock = sys.modules["fcntl"].flock if "fcntl" in sys.modules else importlib.import_module("fcntl").flock
    sys.modules["fcntl"] = sys.modules["resource"] = None
    sys.modules["msvcrt"] = SimpleNamespace(LK_LOCK=1, LK_NBLCK=2, locking=lambda *given: locking(flock, *given))
    for name in ("SIGHUP", "SIGPIPE", "SIGKILL", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGCHLD"):
        delattr(signal, name)
    shutil.disk_usage = lambda path: SimpleNamespace(free=FREE)
    os.O_BINARY, os.supports_dir_fd = BINARY, set()
    os_open = os.open

    def opened(path, flags, mode=0o777):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        assert flags & BINARY or not in_inrfast(sys._getframe(1)), f"{path} would be opened as text"
        return os_open(path, flags & ~BINARY, mode)

    os.open = opened
    os.unlink, os.remove = refusing(os.unlink, 1), refusing(os.remove, 1)
    os.replace, os.rename = refusing(os.replace, 2), refusing(os.rename, 2)
    os.stat = without_folders(os.stat)


def in_inrfast(frame):
    """Return whether the function that called is of inrfast."""
    return str(frame.f_globals.get("__name__")).startswith("inrfast")


def locking(flock, descriptor, how, count):
    """Lock a file as msvcrt does: a conflict is a refused permission."""
    assert count == 1
    try:
        flock(descriptor, 2 | (4 if how == 2 else 0))
    except BlockingIOError:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None


def refusing(function, paths):
    """Return the function of one or two paths, refused for a file that this process has open."""

    def call(*arguments, src_dir_fd=None, dst_dir_fd=None, dir_fd=None):
        assert src_dir_fd is dst_dir_fd is dir_fd is None, "no descriptors of folders"
        for path in arguments[:paths]:
            if is_open(path):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return function(*arguments)

    return call


def without_folders(function):
    def call(path, *, dir_fd=None, follow_symlinks=True):
        assert dir_fd is None, "no descriptors of folders"
        return function(path, follow_symlinks=follow_symlinks)

    return call


def is_open(path):
    """Return whether this process has a file open."""
    try:
        wanted = os.lstat(path)
    except OSError:
        return False
    if not stat.S_ISREG(wanted.st_mode):
        return False
    for descriptor in range(3, 256):
        try:
            if os.path.samestat(os.fstat(descriptor), wanted):
                return True
        except OSError:
            continue
    return False
