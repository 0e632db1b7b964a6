"""From a run's folder to files that other programs read: `octo export format=mcu run=<folder>`."""
