"""What a run needs to go on with the same bits.

`checkpoint` is the file: a state, tensors and facts. `writer` decides when one is written. `kept`
turns what clients and strategies keep into tensors and facts. `resume` saves a run, finds the newest
whole file and puts a run back where it stood; `identity` refuses to do that under other settings or
inputs. `resuming` is what `resume=` means on the command line.
"""
