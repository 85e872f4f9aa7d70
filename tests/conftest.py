"""Settings of all tests: hypothesis without deadlines and the same examples everywhere."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "inrfast",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("inrfast")
