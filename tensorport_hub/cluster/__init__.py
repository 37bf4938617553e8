"""Beyond one machine: the same plan, walked by workers elsewhere.

The coordinator plans, opens the destination, and publishes, as on one machine. What is left of the plan is
cut into shares (`core.shares`), which workers carry out by the same engine: each reads its ranges, decodes,
and sends its parts straight to the Hub's storage. Only what is finished comes back (`brief`).
"""
