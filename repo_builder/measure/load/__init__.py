"""Making load: windows, workers, schedules, and what the server and the machine say meanwhile."""
