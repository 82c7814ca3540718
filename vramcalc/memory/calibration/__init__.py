"""The intervals around predictions of memory: read, and looked up for a job."""
