"""lmms-eval, imported so that what it changes in the whole process is as before.

Whoever imports anything of lmms-eval imports this too.
"""

from __future__ import annotations

import lmms_eval.api.task  # noqa: F401  (the module that sets what is set back)
from PIL import ImageFile

# Half an image would be a whole one with grey below, and its question would be answered instead of counted as failed.
ImageFile.LOAD_TRUNCATED_IMAGES = False
