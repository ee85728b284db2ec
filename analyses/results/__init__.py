"""What every study's result is made with: its base class, statistics over seeds, tables."""
