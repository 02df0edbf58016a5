"""Where the embedded demo model lies: a Hugging Face folder inside the package."""

from pathlib import Path

DEMO_MODEL_DIR = Path(__file__).resolve().parent
