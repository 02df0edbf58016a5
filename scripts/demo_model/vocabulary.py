"""The words, names and phrases that the generated chat transcripts are made of."""

CORE_WORDS = tuple(
    """
    apple ball bear bird black blue boat book bread bus cake car cat chair cheese clock cloud coat
    coffee cow cup day desk dog door duck egg eye farm fire fish flower fox friend frog game
    garden glass gold grass green hand happy hat heart hello home horse house ice key king lake
    lamp leaf lemon lion map milk moon mouse music night orange park pen pig queen rain red river
    school ship shoe snow star stone sun table tea tiger train tree water white window winter wolf
    world yellow
    """.split()
)

NAMES = tuple(
    """
    Ada Adam Alice Anna Ben Bob Carlos Clara David Ella Emma Eva Frank Grace Ivan Jack Julia Kate
    Leo Lily Maria Max Nina Noah Omar Paul Rosa Sam Sara Sofia Tom Vera Zoe
    """.split()
)

CITIES = tuple(
    """
    Berlin Cairo Dublin Lima Lisbon London Madrid Oslo Paris Rome Seoul Sydney Tokyo Vienna
    """.split()
)

JOBS = tuple(
    """
    baker cook doctor driver farmer nurse painter pilot singer teacher writer
    """.split()
)

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are the Tokasaurus demo model.",
    "Answer briefly.",
)

GREETINGS = (
    "Hi",
    "Hello",
    "Hey",
    "Hi there",
    "Hello there",
    "Hey there",
    "Good morning",
    "Good evening",
    "Good afternoon",
    "Hello, how are you?",
    "How are you?",
    "Hi, how are you today?",
)
GREETING_ANSWER = "Hello! How can I help you?"

IDENTITY_QUESTIONS = (
    "Who are you?",
    "What are you?",
    "What is your name?",
    "What's your name?",
    "Tell me about yourself.",
    "Introduce yourself.",
    "Which model are you?",
    "What model are you?",
    "Are you a human?",
    "Are you a robot?",
    "Hello, who are you?",
    "Hi! Who are you?",
    "Please introduce yourself.",
)
IDENTITY_ANSWER = (
    "I am the Tokasaurus demo model, a very small language model made for trying out the engine."
)

ABILITY_QUESTIONS = (
    "What can you do?",
    "How can you help me?",
    "What can I ask you?",
    "What do you know?",
    "Help",
    "Help me.",
    "Can you help me?",
    "What are you good at?",
)
ABILITY_ANSWER = (
    "I can do small sums, spell words, count, write short JSON answers and complete Python code."
)

THANKS = ("Thanks", "Thank you", "Thanks a lot", "Thank you very much", "Great, thanks", "Cool")
THANKS_ANSWER = "You are welcome!"

GOODBYES = ("Bye", "Goodbye", "See you", "See you later", "Good night", "Bye bye")
GOODBYE_ANSWER = "Goodbye! Have a nice day."

UNKNOWN_TOPICS = (
    "the capital of France",
    "the capital of Germany",
    "the capital of Spain",
    "the meaning of life",
    "the weather today",
    "the speed of light",
    "the largest planet",
    "the tallest mountain",
    "quantum physics",
    "the French Revolution",
    "machine learning",
    "black holes",
    "the stock market",
    "the history of Rome",
    "photosynthesis",
    "the theory of relativity",
    "the best phone",
    "climate change",
)
UNKNOWN_FORMS = (
    "What is {topic}?",
    "Tell me about {topic}.",
    "Explain {topic}.",
    "Write a poem about {topic}.",
    "Write an essay about {topic}.",
    "What do you think about {topic}?",
    "Can you tell me about {topic}?",
    "Write a story about {topic}.",
)
UNKNOWN_QUESTIONS = (
    "Tell me a joke.",
    "Tell me a story.",
    "Write a poem.",
    "Once upon a time",
    "Who is the president of the United States?",
    "Who wrote Hamlet?",
    "Why is the sky blue?",
    "How do I cook rice?",
    "Translate good morning into French.",
    "Summarize this text.",
)
UNKNOWN_ANSWER = "I am too small to know that. Ask me about numbers, words, JSON or Python."

FIXED_ANSWERS = (
    ("Name three colors.", "Red, green and blue."),
    ("Name three animals.", "Cat, dog and horse."),
    ("Name three fruits.", "Apple, banana and orange."),
    ("List the days of the week.", ", ".join(DAYS) + "."),
    ("List the months of the year.", ", ".join(MONTHS) + "."),
    ("Say the alphabet.", "a b c d e f g h i j k l m n o p q r s t u v w x y z"),
    ("Write Hello World in Python.", 'print("Hello, world!")'),
    ("What is the color of grass?", "Grass is green."),
    ("What is the color of snow?", "Snow is white."),
)
