"""msgstatus: who is here."""
