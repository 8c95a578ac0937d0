"""Gold: what others make of silver. Each mart is one file, reads silver's change feed and writes one table."""
