"""HTTP: the lean push path, everything else on aiohttp, and who may do what."""
