"""The process beside each job. It lives on when the node goes, and needs the standard library only.

    node --request line--> launcher --fork--> supervisor (a session of its own) --exec--> job

The launcher is one small process per node, so that a supervisor costs a fork and no start of an
interpreter. What a supervisor leaves in the job's folder (`run.jsonl`, `console`) is all that a
node needs to watch the job, or to adopt it after a restart.
"""
