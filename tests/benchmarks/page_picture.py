"""The picture of the page in the README: a page as headless Chromium shows it.

python -m bradley_terry.evaluate --model outputs/checkpoint --data outputs/data/test.parquet
python tests/benchmarks/page_picture.py outputs/evaluation_test.html common/page/report.png
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pages import Opened, chromium
from PIL import Image

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("page", type=Path)
parser.add_argument("picture", type=Path)
options = parser.parse_args()

with chromium() as browser:
    opened = Opened(browser, options.page, width=1280, height=720)
    opened.page.screenshot(path=options.picture, full_page=True)
    assert opened.wrong == [], opened.wrong
Image.open(options.picture).quantize(128).save(options.picture, optimize=True)  # a third of the size
print(f"{options.picture}: {options.picture.stat().st_size / 1000:.0f} kB")
