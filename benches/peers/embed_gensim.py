#!/usr/bin/env python3
"""Words a second of `attn embed train` beside gensim's Word2Vec: same text, words, settings and threads, by turns.

    pip install gensim==4.4.0
    embed_gensim.py --attn target/release/attn --text input.txt reviews.txt [--threads 2] [--epochs 5] [--rounds 5]

Both learn skip-gram with negative sampling: 100 numbers, window 5, 5 wrong answers, words from 5 occurrences on, threshold
1e-3; words are what stands between white space, in lower case, and lines are sentences. Counted are the words of the text
that are in the vocabulary, times the epochs, and only the training itself. The best of the rounds counts, as other
programs can only slow a round down. Then each's ten nearest words to some, as a check that both have learned.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

from gensim.models import Word2Vec

PROBES = ["good", "king", "he", "two"]


def gensim_round(lines, args):
    model = Word2Vec(vector_size=100, window=5, negative=5, sg=1, min_count=5, sample=1e-3, workers=args.threads, seed=1)
    model.build_vocab(lines)
    begun = time.perf_counter()
    model.train(lines, total_examples=len(lines), epochs=args.epochs)
    seconds = time.perf_counter() - begun
    return model, seconds


def attn_round(args, out):
    command = [args.attn, "embed", "train", "--text", *args.text, "--tokenizer", "whitespace", "--lowercase"]
    command += ["--dim", "100", "--window", "5", "--negative", "5", "--min-count", "5", "--subsample", "1e-3"]
    command += ["--epochs", str(args.epochs), "--threads", str(args.threads), "--out", str(out), "--overwrite"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(shown.split(" words/s")[0].split()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attn", required=True)
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    lines = [line.lower().split() for path in args.text for line in open(path, encoding="utf-8")]
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "vectors"
        for _ in range(args.rounds):
            ours.append(attn_round(args, out))
            model, seconds = gensim_round(lines, args)
            words = sum(model.wv.get_vecattr(word, "count") for word in model.wv.index_to_key)
            theirs.append(words * args.epochs / seconds)
        index = json.loads((out / "word_to_index.txt").read_text())
        assert set(index) == set(model.wv.index_to_key), "the vocabularies differ"
        print(f"{words} words of text, {len(index)} different, {args.epochs} epochs, {args.threads} threads")
        print(f"attn   {max(ours):9.0f} words/s (all: {', '.join(f'{x:.0f}' for x in ours)})")
        print(f"gensim {max(theirs):9.0f} words/s (all: {', '.join(f'{x:.0f}' for x in theirs)})")
        print(f"attn is {max(ours) / max(theirs):.2f} times as fast")
        for word in PROBES:
            found = subprocess.run(
                [args.attn, "embed", "nearest", word, "--vectors", str(out)], capture_output=True, text=True, check=True
            )
            names = [line.split()[0] for line in found.stdout.splitlines()[1:] if line.strip()]
            print(f"{word}: attn {' '.join(names)}")
            print(f"{word}: gensim {' '.join(name for name, _ in model.wv.most_similar(word))}")


if __name__ == "__main__":
    main()
