"""One module a table. Each has `measure(bench, full) -> Result`."""
