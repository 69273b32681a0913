"""Tables, figures and reports of runs that are finished."""
