"""Studies, reports and the command line."""
