"""What a linear model reaches on a task: TF-IDF of words and word pairs, linear SVM.

``python -m tests.benchmarks.baseline [--task icd10cm] [--data-dir DIR]``
"""

import argparse

from bitflax.data import metrics
from bitflax.data.tasks import load_task


def main() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="icd10cm")
    parser.add_argument("--data-dir")
    args = parser.parse_args()
    task = load_task(args.task, data_dir=args.data_dir)
    if task.regression or len(task.train.texts) == 2:
        parser.error("a task of classes and single texts is needed")
    linear = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LinearSVC(C=1.0)
    )
    linear.fit(task.train.texts[0], task.train.labels)
    said = linear.predict(task.dev.texts[0])
    print(metrics.score(task.metric, said, task.dev.labels))


if __name__ == "__main__":
    main()
