"""Which job runs when: hosts, retries, workers."""
