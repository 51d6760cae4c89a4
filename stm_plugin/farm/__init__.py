"""One shot on many machines: the parts of its work, each as a task of its own, and the bundle for a farm."""
