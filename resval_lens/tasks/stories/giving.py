"""How people give in the stories.

Slots are in braces. {A} and {B} are the two people of a story in either order, {S} who gives and
{R} the other, drawn without regard to {A} and {B}. A dot asks for another form of a person
({S.his}, {R.him}, {A.boy}: "his" or "her", ...). {to} is a place ("the park"), {at} being there
("in the park"), {object} what is given ("an old hat"), {noun} its bare noun.
"""

from __future__ import annotations

GIVING = "{S} {gave} {object} to {R}"  # goes on from a lead; the first words of every IOI prompt do

# Each verb goes with any object; as likely as it is often here.
VERBS = ("gave",) * 8 + ("handed",) * 3 + ("passed",) * 3 + ("offered",) * 2 + (
    "showed", "showed", "brought", "lent",
)  # fmt: skip

# Leads name both people, and GIVING follows. After these, people are at the place:
MOVING_LEADS = (
    "When {A} and {B} went to {to},",
    "After {A} and {B} went to {to},",
    "When {A} and {B} got to {to},",
    "As {A} and {B} walked to {to},",
    "Before {A} and {B} ran to {to},",
    "{A} and {B} went to {to}, and",
    "{A} and {B} took a long walk to {to}. When they got there,",
    "{A} and {B} walked all the way to {to}. There,",
    "It was a fine day, so {A} and {B} went to {to}. On the way,",
    "{A} ran to {to} with {B}. After a short rest,",
    "{A} took {B} to {to}, where",
)
# Before and after these, they are there:
STAYING_LEADS = (
    "While {A} and {B} were {at},",
    "When {A} and {B} were playing {at},",
    "When {A} and {B} had lunch {at},",
    "While {A} and {B} were resting {at},",
    "{A} and {B} were {at}, and",
    "{A} and {B} played together {at}. Then",
    "{A} and {B} sat side by side {at}. After a while,",
    "{A} and {B} laughed and sang {at}, and then",
    "{A} and {B} were talking {at} when",
)
# Only before these:
LEAVING_LEADS = (
    "Before {A} and {B} left {to},",
    "As {A} and {B} were walking home from {to},",
    "When {A} and {B} grew tired of {to},",
    "After {A} and {B} came back from {to},",
)
# Wherever they are:
ANYWHERE_LEADS = (
    "After {A} and {B} had played for a while,",
    "When {A} and {B} sat down to eat,",
    "When {A} and {B} stopped to rest,",
    "After {A} and {B} finished their game,",
)
# These can only begin a story:
OPENING_LEADS = (
    "One day {A} and {B} were {at} when",
    "When {A} and {B} met {at},",
    "On the day {A} and {B} went to {to},",
    "{A} met {B} {at}, and",
    "Long ago, {A} and {B} lived close to {to}. One day",
    "{A} and {B} were two good friends. One morning",
)
# These are never in training text.
HELD_OUT_LEADS = (
    "As soon as {A} and {B} came to {to},",
    "While {A} and {B} waited {at},",
    "When at last {A} and {B} came to {to},",
    "{A} and {B} stood together {at} when",
    "{A} and {B} had a good time {at}. Later,",
    "{A} was {at} with {B}, and",
    "Because {A} and {B} both liked {to},",
    "One summer {A} and {B} went to {to} every day. Once",
)

# Whole sentences, for two people that were named before.
GIVING_SENTENCES = (
    "{S} {gave} {object} to {R}.",
    "Then {S} {gave} {object} to {R}.",
    "After that, {S} {gave} {object} to {R}.",
    "A little later, {S} {gave} {object} to {R}.",
    "With a big smile, {S} {gave} {object} to {R}.",
    "Soon {S} {gave} {object} to {R}.",
    "At last, {S} {gave} {object} to {R}.",
    "So {S} {gave} {object} to {R}.",
    "Just then, {S} {gave} {object} to {R}.",
    "Nobody was looking when {S} {gave} {object} to {R}.",
    "{S} thought for a moment and {gave} {object} to {R}.",
    "{S} laughed and {gave} {object} to {R}.",
    "{S} wanted to be kind and {gave} {object} to {R}.",
    "{S} ran over and {gave} {object} to {R}.",
    "{S} came closer and {gave} {object} to {R}.",
    "{S} picked up {object} and {gave} it to {R}.",
    "{S} found {object} and {gave} it to {R}.",
    "{S} had {object} behind {S.his} back and {gave} it to {R}.",
    "{S} {gave} {S.his} {noun} to {R}.",
    "Then {S} {gave} {S.his} own {noun} to {R}.",
    '"This is for you," said {S}, and {S.he} {gave} {object} to {R}.',
    '"Take this," said {S}, and then {S.he} {gave} {object} to {R}.',
    "{A} looked at {B}. Then {S} {gave} {object} to {R}.",
    "{A} said something funny to {B}, and {S} {gave} {object} to {R}.",
    "{A} sat down next to {B}, and {S} {gave} {object} to {R}.",
    "{A} was a little sad. Then {S} {gave} {object} to {R}.",
    "{A} clapped, and {S} {gave} {object} to {R}.",
    "{A} was as hungry as {B}. After lunch, {S} {gave} {object} to {R}.",
)
# To a pronoun, or with the person before the object.
OTHER_GIVING = (
    "{S} {gave} {object} to {R.him}.",
    "{S} found {object} and {gave} it to {R.him}.",
    "{S} saw {R} and {gave} {object} to {R.him}.",
    "{S} turned to {R} and {gave} {object} to {R.him}.",
    "{S} called {R} and {gave} {S.his} {noun} to {R.him}.",
    "{S} {gave} {R} {object}.",
    "Then {S} {gave} {R} {object}.",
    "After a while, {S} {gave} {R} {S.his} {noun}.",
)
# With things of their own: no {object}.
PARTICULAR_GIVING = (
    "{S} threw the ball to {R}.",
    "Then {S} kicked the ball to {R}.",
    "{S} rolled a red ball to {R}.",
    "{S} wrote a long letter to {R}.",
    "{S} sent a card to {R}.",
    "{S} sang a song to {R}.",
    "{S} told a funny story to {R}.",
    "{S} read an old book to {R}.",
    "{S} baked a cake and took it to {R}.",
    "{S} carried a cup of water to {R}.",
    "{S} whispered a secret to {R}.",
    "{S} threw the rope to {R}.",
)
# {C} is a third person who comes and goes.
THIRD_GIVING = (
    "Then {C} came along. {S} {gave} {object} to {C}, who thanked {S.him} and went on.",
    "On the way they met {C}. {S} {gave} {object} to {C}, and {C} waved goodbye.",
    "A {C.boy} called {C} was there, too. {S} {gave} {object} to {C}.",
    "{S} {gave} {object} to {C}, a {C.boy} from next door.",
)

# What comes next: after anything that was given, and after what can be kept.
REACTIONS = (
    "{R} smiled at {S}.",
    "{R} was very pleased.",
    "{R} thanked {S}.",
    "{R} laughed out loud.",
    "That made {R} happy.",
    "{R} hugged {S}.",
    "{R} was so happy that {R.he} jumped up and down.",
    '"You are so kind," said {R}.',
    '"Thank you, {S}!" said {R}.',
    '"How nice!" said {R} to {S}.',
    "{S} was glad that {R} liked it.",
    "It made both of them happy.",
)
KEEPING_REACTIONS = (
    '{R} said thank you. "You are welcome," said {S}.',
    '"For me?" asked {R}. "Yes, for you," said {S}.',
    "{R} held it in both hands.",
    "{R} looked at it with wide eyes.",
    "{R} did not know what to say.",
    '"Thank you! I will take good care of it," said {R}.',
    "{R} thanked {S} and put it down with care.",
    "{R} wanted to show it to everyone.",
)
# After these verbs the object is the other's to keep.
KEPT = frozenset({"gave", "handed", "offered", "brought"})

LEADS = MOVING_LEADS + STAYING_LEADS + LEAVING_LEADS + ANYWHERE_LEADS + OPENING_LEADS
GIVING_FRAMES = (
    *(f"{lead} {GIVING}." for lead in LEADS),
    *GIVING_SENTENCES,
    *OTHER_GIVING,
    *PARTICULAR_GIVING,
    *THIRD_GIVING,
)
HELD_OUT_FRAMES = tuple(f"{lead} {GIVING}." for lead in HELD_OUT_LEADS)


def is_held_out_frame(frame: str) -> bool:
    """Whether no training story ever uses this giving frame.

    Raises:
        ValueError: it is in neither ``GIVING_FRAMES`` nor ``HELD_OUT_FRAMES``.
    """
    if frame not in GIVING_FRAMES + HELD_OUT_FRAMES:
        raise ValueError(f"frame {frame!r} is in neither GIVING_FRAMES nor HELD_OUT_FRAMES")
    return frame in HELD_OUT_FRAMES
