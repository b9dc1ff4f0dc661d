"""Programs that show what wendelin.core is for."""
