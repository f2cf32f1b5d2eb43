"""A seccomp filter by libseccomp, which knows each architecture's system calls by name."""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NOT_EQUAL, _EQUAL, _MASKED_EQUAL = 1, 4, 7
_CLONE_THREAD = 0x00010000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # type into the terminal

_NETWORK = "socket socketpair connect bind listen accept accept4"
_PROGRAMS = "execve execveat fork vfork ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd process_madvise"
_SIGNALS = "kill tkill rt_sigqueueinfo pidfd_open pidfd_send_signal"
# Landlock leaves some of these alone (modes, owners, attributes), and where it is absent, so is all else of it.
_FILES = (
    "chmod fchmod fchmodat fchmodat2 chown lchown fchown fchownat utime utimes utimensat futimesat setxattr lsetxattr fsetxattr "
    "removexattr lremovexattr fremovexattr creat rename renameat renameat2 unlink unlinkat mkdir mkdirat rmdir mknod mknodat "
    "link linkat symlink symlinkat truncate truncate64 ftruncate ftruncate64 openat2 open_by_handle_at name_to_handle_at "
    "inotify_init inotify_init1 fanotify_init memfd_create memfd_secret"
)
_NAMESPACES = (
    "unshare setns mount umount umount2 pivot_root chroot open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr"
)
_SHARED = "shmget shmat msgget semget mq_open"
_PRIVILEGES = "setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset personality"
_OTHERS = "setpriority ioprio_set sched_setscheduler sched_setattr sched_setparam sched_setaffinity migrate_pages move_pages"
_KERNEL = (
    "bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register add_key request_key keyctl init_module "
    "finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff sethostname setdomainname settimeofday "
    "clock_settime clock_adjtime adjtimex acct syslog quotactl quotactl_fd iopl ioperm vhangup nfsservctl lookup_dcookie uselib"
)
_NEVER = " ".join((_NETWORK, _PROGRAMS, _SIGNALS, _FILES, _NAMESPACES, _SHARED, _PRIVILEGES, _OTHERS, _KERNEL)).split()


class _Comparison(ctypes.Structure):
    _fields_ = (("argument", ctypes.c_uint), ("operator", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


class Filter:
    """What is refused with EPERM from :meth:`load` on, in this thread and those that it starts: everything outside this process
    (network, programs, other processes, changes of files) and the kernel's rarer doors. Threads, memory and open files work.

    It is made before a fork and loaded after it.

    Args:
        writable: Leave opening files for writing allowed (devices of a GPU).

    Raises:
        OSError: There is no libseccomp.
    """

    def __init__(self, *, writable: bool = False) -> None:
        self._library = _library()
        self._context = ctypes.c_void_p(self._library.seccomp_init(_ALLOW))
        if not self._context:
            raise OSError(errno.EINVAL, "libseccomp makes no filter")
        for name in _NEVER:
            self._refuse(name)
        self._refuse("clone3", number=errno.ENOSYS)  # its flags are out of reach; glibc then takes clone
        self._refuse("clone", _Comparison(0, _MASKED_EQUAL, _CLONE_THREAD, 0))
        self._refuse("prlimit64", _Comparison(0, _NOT_EQUAL, 0, 0))  # another's limits
        for request in (_TIOCSTI, _TIOCLINUX):
            self._refuse("ioctl", _Comparison(1, _EQUAL, request, 0))
        if not writable:
            for mode in (os.O_WRONLY, os.O_RDWR):
                self._refuse("open", _Comparison(1, _MASKED_EQUAL, os.O_ACCMODE, mode))
                self._refuse("openat", _Comparison(2, _MASKED_EQUAL, os.O_ACCMODE, mode))

    def load(self) -> None:
        """Close it. ``abort`` in this process still works.

        Raises:
            OSError: The kernel refuses.
        """
        self._refuse("tgkill", _Comparison(0, _NOT_EQUAL, os.getpid(), 0))
        _check(self._library.seccomp_load(self._context), "seccomp_load")

    def _refuse(self, name: str, *when: _Comparison, number: int = errno.EPERM) -> None:
        call = self._library.seccomp_syscall_resolve_name(name.encode())
        if call == -1:  # a call that this version of libseccomp does not know
            return
        comparisons = (_Comparison * max(1, len(when)))(*when)
        added = self._library.seccomp_rule_add_array(self._context, _ERRNO | number, call, len(when), comparisons)
        _check(added, f"the rule for {name}")


def present() -> bool:
    """Whether there is a libseccomp; whether the kernel takes its filters, only loading one tells."""
    try:
        _library()
    except OSError:
        return False
    return True


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_load.argtypes = [ctypes.c_void_p]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Comparison),
    ]
    return library


def _check(result: int, doing: str) -> None:
    if result < 0:
        raise OSError(-result, f"{doing}: {os.strerror(-result)}")
