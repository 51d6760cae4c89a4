"""One shot on many machines: its work in separate tasks, and the job bundle for a farm."""
