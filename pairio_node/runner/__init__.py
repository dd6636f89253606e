"""Runs one app in a sandbox: files in, files out."""

from pairio_node.runner.base import RunInput, Runner, RunOutcome, RunOutput, RunSpec
from pairio_node.runner.bwrap import BwrapRunner
from pairio_node.runner.choice import NoRunner, Runners, Wish, probe_all
from pairio_node.runner.launch import Launcher
from pairio_node.runner.process import ProcessRunner

__all__ = [
    "BwrapRunner",
    "Launcher",
    "NoRunner",
    "ProcessRunner",
    "RunInput",
    "RunOutcome",
    "RunOutput",
    "RunSpec",
    "Runner",
    "Runners",
    "Wish",
    "probe_all",
]
