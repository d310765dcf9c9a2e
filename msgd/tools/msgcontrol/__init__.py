"""msgcontrol: smbcontrol's syntax."""
