"""What is asked: the job spelled out, and where the names of models, GPUs and releases are looked up."""
