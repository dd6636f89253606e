"""Tries whether warm workers can be had on this machine, with an app of one line."""

import tempfile
from dataclasses import replace
from pathlib import Path

import trio

from pairio_node.runner.base import RunSpec
from pairio_node.runner.launch import Launcher
from pairio_node.runner.zygote.link import HostGone, HostLink
from pairio_node.runner.zygote.pool import WarmPool
from pairio_node.runner.zygote.runner import WarmRunner

__all__ = ["probe_warm"]

_APP = "import sys\nsys.modules['_pairio_warm'].serve()\n"
_IMPORT_S = 20.0
_LOOKS_MAX, _LOOK_S = 500, 0.01


async def probe_warm(launcher: Launcher, spec: RunSpec) -> tuple[str, str]:
    """Start warm workers and let them go; `spec` is of any job. Returns what they are (`zygote`,
    `single`; `cold`: there are none) and why they are no better."""
    with tempfile.TemporaryDirectory(prefix="pairio-probe-") as folder:
        bundle = Path(folder) / "app"
        bundle.mkdir()
        (bundle / "app.py").write_text(_APP)
        host = HostLink(launcher)
        try:
            runner = WarmRunner(launcher, WarmPool(Path(folder) / "warm", launcher))
            config = runner.config(replace(spec, bundle=bundle, executable="app.py")) | {
                "folder": str(Path(folder) / "worker"),
                "single_because": "",
                "pydantic": False,
                "import_s": _IMPORT_S,
                "workers": 1,
            }
            answer = await host.begin(config, 2 * _IMPORT_S + 10)
        except (HostGone, OSError) as error:
            return "cold", str(error)
        finally:
            await _end(host)
    return str(answer["kind"]), str(answer["why"])


async def _end(host: HostLink) -> None:
    host.close()
    with trio.CancelScope(shield=True):
        for _ in range(_LOOKS_MAX):
            if host.has_ended():
                return
            await trio.sleep(_LOOK_S)
    host.leave()
