"""Many jobs as one: submitted in one call, looked at as they end, results that rest on others'."""

import sys

from pairio.client import Client

with Client(service_name=sys.argv[1] if len(sys.argv) > 1 else None) as client:
    greetings = client.map(
        "hello_world/hello_world_2", [{"name": name} for name in ("Ada", "Grace", "Hedy")]
    )
    counts = client.map(
        "hello_world/count_characters",
        [{}] * len(greetings),
        inputs=[{"input": job.outputs["output"]} for job in greetings],
    )
    for job in counts.as_completed(timeout=300):
        print(job.jobId[-8:], job.status, job.outputs["output"].read_text())
    print(counts.progress())
