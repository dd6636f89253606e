"""Control groups of jobs, for whoever starts jobs (see `supervisor/cgroups.py`)."""

from pairio_node.runner.supervisor.cgroups import (
    CgroupUsage,
    Delegation,
    JobCgroup,
    delegation,
    probe,
    remove_named,
)

__all__ = ["CgroupUsage", "Delegation", "JobCgroup", "delegation", "probe", "remove_named"]
