"""`dse browse`: the web app in which people decide (docs/browse.md). Needs the extra `browse`."""
