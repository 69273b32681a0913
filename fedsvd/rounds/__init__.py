"""Rounds: what a run is and where it stands, who takes part, and an attempt at a round.

`run` holds a run's parts and position. `participation` draws the clients. `attempt` asks them, sorts
out the replies (`replies`) and aggregates; `noised` is the server's mechanism under client-level
privacy. `journal` has every attempt on the disk before it is made, and `again` finds it there after
an interruption. `evaluation` measures a state, `summary` a whole run. `record` is what recorders get.
"""
