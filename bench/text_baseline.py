"""What TF-IDF with logistic regression gets on a labelled text set: what attar's text classifiers
are held against.

    scripts/bench-venv sklearn
    data/sklearn-venv/bin/python bench/text_baseline.py FOLDER

FOLDER holds train.tsv, validation.tsv and test.tsv with the columns `text` and `label`, as
`attar prepare wordnet-topics` writes them. The strength of regularization is chosen on the validation
split; the model that is tested has seen the training split alone, as attar's has.
"""

import csv
import sys
import time
from pathlib import Path

import sklearn
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.multiclass import OneVsRestClassifier

STRENGTHS = (3.0, 10.0, 30.0, 100.0, 300.0)


def read(file):
    with open(file, encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    (train, train_labels), (validation, validation_labels), (test, test_labels) = (
        read(folder / f"{split}.tsv") for split in ("train", "validation", "test")
    )
    print(f"scikit-learn {sklearn.__version__}: {len(train)}, {len(validation)}, {len(test)} texts")
    start = time.perf_counter()
    # Words and pairs of them, counts dampened: the usual form for short texts.
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    features = vectorizer.fit_transform(train)
    print(f"{features.shape[1]} words and pairs of words")
    best = None
    for strength in STRENGTHS:
        # One class against the others: with 45 of them, minutes less than all at once.
        model = OneVsRestClassifier(LogisticRegression(C=strength, solver="liblinear"))
        model.fit(features, train_labels)
        found = model.predict(vectorizer.transform(validation))
        accuracy = accuracy_score(validation_labels, found)
        print(f"C = {strength:<4} validation accuracy {accuracy:.4f}", flush=True)
        if best is None or accuracy > best[0]:
            best = (accuracy, strength, model.predict(vectorizer.transform(test)))
    _, strength, found = best
    print(
        f"C = {strength:<4} test accuracy {accuracy_score(test_labels, found):.4f}, "
        f"macro F1 {f1_score(test_labels, found, average='macro'):.4f}, "
        f"{time.perf_counter() - start:.0f} s for all"
    )


main()
