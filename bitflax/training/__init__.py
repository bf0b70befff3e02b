"""One training: optimizer, step, devices, hosts, checkpoints."""
