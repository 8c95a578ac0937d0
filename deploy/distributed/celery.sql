-- Where Celery's workers say that they have begun and ended; Dagster asks there how a run fares.
CREATE DATABASE celery;
