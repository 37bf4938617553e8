"""The report: one HTML page about a checkpoint or a mirror, made from facts alone.

    facts       what is shown, of a manifest or an inspection
    treemap     rectangles in proportion to sizes
    cells       modules and tensors as such rectangles, the small ones together
    charts      rectangles, shards and rates as SVG
    page        the HTML around it, and every escape
    style       its look, and the few lines of script that it does without

As in `core` nothing here touches files, clock or network.
"""
