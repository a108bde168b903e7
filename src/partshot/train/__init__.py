"""Every loop that changes weights, and the journal it leaves."""
