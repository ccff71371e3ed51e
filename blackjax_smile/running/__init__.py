"""One driver for long runs: any data source, draws on disk, resumable, many devices."""
