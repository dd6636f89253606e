"""A job without files: it prints a greeting."""

import os

from pairio.client import (
    PairioJobDefinition,
    PairioJobRequiredResources,
    submit_job,
)

service_name = os.getenv("PAIRIO_SERVICE_NAME", "hello_world_service")

job_def = PairioJobDefinition(
    appName="hello_world",
    processorName="hello_world_1",
    inputFiles=[],
    outputFiles=[],
    parameters=[],
)
required_resources = PairioJobRequiredResources(numCpus=1, numGpus=0, memoryGb=4, timeSec=60)
job = submit_job(
    service_name=service_name,
    job_definition=job_def,
    required_resources=required_resources,
    tags=["example"],
    rerun_failing=True,
)
print(job.job_url, job.status)
