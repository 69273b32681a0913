"""Rounds: what a run is and where it stands, who takes part, and an attempt at a round.

`run` holds a run's parts and position. `participation` draws the clients. `attempt` asks them, sorts
out the replies (`replies`) and aggregates; `noised` is the server's mechanism under client-level
privacy. `journal` has every attempt on the disk before it is made, and `again` finds it there after
an interruption. `evaluation` measures a state, and a whole run at its end. `record` is what recorders
get, and `describe` makes it from a run. `public` is what the server may look at of the model.
"""
