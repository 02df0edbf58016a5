"""The words, names and phrases that the generated chat transcripts are made of."""

CORE_WORDS = tuple(
    """
    apple arm ball banana bear bird black blue boat book bread bridge brown bus cake camel car
    cat chair cheese clock cloud coat coffee cold cow cup dance day desk dinner dog door dragon
    dream duck ear earth egg eye farm fire fish floor flower fly fog food foot forest fox friend
    frog fruit game garden glass goat gold grass green hand happy hat heart hello hill home honey
    horse house ice island juice key king kite lake lamp leaf lemon letter light lion machine map
    market milk model moon mouse music name nest night nose ocean orange owl paper park peach pen
    pencil piano pig planet plant python queen rabbit rain red ring river road robot rock rose
    salt sand school sea sheep ship shoe silver sky snake snow sofa soup spoon spring star stone
    storm sugar summer sun table tea tiger time train tree turtle umbrella valley violin wall
    water whale wheel white wind window winter wolf word world yellow zebra
    """.split()
)

NAMES = tuple(
    """
    Ada Adam Alan Alice Amir Anna Ben Bob Carla Carlos Chloe Clara Dan David Diana Ella Emma Eric
    Eva Felix Fiona Frank Grace Hana Hans Henry Ines Ivan Jack James Jane Jonas Julia Karim Kate
    Kofi Laura Leo Lena Lily Linda Lucas Maria Mark Marta Max Mia Mike Mina Nadia Nina Noah Nora
    Olga Oliver Omar Oscar Paul Paula Peter Priya Rachel Rosa Ryan Sam Sara Sofia Susan Theo Tom
    Tina Vera Victor Wei Yuki Yusuf Zoe
    """.split()
)

CITIES = tuple(
    """
    Amsterdam Athens Berlin Boston Cairo Chicago Delhi Dublin Geneva Helsinki Lagos Lima Lisbon
    London Madrid Milan Montreal Nairobi Oslo Paris Prague Rome Seoul Sydney Tokyo Toronto Vienna
    Warsaw Zurich
    """.split()
)

JOBS = tuple(
    """
    baker cook dentist doctor driver farmer gardener lawyer nurse painter pilot plumber sailor
    singer teacher waiter writer
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
    "You are a helpful assistant",
    "You are a friendly assistant.",
    "You are a concise assistant.",
    "You are a polite assistant. Answer briefly.",
    "You are the Tokasaurus demo model.",
    "Answer briefly.",
    "Be brief and correct.",
    "You answer questions about numbers and words.",
    "You are a careful teacher who helps children with numbers and spelling.",
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

FUNCTIONS = (
    ("adds two numbers", "def add(a, b):\n    return a + b"),
    ("subtracts two numbers", "def subtract(a, b):\n    return a - b"),
    ("multiplies two numbers", "def multiply(a, b):\n    return a * b"),
    ("squares a number", "def square(x):\n    return x * x"),
    ("doubles a number", "def double(x):\n    return 2 * x"),
    ("checks if a number is even", "def is_even(n):\n    return n % 2 == 0"),
    ("checks if a number is odd", "def is_odd(n):\n    return n % 2 == 1"),
    ("reverses a string", "def reverse(text):\n    return text[::-1]"),
    ("counts the words in a text", "def count_words(text):\n    return len(text.split())"),
    ("finds the largest number in a list", "def largest(numbers):\n    return max(numbers)"),
    ("sums a list", "def total(numbers):\n    return sum(numbers)"),
    (
        "computes the factorial of n",
        "def factorial(n):\n    if n <= 1:\n        return 1\n    return n * factorial(n - 1)",
    ),
    (
        "computes Fibonacci numbers",
        "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n"
        "    return a",
    ),
)
