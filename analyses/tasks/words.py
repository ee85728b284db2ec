"""Words that prompts are made of; which of them are one token is asked when prompts are drawn."""

MALE = (
    "Aaron", "Adam", "Alan", "Andrew", "Anthony", "Arthur", "Brian", "Carl", "Daniel", "David",
    "Donald", "Edward", "Eric", "Ethan", "Fred", "George", "Harry", "Henry", "Jack", "Jacob",
    "James", "Jason", "Jim", "John", "Joseph", "Kevin", "Luke", "Martin", "Matthew", "Michael",
    "Patrick", "Paul", "Peter", "Richard", "Robert", "Roger", "Ryan", "Simon", "Stephen", "Steven",
    "Thomas", "Tim", "Tom", "William",
)  # fmt: skip
FEMALE = (
    "Alice", "Amanda", "Amy", "Angela", "Anna", "Barbara", "Carol", "Caroline", "Christina",
    "Claire", "Clara", "Diana", "Dorothy", "Elizabeth", "Ellen", "Emily", "Emma", "Hannah",
    "Helen", "Jane", "Janet", "Jennifer", "Jessica", "Julia", "Julie", "Karen", "Kate", "Laura",
    "Linda", "Lisa", "Lucy", "Margaret", "Maria", "Mary", "Michelle", "Nancy", "Nicole", "Rachel",
    "Rebecca", "Sandra", "Sarah", "Susan", "Victoria",
)  # fmt: skip

ROLES = (
    "friend", "teacher", "singer", "driver", "writer", "doctor", "player", "cook", "runner",
    "student", "leader", "artist", "dancer", "neighbor", "partner", "painter",
)  # fmt: skip
QUALITIES = ("good", "great", "nice", "bad", "kind", "strong", "funny", "famous", "quiet", "loyal")

EVENTS = (
    "war", "strike", "conflict", "campaign", "siege", "battle", "trial", "dispute", "voyage",
    "reign", "rebellion", "expedition", "occupation", "drought", "famine", "plague", "truce",
    "project", "marriage", "career", "crisis", "journey", "reform", "affair", "alliance", "boycott",
    "construction", "debate", "deal", "endeavor", "exhibition", "expansion", "operation",
    "partnership", "program", "pursuit", "raid", "residence", "session", "tour", "uprising",
)  # fmt: skip
"""Nouns of what lasts, after arXiv 2305.00586, appendix A."""

NUMBERS = {
    "key": "keys", "book": "books", "picture": "pictures", "letter": "letters", "car": "cars",
    "dog": "dogs", "cat": "cats", "boy": "boys", "girl": "girls", "teacher": "teachers",
    "doctor": "doctors", "student": "students", "farmer": "farmers", "lawyer": "lawyers",
    "pilot": "pilots", "actor": "actors", "author": "authors", "singer": "singers",
    "driver": "drivers", "nurse": "nurses", "painter": "painters", "table": "tables",
    "chair": "chairs", "house": "houses", "tree": "trees", "road": "roads", "song": "songs",
}  # fmt: skip
"""Nouns, singular and plural."""
BESIDE = ("near", "behind", "beside", "by")
VERBS = {"is": "are", "was": "were", "has": "have"}

FUNCTIONS = ("port", "load", "run", "call", "test", "make", "open", "find", "send", "read", "sort")
ARGUMENTS = (
    "size", "files", "last", "first", "name", "path", "value", "key", "index", "data", "text",
    "line", "width", "height", "color", "time", "date", "user", "group", "node", "page", "model",
    "label", "image", "order", "result", "source", "target", "start", "stop", "count", "limit",
    "state", "event", "mode", "level", "code", "type", "filter", "table", "field",
)  # fmt: skip
DESCRIPTIONS = (
    "oil", "column", "piece", "crime", "population", "unit", "dark", "song", "spring", "paper",
    "market", "winter", "garden", "bank", "coffee", "train", "bridge", "stone", "river", "metal",
    "window", "cloud", "street", "moon", "forest", "island", "letter", "engine", "mirror", "summer",
)  # fmt: skip

NOUNS = (
    "apple", "bread", "chair", "cloud", "coat", "door", "field", "fish", "flower", "garden",
    "glass", "hill", "horse", "island", "lake", "lamp", "letter", "moon", "mountain", "paper",
    "plant", "river", "road", "salt", "ship", "snow", "song", "stone", "sugar", "table", "tower",
    "train", "tree", "village", "wall", "water", "wheel", "window", "wind", "wood",
)  # fmt: skip

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid",
    "England": "London", "Russia": "Moscow", "China": "Beijing", "Japan": "Tokyo",
    "Egypt": "Cairo", "Greece": "Athens", "Austria": "Vienna", "Portugal": "Lisbon",
    "Poland": "Warsaw", "Ireland": "Dublin", "Norway": "Oslo", "Sweden": "Stockholm",
    "Denmark": "Copenhagen", "Finland": "Helsinki", "Hungary": "Budapest", "Belgium": "Brussels",
    "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago", "Canada": "Ottawa", "Iraq": "Baghdad",
    "Iran": "Tehran", "Syria": "Damascus", "Lebanon": "Beirut", "Thailand": "Bangkok",
    "Vietnam": "Hanoi", "Kenya": "Nairobi", "Ukraine": "Kiev", "Turkey": "Ankara",
    "Afghanistan": "Kabul", "Libya": "Tripoli", "Serbia": "Belgrade", "Romania": "Bucharest",
    "Bulgaria": "Sofia", "Scotland": "Edinburgh", "Wales": "Cardiff",
}  # fmt: skip
