"""Interventions on hook points."""
