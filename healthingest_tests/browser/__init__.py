"""Tests: sentences on real parts."""
