"""The control groups of this process, with which containers and SLURM limit what it may use (Linux)."""

from pathlib import Path

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def groups(controller: str, cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> list[Path]:
    """The folders of the control groups of this process and of those around them, the innermost first.

    Args:
        controller: what is limited, such as `cpu` or `memory`.
        cgroups: where the control groups, of version 1 or 2, are mounted.
        own: the file that names the control groups of this process.

    Returns:
        Folders, some of which may not exist; none on other systems.
    """
    try:
        lines = own.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        # Version 2 names no controllers. Version 1 has a mount for each set of them, often with a link for each one.
        mounts = [cgroups / controllers, cgroups / controller] if controllers else [cgroups, cgroups / "unified"]
        for mount in mounts:
            group = mount / path.strip("/")
            # In a container the path may be that of the host, and only the root of the mount is visible.
            found += [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]
    return found
