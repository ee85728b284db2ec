"""Words that fill the slots of sentences and decide nothing: animals, feelings, games, ..."""

from __future__ import annotations

ANIMALS = (
    "bear", "bee", "cat", "cow", "crab", "crow", "dog", "donkey", "dove", "duck", "eagle",
    "elephant", "frog", "goat", "goose", "hedgehog", "hen", "horse", "kitten", "lamb", "lion",
    "lizard", "mole", "monkey", "moth", "owl", "parrot", "penguin", "pig", "puppy", "rabbit",
    "rat", "seal", "snail", "snake", "spider", "squirrel", "swan", "tiger", "turtle", "worm",
)  # fmt: skip
TRAITS = (
    "brave", "busy", "calm", "careful", "cheerful", "clever", "friendly", "funny", "gentle",
    "honest", "kind", "lively", "noisy", "patient", "polite", "quiet", "shy", "silly", "smart",
)  # fmt: skip
COLORS = (
    "black", "blue", "bright", "brown", "dark", "golden", "gray", "green", "orange", "pink",
    "purple", "red", "silver", "spotted", "striped", "white", "yellow",
)  # fmt: skip
FEELINGS = (
    "afraid", "angry", "bored", "calm", "cold", "cross", "curious", "excited", "glad",
    "happy", "hungry", "lazy", "lonely", "nervous", "proud", "sad", "sleepy",
    "surprised", "thirsty", "tired", "upset", "warm", "worried",
)  # fmt: skip
WEATHER = (
    "chilly", "cloudy", "cold", "cool", "foggy", "frosty", "hot", "misty", "rainy", "snowy",
    "stormy", "sunny", "warm", "wet", "windy",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve")
FAMILY = (
    "aunt", "brother", "cousin", "father", "grandfather", "grandmother", "mother", "sister",
    "uncle",
)  # fmt: skip
JOBS = (
    "baker", "carpenter", "clown", "cook", "dancer", "doctor", "driver", "farmer", "gardener",
    "hunter", "juggler", "nurse", "painter", "pilot", "plumber", "sailor", "singer", "tailor",
    "waiter", "writer",
)  # fmt: skip
GAMES = (
    "cards", "catch", "checkers", "chess", "football", "hide and seek", "hockey", "hopscotch",
    "leapfrog", "marbles", "tag", "tennis",
)  # fmt: skip
INSTRUMENTS = ("cello", "flute", "guitar", "harp", "piano", "recorder", "trombone")
SIGHTS = (
    "bridge", "bush", "fence", "fountain", "haystack", "hedge", "ladder", "rock", "scarecrow",
    "shed", "statue", "tent", "tower", "tractor", "truck", "wagon", "well", "wheelbarrow",
    "windmill",
)  # fmt: skip
CREATURES = (
    "dinosaur", "dragon", "fairy", "ghost", "giant", "mermaid", "monster", "pirate", "prince",
    "princess", "queen", "robot", "unicorn", "witch", "wizard",
)  # fmt: skip
LANDS = (
    "cave", "desert", "island", "jungle", "mountain", "palace", "rocket", "treasure", "tunnel",
    "volcano",
)  # fmt: skip
CLOTHES = (
    "belt", "cap", "cape", "coat", "hood", "jacket", "raincoat", "shawl", "shirt", "sweater",
    "vest",
)  # fmt: skip
BODY = ("ankle", "arm", "chin", "elbow", "finger", "foot", "head", "knee", "nose", "thumb", "toe")
MOVED = (
    "climbed", "crawled", "galloped", "hopped", "hurried", "jumped", "marched", "raced", "ran",
    "rushed", "skipped", "stepped", "strolled", "tiptoed", "walked", "wandered",
)  # fmt: skip
ALONG = (
    "across the bridge", "along the wall", "around the corner", "down the path", "down the steps",
    "over a log", "past a row of houses", "through the gate", "through the mud", "under a branch",
    "up the stairs",
)  # fmt: skip
HOW = (
    "bravely", "carefully", "gently", "happily", "loudly", "proudly", "quickly", "quietly",
    "slowly", "softly", "suddenly",
)  # fmt: skip
SAID = ("called", "cried", "said", "said", "said", "shouted", "whispered")
