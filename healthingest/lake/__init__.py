"""Where data rests: bronze, quarantine, sightings, vault, silver, audit. Each module owns one table or folder."""
