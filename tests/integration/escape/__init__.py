"""What a job does to get out of where it runs, and to reach other jobs: `make escape`."""
