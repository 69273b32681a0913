"""DP-SGD steps, calibration, and the ledger of what every client really spent."""
