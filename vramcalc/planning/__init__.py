"""Does it fit, how long, how much: verdicts, largest sizes, remedies, workloads, prices and plans."""
