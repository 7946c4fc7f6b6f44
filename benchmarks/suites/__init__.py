"""The suites: each says what is generated and by whom, and yields the cells of a report."""
