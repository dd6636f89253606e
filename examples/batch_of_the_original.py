"""The original's way with many jobs: submit each with tags, count how they are, run it again later.

What is done is not done again: the second time everything comes from the cache.
"""

import os
from collections import Counter

from pairio.client import (
    PairioJobDefinition,
    PairioJobOutputFile,
    PairioJobParameter,
    PairioJobRequiredResources,
    submit_job,
)

service_name = os.getenv("PAIRIO_SERVICE_NAME", "hello_world_service")
assets = ["Ada", "Grace", "Hedy", "Katherine"]

statuses = Counter()
for asset in assets:
    job = submit_job(
        service_name=service_name,
        job_definition=PairioJobDefinition(
            appName="hello_world",
            processorName="hello_world_2",
            inputFiles=[],
            outputFiles=[PairioJobOutputFile(name="output", fileBaseName="output.txt")],
            parameters=[PairioJobParameter(name="name", value=asset)],
        ),
        required_resources=PairioJobRequiredResources(numCpus=1, numGpus=0, memoryGb=4, timeSec=60),
        tags=["example-batch", f"asset:{asset}"],
        rerun_failing=True,
    )
    statuses[job.status] += 1
    print(asset, job.job_url, job.status)
print(dict(statuses))
