"""healthingest: member files in, one protected and fully accounted `silver` table out."""
