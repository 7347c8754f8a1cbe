"""Programs that do one long step each: `python -m model_code.workers.NAME --config FILE`.

Their libraries make a million objects that stay; looking for garbage among them as often as Python does by itself takes
a quarter of the seconds that a worker starts in.
"""

import gc

gc.set_threshold(100_000, 10, 10)
