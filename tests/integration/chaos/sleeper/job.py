"""Sleeps for `seconds`; its output is what came in and its tag, the same wherever it runs."""

import json
import os
import time
from pathlib import Path

job = json.loads(Path(os.environ["PAIRIO_JOB_FILE"]).read_text())
given = {parameter["name"]: parameter["value"] for parameter in job["parameters"]}
before = "".join(Path(entry["path"]).read_text() for entry in job["inputs"])
time.sleep(float(given["seconds"]))
Path(job["outputs"][0]["path"]).write_text(f"{before}slept {given['tag']}\n")
