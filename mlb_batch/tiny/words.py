"""Every word that the procedural world speaks: each is one token of the embedded models; other text is bytes."""

from __future__ import annotations

COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan", "orange", "white")
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
DIRECTIONS = ("left", "right", "up", "down")
PLACES = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")

_SPEECH = """
a an the and or of in on at to from by with for is are was were be it its this that there then than into while as not
no yes none what which where when who how many much often does do did has have had can how why if first second third
fourth fifth last next before after early late later start end beginning middle half time times order video clip frame
frames image picture scene scenes background object objects shape shapes colour color colours colors thing things kind
direction place corner side top bottom centre center part move moves moved moving appear appears appeared appearing
show shows shown see seen stay stays stayed still stand stands flash flashes flashed flicker flickers flickering brief
briefly blink change changes changed cut cuts happen happens happened come comes came go goes went visible different
same other another only once twice each every all any most black grey gray dark light plain question answer option
options letter correct choose following select given describe detail short sentence caption title watch please tell me
about you i we your my their them they he she day night person people man woman car dog cat water street room hand
table triangles circles squares crosses diamonds rings user assistant system
"""


def vocabulary() -> list[str]:
    """Each word as text shows it, in a fixed order: after a space and not, lower case and capitalised."""
    names = [part for place in PLACES for part in place.split()]
    words = dict.fromkeys([*COLOURS, *SHAPES, *DIRECTIONS, *names, *NUMBERS, *_SPEECH.split(), "USER", "ASSISTANT"])
    forms = [space + form for word in words for form in (word, word.capitalize()) for space in (" ", "")]
    return list(dict.fromkeys(form for form in forms if len(form) > 1))
