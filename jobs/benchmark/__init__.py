"""Speed as programs: raygrad against a plain torch loop, by turns and never at the same moment. See README.md."""
