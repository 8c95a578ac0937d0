"""Where reports are served, if they are."""

#: The variable that says it; asset pages and alerts then link there.
URL_VARIABLE = "HEALTHINGEST_REPORTS_URL"
