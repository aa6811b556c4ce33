"""What Hypothesis finds counts, not how long it took: a machine that stands still for a moment fails no property."""

from hypothesis import HealthCheck, settings

settings.register_profile("unhurried", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
