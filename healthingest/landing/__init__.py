"""What has arrived: files in the landing zone, their names, whether they are complete. Reads no record."""
