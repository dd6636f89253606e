"""Warm workers: processes that have an app imported before a job is there.

    node --plan--> host (one per app) --fork--> supervisor of the job
                   host --bwrap--> template (has the app) --fork--> M -> init J1 -> job J2

A template is either a zygote, from which every job is forked with namespaces of its own, or a
worker that was started ahead and serves one job (`templates`). `inside` runs in the sandbox;
`host`, `keeper` and `warm_job` beside it, without trio; `pool` and `runner` are the node's. What a
supervisor leaves in the job's folder is the same as for a job that was started cold.
"""
