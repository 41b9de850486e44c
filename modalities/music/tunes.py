"""Old tunes, written down for this project as melodies; all were published before 1870 or are traditional.

A tune is a line `name | key | time` and, indented, its melody. A note is a letter with its accidental and octave, then
`/` and its length in sixteenths; octave and length stay as they were until given anew; `r` is a rest. A lower-case key
is minor.
"""

from __future__ import annotations

import re

TUNES = """
Ode to Joy | C | 4/4
    E4/4 E F G G F E D C C D E E/6 D/2 D/8 E/4 E F G G F E D C C D E D/6 C/2 C/8 D/4 D E C D E/2 F E/4 C D E/2 F
    E/4 D C D G3/8 E4/4 E F G G F E D C C D E D/6 C/2 C/8
Frere Jacques | F | 4/4
    F4/4 G A F F G A F A Bb C5/8 A4/4 Bb C5/8 C/2 D C Bb4 A/4 F C5/2 D C Bb4 A/4 F F C F/8 F/4 C F/8
Twinkle, Twinkle | C | 4/4
    C4/4 C G G A A G/8 F/4 F E E D D C/8 G/4 G F F E E D/8 G/4 G F F E E D/8 C/4 C G G A A G/8 F/4 F E E D D C/8
Old Hundredth | G | 4/4
    G4/8 G/4 F# E D G A B/8 B/4 B A G C5 B4 A/8 G/8 A/4 B A G E F# G/8 D5/8 B4/4 G A C5 B4 A G/16
Mary Had a Little Lamb | C | 4/4
    E4/6 D/2 C/4 D E E E/8 D/4 D D/8 E/4 G G/8 E/6 D/2 C/4 D E E E E D D E D C/16
London Bridge | F | 4/4
    C5/6 D/2 C/4 Bb4 A Bb C5/8 G4/4 A Bb/8 A/4 Bb C5/8 C/6 D/2 C/4 Bb4 A Bb C5/8 G4/8 C5/8 A4/4 F/12
Au clair de la lune | G | 4/4
    G4/4 G G A B/8 A/8 G/4 B A A G/16 G/4 G G A B/8 A/8 G/4 B A A G/16 A/4 A A A E/8 E/8 A/4 G F# E D/16 G/4 G G
    A B/8 A/8 G/4 B A A G/16
Auld Lang Syne | F | 4/4
    r/12 C4/4 F/6 F/2 F/4 A G/6 F/2 G/4 A F/6 F/2 A/4 C5 D/12 D/4 C/6 A4/2 A/4 F G/6 F/2 G/4 A F/6 D/2 D/4 C
    F/12 D5/4 C/6 A4/2 A/4 F G/6 F/2 G/4 D5 C/6 A4/2 A/4 C5 D/12 D/4 C/6 A4/2 A/4 F G/6 F/2 G/4 A F/6 D/2 D/4 C
    F/16
Jingle Bells | G | 4/4
    B4/4 B B/8 B/4 B B/8 B/4 D5 G4/6 A/2 B/16 C5/4 C C/6 C/2 C/4 B4 B B/2 B B/4 A A B A/8 D5/8 B4/4 B B/8 B/4 B
    B/8 B/4 D5 G4/6 A/2 B/16 C5/4 C C/6 C/2 C/4 B4 B B/2 B D5/4 D C A4 G/16
Good King Wenceslas | G | 4/4
    G4/4 G G A G G D/8 E/4 D E F# G/8 G/8 G/4 G G A G G D/8 E/4 D E F# G/8 G/8 D5/4 C B4 A B A G/8 E/4 D E F#
    G/8 G/8 D/4 D E F# G G A/8 D5/4 C B4 A G/8 C5/8 G4/16
Yankee Doodle | D | 4/4
    D4/4 D E F# D F# E/8 D/4 D E F# D/8 C#/8 D/4 D E F# G F# E D C# A3 B C#4 D/8 D/8
When the Saints | F | 4/4
    r/4 F4 A Bb C5/16 r/4 F4 A Bb C5/16 r/4 F4 A Bb C5/8 A4 F A G/16 r/4 A A G F/12 F/4 A/8 C5/4 C C Bb4/12 r/4
    A Bb C5/8 A4 F G F/16
Lightly Row | C | 4/4
    G4/4 E E/8 F/4 D D/8 C/4 D E F G G G/8 G/4 E E/8 F/4 D D/8 C/4 E G G C/16 D/4 D D D D E F/8 E/4 E E E E F
    G/8 G/4 E E/8 F/4 D D/8 C/4 E G G C/16
Greensleeves | a | 3/4
    r/8 A4/4 C5/8 D/4 E/6 F/2 E/4 D/8 B4/4 G/6 A/2 B/4 C5/8 A4/4 A/6 G#/2 A/4 B/8 G#/4 E/8 A/4 C5/8 D/4 E/6 F/2
    E/4 D/8 B4/4 G/6 A/2 B/4 C5/6 B4/2 A/4 G#/6 F#/2 G#/4 A/12 A/12 G5/12 G/6 F#/2 E/4 D/8 B4/4 G/6 A/2 B/4 C5/8
    A4/4 A/6 G#/2 A/4 B/8 G#/4 E/12 G5/12 G/6 F#/2 E/4 D/8 B4/4 G/6 A/2 B/4 C5/6 B4/2 A/4 G#/6 F#/2 G#/4 A/12
    A/12
Go Tell Aunt Rhody | F | 4/4
    A4/8 A/4 G F/8 F G/8 G/4 Bb A G F/8 C5/8 C/4 Bb4 A/8 A G/4 F G A F/16
Joy to the World | D | 4/4
    D5/8 C#/6 B4/2 A/12 G/4 F#/8 E/8 D/12 A/4 B/12 B/4 C#5/12 C#/4 D/12 D/4 D C# B4 A A/6 G/2 F#/4 D5 D C# B4 A
    A/6 G/2 F#/4 F# F# F# F# F#/2 G A/12 G/2 F# E/4 E E E/2 F# G/12 F#/2 E D/4 D5/8 B4/4 A/6 G/2 F#/4 G F#/8 E
    D/16
Oh! Susanna | G | 4/4
    r/12 G4/2 A B/4 D5 D/6 E/2 D/4 B4 G/6 A/2 B/4 B A G A/12 G/2 A B/4 D5 D/6 E/2 D/4 B4 G/6 A/2 B/4 B A A G/16
    C5/8 C E/4 E/8 E/4 D D B4 G A/12 G/2 A B/4 D5 D/6 E/2 D/4 B4 G/6 A/2 B/4 B A A G/16
Hot Cross Buns | C | 4/4
    E4/8 D C/16 E/8 D C/16 C/4 C C C D D D D E/8 D C/16
Skip to My Lou | F | 4/4
    A4/4 A F F A A C5/8 G4/4 G E E G G Bb/8 A/4 A F F A A C5/8 G4/4 A Bb A F/8 F/8
Silent Night | C | 3/4
    G4/6 A/2 G/4 E/12 G/6 A/2 G/4 E/12 D5/8 D/4 B4/12 C5/8 C/4 G4/12 A/8 A/4 C5/6 B4/2 A/4 G/6 A/2 G/4 E/12 A/8
    A/4 C5/6 B4/2 A/4 G/6 A/2 G/4 E/12 D5/8 D/4 F/6 D/2 B4/4 C5/12 E/12 C5/4 G4 E G/6 F/2 D/4 C/12
"""

_NOTE = re.compile(r"([A-Gr])([#b]?)(\d?)(?:/(\d+))?$")
_SCALE = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


def melodies() -> list[tuple[str, str, str, list[int]]]:
    """(name, key, time, MIDI pitch per sixteenth, 0 = rest) of each tune, in the order written."""
    out = []
    for tune in re.split(r"\n(?! )", TUNES.strip()):
        head, _, melody = tune.partition("\n")
        name, key, time = head.split(" | ")
        out.append((name, key, time, read_melody(melody)))
    return out


def read_melody(text: str) -> list[int]:
    """The notation above to one pitch per sixteenth."""
    octave, length, steps = 4, 4, []
    for word in text.split():
        match = _NOTE.match(word)
        if match is None:
            raise ValueError(f"note {word!r}: expected a letter A-G or r, #/b, octave, /length, as in F#4/2")
        letter, accidental, octave_digit, length_digits = match.groups()
        octave = int(octave_digit or octave)
        length = int(length_digits or length)
        pitch = 0 if letter == "r" else 12 * (octave + 1) + _SCALE[letter] + {"": 0, "#": 1, "b": -1}[accidental]
        steps += [pitch] * length
    return steps
