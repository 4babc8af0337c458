"""What every room stands on: errors, waiting, paths, files, processes, credentials."""
