"""Properties that must hold for any bytes: hypothesis draws them; the nightly mode draws fifty times as many."""
