"""The calls of the kernel that a job must not make, with their numbers.

What is not listed is allowed: what a job may not do for lack of a right (namespaces, capabilities)
is refused by the kernel. Listed is what a right of the job would open, or what has opened kernels.
"""

from typing import Final

__all__ = ["ALLOWED_TO_ZYGOTES", "ARGUMENTS", "DENIED", "LAST", "NUMBERS"]

#: Calls that a zygote needs to give a job its folders; `unshare` is allowed to it but for users.
ALLOWED_TO_ZYGOTES: Final = ("mount", "mount_setattr", "move_mount", "umount2", "unshare")

#: Calls that are looked at more closely: (x86_64, aarch64); None: there is none.
ARGUMENTS: Final[dict[str, tuple[int | None, int | None]]] = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "ioctl": (16, 29),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "socket": (41, 198),
}

#: Calls that are refused: (x86_64, aarch64); None: there is none.
DENIED: Final[dict[str, tuple[int | None, int | None]]] = {
    # Mounts and roots.
    "chroot": (161, 51),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "pivot_root": (155, 41),
    "umount2": (166, 39),
    # Namespaces.
    "setns": (308, 268),
    "unshare": (272, 97),
    # Other processes.
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    # Large parts of the kernel that no job needs.
    "add_key": (248, 217),
    "bpf": (321, 280),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "lsm_set_self_attr": (460, 460),
    "memfd_secret": (447, 447),
    "modify_ldt": (154, None),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "request_key": (249, 218),
    "sysfs": (139, None),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    # Where memory lies.
    "mbind": (237, 235),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    # The machine itself.
    "_sysctl": (156, None),
    "acct": (163, 89),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "init_module": (175, 105),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "nfsservctl": (180, 42),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "vhangup": (153, 58),
}

#: The newest call that this list was made with (file_setattr of Linux 6.17, the same number on
#: both). What comes after it is unknown here, and is answered as by a kernel that lacks it.
LAST: Final = 469

NUMBERS: Final = {**DENIED, **ARGUMENTS}
