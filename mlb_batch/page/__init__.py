"""The page: one self-contained HTML file that shows what a job was asked, what it cost and what it says.

build.py      write_page: everything gathered, put together, written
gallery.py    the gallery, held to a size that a browser opens with ease
cards.py      ... rows -> its clips, each with its answers
kept.py       selections -> for every visual token, when it left
thumbs.py     the clips' frames, read again by the job's own rules
runs.py       the runs behind the rows, and their throughput
sections.py   the page's text and figures, as HTML
charts.py     bars and steps, as SVG
escape.py     text from outside made harmless
page.html, page.css, page.js   the frame, the looks, the gallery

It opens from disk and asks the network for nothing: its content security policy allows its own style and script, by
their hashes, and pictures that lie in the file. Rows travel as JSON that is never run, and reach the page as text.
"""

from mlb_batch.page.build import write_page

__all__ = ["write_page"]
